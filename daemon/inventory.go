package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// inventory is the last known picture of the host's domains, kept by events so
// that reading it costs libvirt nothing. Before the host is changed, or a
// promise about it is made, the domain is read anew instead.
type inventory struct {
	host   hypervisor.Host
	logger *slog.Logger
	// seen is told of every domain that was read.
	seen func(...hypervisor.Domain)

	mu        sync.Mutex
	connected bool
	read      bool // everything was read since the connection
	domains   map[string]hypervisor.Domain
	silent    map[string]bool          // of which the last reading got no answer
	losses    int                      // how often the connection was lost
	resumed   map[string]int           // how often each domain's processors began to run
	changed   map[string]chan struct{} // by domain, who waits for its next event
	next      map[string]chan struct{} // by domain, who waits for the next refresh
	begun     uint64                   // how many readings were begun
	newest    uint64                   // the number of the last reading of all domains
	kept      map[string]uint64        // by domain, the number of a newer one of it alone

	refreshing keyedMutex
}

func newInventory(h hypervisor.Host, l *slog.Logger, seen func(...hypervisor.Domain)) *inventory {
	return &inventory{
		host: h, logger: l, seen: seen, domains: map[string]hypervisor.Domain{}, silent: map[string]bool{}, resumed: map[string]int{},
		changed: map[string]chan struct{}{}, next: map[string]chan struct{}{}, kept: map[string]uint64{},
	}
}

// reload reads every domain. What was read when the connection was lost
// meanwhile counts for nothing.
func (v *inventory) reload(ctx context.Context) error {
	losses, number := v.timesLost(), v.beginReading()
	all, err := v.host.List(ctx)
	if err != nil {
		return err
	}
	v.seen(all...)
	domains := make(map[string]hypervisor.Domain, len(all))
	for _, d := range all {
		domains[d.ID] = d
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.losses != losses {
		return fmt.Errorf("%w: the connection was lost meanwhile", hypervisor.ErrUnavailable)
	}
	for id, newer := range v.kept {
		if newer < number {
			delete(v.kept, id)
		} else if d, known := v.domains[id]; known {
			domains[id] = d
		} else {
			delete(domains, id)
		}
	}
	v.domains, v.newest, v.connected, v.read = domains, number, true, true
	clear(v.silent)
	v.wakeAllLocked()
	return nil
}

func (v *inventory) timesLost() int {
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

// refreshSoon is refresh, unless somebody reads the domain in the next moment anyway:
// a deletion makes a dozen events, and reads the domain after most of them.
func (v *inventory) refreshSoon(ctx context.Context, id string, lag time.Duration) {
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
		v.refresh(ctx, id)
	}
}

// refresh reads one domain and keeps it; errors leave the picture as it was,
// but a domain that is gone is forgotten. Who asks while one reading is under way
// and the next has not begun is served by the next: on a busy host events come
// faster than the answers.
func (v *inventory) refresh(ctx context.Context, id string) {
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
	release, err := v.refreshing.acquire(ctx, id)
	v.mu.Lock()
	delete(v.next, id) // from here on an event may be newer than what is read
	v.mu.Unlock()
	if err != nil {
		return
	}
	defer release()
	_, err = v.domain(ctx, id)
	if err == nil && !v.wellKnown(id) {
		_, err = v.sized(ctx, id)
	}
	if err != nil && vps.CodeOf(err) != vps.CodeNotFound && ctx.Err() == nil {
		v.logger.Debug("domain not read", "vps", id, "error", err)
	}
}

// domain reads one domain anew, without the sizes of its disks. It wakes nobody: who
// waits for a change reads the domain himself, and would wake himself without end.
func (v *inventory) domain(ctx context.Context, id string) (hypervisor.Domain, error) {
	number := v.beginReading()
	d, err := v.host.Glance(ctx, id)
	if v.keep(number, id, d, err) {
		v.seen(d)
	}
	return d, err
}

// sized reads one domain anew with the sizes, which its QEMU must answer.
func (v *inventory) sized(ctx context.Context, id string) (hypervisor.Domain, error) {
	number := v.beginReading()
	d, err := v.host.Domain(ctx, id)
	if v.keep(number, id, d, err) {
		v.seen(d)
		v.answered(id)
	}
	return d, err
}

// answered notes that the QEMU of a domain does.
func (v *inventory) answered(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.silent, id)
}

// keep takes what a reading brought into the picture, and says whether it is a domain.
// Of two readings that overlap, the one that began last counts.
func (v *inventory) keep(number uint64, id string, d hypervisor.Domain, err error) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
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
		v.kept[id] = number
	case v.connected && errors.Is(err, hypervisor.ErrUnavailable) && !errors.Is(err, context.Canceled):
		v.silent[id] = true
	}
	return err == nil
}

func (v *inventory) beginReading() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.begun++
	return v.begun
}

// withSizes is a domain with the sizes of its disks as they were when they were last
// read. Snapshots do not change them.
func withSizes(d, before hypervisor.Domain) hypervisor.Domain {
	d.Disks, d.PersistentDisks = slices.Clone(d.Disks), slices.Clone(d.PersistentDisks)
	for _, disks := range [][]hypervisor.Disk{d.Disks, d.PersistentDisks} {
		for i := range disks {
			if known, ok := diskOf(before.Disks, disks[i].Target); ok && disks[i].SizeBytes == 0 && disks[i].Path != "" {
				disks[i].SizeBytes = known.SizeBytes
			}
		}
	}
	return d
}

// wellKnown says whether the picture has the sizes of all disks of a domain, whose QEMU
// answered when it was last asked.
func (v *inventory) wellKnown(id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return !v.silent[id] && !slices.ContainsFunc(v.domains[id].Disks, func(disk hypervisor.Disk) bool { return disk.Path != "" && disk.SizeBytes == 0 })
}

// lastKnown is a domain as it was when it last answered; of one that does not
// answer now the state is unknown.
func (v *inventory) lastKnown(d hypervisor.Domain) hypervisor.Domain {
	if v.silent[d.ID] {
		d.State = hypervisor.Unknown
	}
	return d
}

// silentOnes are the domains that did not answer when they were last read.
func (v *inventory) silentOnes() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Collect(maps.Keys(v.silent))
}

// note keeps what an event says.
func (v *inventory) note(e hypervisor.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch e.Kind {
	case hypervisor.EventDisconnected:
		v.connected, v.read = false, false
		v.losses++
	case hypervisor.EventResumed:
		v.resumed[e.Domain]++
	}
	if e.Domain == "" {
		v.wakeAllLocked()
		return
	}
	v.wakeLocked(e.Domain)
}

// changes returns a channel that is closed at the next event of a domain, or of the
// connection, or when all was read; with "" only at the latter two. The events of
// others wake nobody: a hundred operations at once, each of which reads its domain
// when it is woken, read each domain a hundred times.
func (v *inventory) changes(id string) <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.changed[id] == nil {
		v.changed[id] = make(chan struct{})
	}
	return v.changed[id]
}

func (v *inventory) wakeLocked(id string) {
	if ch := v.changed[id]; ch != nil {
		close(ch)
		delete(v.changed, id)
	}
}

func (v *inventory) wakeAllLocked() {
	for id := range v.changed {
		v.wakeLocked(id)
	}
}

// ready says whether the host was read since it was last connected.
func (v *inventory) ready() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.connected && v.read
}

// timesResumed counts how often a domain's processors began to run.
func (v *inventory) timesResumed(id string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.resumed[id]
}

// eventLag is how far events may be behind what is read of a domain.
const eventLag = 500 * time.Millisecond

// resumedSince says whether a domain was resumed since it had been so many times.
func (v *inventory) resumedSince(ctx context.Context, id string, times int) bool {
	late := time.NewTimer(eventLag)
	defer late.Stop()
	for {
		changed := v.changes(id)
		if v.timesResumed(id) != times {
			return true
		}
		select {
		case <-changed:
		case <-late.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// all returns every domain, by name.
func (v *inventory) all() []hypervisor.Domain {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := slices.SortedFunc(maps.Values(v.domains), func(a, b hypervisor.Domain) int {
		return strings.Compare(a.Name, b.Name)
	})
	for i, d := range all {
		all[i] = v.lastKnown(d)
	}
	return all
}

// each shows every domain, in no order, without a copy: see must not wait, nor keep
// or change what it is shown.
func (v *inventory) each(see func(*hypervisor.Domain)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var d hypervisor.Domain // one for all: in the loop, see would make each a new one
	for _, d = range v.domains {
		see(&d)
	}
}

// find returns the domain with this UUID, else the one with this name. The
// UUID wins: a name may be given away again. Of two with one name, the one that was
// read last has it: the other is gone, or has another now.
func (v *inventory) find(ref string) (hypervisor.Domain, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	found, known := v.domains[strings.ToLower(ref)]
	if known {
		return v.lastKnown(found), true
	}
	for _, d := range v.domains {
		if d.Name == ref && (!known || v.kept[d.ID] > v.kept[found.ID]) {
			found, known = d, true
		}
	}
	return v.lastKnown(found), known
}
