package inventory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Reload reads every domain. What was read when the connection was lost
// meanwhile counts for nothing.
func (v *Inventory) Reload(ctx context.Context) error {
	losses, number := v.TimesLost(), v.beginReading()
	all, err := v.host.List(ctx)
	defer v.endReading()
	if err != nil {
		return err
	}
	v.Saw(all...)
	domains := make(map[string]hypervisor.Domain, len(all))
	for _, d := range all {
		domains[d.ID] = d
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	// The list may be of both sides of the loss.
	if v.losses != losses {
		return fmt.Errorf("%w: the connection was lost meanwhile", hypervisor.ErrUnavailable)
	}
	silent := v.rememberedLocked(domains)
	// A domain that was read by itself after the list had begun is newer than the list.
	for id, newer := range v.kept {
		if newer < number {
			delete(v.kept, id)
			continue
		}
		delete(silent, id)
		if d, known := v.domains[id]; known {
			domains[id] = d
		} else {
			delete(domains, id)
		}
	}
	v.domains, v.newest, v.connected, v.read = domains, number, true, true
	v.silent = silent
	v.wakeAllLocked()
	for id := range v.resumed {
		if _, known := domains[id]; !known {
			delete(v.resumed, id)
		}
	}
	return nil
}

// rememberedLocked tells which domains of a list did not answer, and puts what is known of
// them in the place of what the list could tell.
func (v *Inventory) rememberedLocked(domains map[string]hypervisor.Domain) (silent map[string]bool) {
	silent = map[string]bool{}
	for id, d := range domains {
		if !d.Silent {
			continue
		}
		silent[id] = true
		if known, before := v.domains[id]; before {
			domains[id] = known
		}
	}
	return silent
}

// TimesLost counts how often the connection was lost: what was read before may have
// missed events.
func (v *Inventory) TimesLost() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.losses
}

// How long the picture may be behind an event; beside an operation, which reads the
// domain at each step, longer. (A new definition is looked at at once.)
const (
	refreshLag       = 50 * time.Millisecond
	refreshLagBeside = time.Second
)

// RefreshSoon is refresh, unless somebody reads the domain in the next moment anyway:
// a deletion makes a dozen events, and reads the domain after most of them.
func (v *Inventory) RefreshSoon(ctx context.Context, id string, lag time.Duration) {
	v.mu.Lock()
	before := v.begun
	v.mu.Unlock()
	select {
	case <-time.After(lag):
	case <-ctx.Done():
		return
	}
	v.mu.Lock()
	read := v.kept[id] > before
	v.mu.Unlock()
	if !read {
		v.Refresh(ctx, id)
	}
}

// Refresh reads one domain and keeps it; errors leave the picture as it was,
// but a domain that is gone is forgotten. Callers that come while one reading is under
// way and the next has not begun are served by the next: on a busy host events come
// faster than the answers.
func (v *Inventory) Refresh(ctx context.Context, id string) {
	v.mu.Lock()
	next, waited := v.next[id]
	if !waited {
		next = make(chan struct{})
		v.next[id] = next
	}
	v.mu.Unlock()
	if waited {
		select {
		case <-next:
		case <-ctx.Done():
		}
		return
	}
	defer close(next)
	release, err := v.refreshing.Lock(ctx, id)
	v.mu.Lock()
	delete(v.next, id) // from here on an event may be newer than what is read
	v.mu.Unlock()
	if err != nil {
		return
	}
	defer release()
	_, err = v.Read(ctx, id)
	if err == nil && !v.wellKnown(id) {
		_, err = v.ReadFull(ctx, id)
	}
	if err != nil && vps.CodeOf(err) != vps.CodeNotFound && ctx.Err() == nil {
		v.logger.Debug("domain not read", "vps", id, "error", err)
	}
}

// Read reads one domain again, without the sizes of its disks. It wakes nobody:
// waiters for a change read the domain themselves, and would wake themselves without end.
func (v *Inventory) Read(ctx context.Context, id string) (hypervisor.Domain, error) {
	number := v.beginReading()
	d, err := v.host.Glance(ctx, id)
	if v.keep(number, id, d, err) {
		v.Saw(d)
	}
	return d, unlessAstray(d, err)
}

// ReadFull reads one domain again with the sizes, which its QEMU must answer. Where only
// state and paths matter, Read does, and works with a QEMU that hangs.
func (v *Inventory) ReadFull(ctx context.Context, id string) (hypervisor.Domain, error) {
	number := v.beginReading()
	d, err := v.host.Domain(ctx, id)
	if v.keep(number, id, d, err) {
		v.Saw(d)
		v.answered(id)
	}
	return d, unlessAstray(d, err)
}

// unlessAstray fails for a domain that libvirt is wrong about: who reads one is about to
// act on it, or to promise something.
func unlessAstray(d hypervisor.Domain, err error) error {
	if err == nil && d.Astray != nil {
		return &hypervisor.AstrayError{Domain: d}
	}
	return err
}

// answered notes that the QEMU of a domain does.
func (v *Inventory) answered(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.silent, id)
}

// keep takes what a reading brought into the picture, and says whether it is a domain.
// Of two readings that overlap, the one that began last counts. The reading has ended.
func (v *Inventory) keep(number uint64, id string, d hypervisor.Domain, err error) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	defer v.endReadingLocked()
	if number < max(v.newest, v.kept[id]) {
		return false
	}
	switch {
	case err == nil:
		v.domains[id], v.kept[id] = withSizes(d, v.domains[id]), number
		if d.State == hypervisor.Off {
			delete(v.silent, id)
		}
	case errors.Is(err, hypervisor.ErrNotFound):
		delete(v.domains, id)
		delete(v.silent, id)
		delete(v.resumed, id)
		v.wakeLocked(id) // there will be no event of it
		v.kept[id], v.gone = number, append(v.gone, id)
	case v.connected && errors.Is(err, hypervisor.ErrUnavailable) && !errors.Is(err, context.Canceled) &&
		!errors.Is(err, hypervisor.ErrQueued):
		v.silent[id] = true
	}
	return err == nil
}

func (v *Inventory) beginReading() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.begun++
	v.underWay++
	return v.begun
}

func (v *Inventory) endReading() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.endReadingLocked()
}

// endReadingLocked forgets which domains were not found, once no reading is under way
// that began before and could bring them back.
func (v *Inventory) endReadingLocked() {
	if v.underWay--; v.underWay > 0 {
		return
	}
	for _, id := range v.gone {
		if _, known := v.domains[id]; !known {
			delete(v.kept, id)
		}
	}
	v.gone = nil
}

// withSizes is a domain with the sizes of its disks as they were when they were last
// read. Snapshots do not change them.
func withSizes(d, before hypervisor.Domain) hypervisor.Domain {
	d.Disks, d.PersistentDisks = slices.Clone(d.Disks), slices.Clone(d.PersistentDisks)
	for _, disks := range [][]hypervisor.Disk{d.Disks, d.PersistentDisks} {
		for i := range disks {
			if disks[i].SizeBytes == 0 && disks[i].Path != "" {
				disks[i].SizeBytes = sizeBefore(disks[i], before)
			}
		}
	}
	return d
}

// sizeBefore is the size of a disk by its image, or by its name when it went over to another.
func sizeBefore(disk hypervisor.Disk, before hypervisor.Domain) int64 {
	for _, known := range before.Disks {
		if known.Path == disk.Path {
			return known.SizeBytes
		}
	}
	known, _ := before.Disk(disk.Target)
	return known.SizeBytes
}

// wellKnown reports whether the picture has the sizes of all disks of a domain, whose QEMU
// answered when it was last asked.
func (v *Inventory) wellKnown(id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return !v.silent[id] &&
		!slices.ContainsFunc(
			v.domains[id].Disks, func(disk hypervisor.Disk) bool { return disk.Path != "" && disk.SizeBytes == 0 },
		)
}

// lastKnown is a domain as it was when it last answered; of one that does not
// answer now the state is unknown.
func (v *Inventory) lastKnown(d hypervisor.Domain) hypervisor.Domain {
	if v.silent[d.ID] {
		d.State = hypervisor.Unknown
	}
	return d
}

// silentOnes are the domains that did not answer when they were last read.
func (v *Inventory) silentOnes() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Collect(maps.Keys(v.silent))
}
