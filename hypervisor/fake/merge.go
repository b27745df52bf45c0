package fake

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// mergeChunk is what a merge that is outrun copies, and the guest writes, from
// one call of MergeJob to the next.
const mergeChunk = 1 << 20

// job is a block job of one disk.
type job struct {
	hypervisor.Merge
	Ready   bool
	Foreign bool
	Polls   int // calls of MergeJob until it is ready
	Left    int // of them; negative: never by itself
	Total   int64
	// Outrun: the guest writes faster than the merge copies, so that it is not
	// ready before the guest is suspended.
	Outrun bool
}

// AllowMerge has nothing to allow: nothing confines the guests here.
func (h *Host) AllowMerge(ctx context.Context, id string, _ []string) error {
	return h.call(ctx, "AllowMerge", id, func(*domain) error { return nil })
}

// StartMerge begins to copy Top into Base. Half of it is in the base at once:
// from here on the base is not what it was.
func (h *Host) StartMerge(ctx context.Context, id string, m hypervisor.Merge) error {
	return h.call(ctx, "StartMerge", id, func(d *domain) error {
		disk, err := d.live(m.Target)
		if err != nil {
			return err
		}
		// One job per disk, as in QEMU.
		if _, busy := d.Jobs[m.Target]; busy {
			return fmt.Errorf("%w: %s has a block job", hypervisor.ErrBusy, m.Target)
		}
		span, err := span(disk, m)
		if err != nil {
			return err
		}
		// QEMU opens the base to write and would not get its lock.
		if err := h.unused(d.ID, m.Base); err != nil {
			return err
		}
		held, err := hold(unix.LOCK_EX, m.Base) // an export has it open
		if err != nil {
			return err
		}
		letGo(held)
		j := job{Merge: m, Polls: h.mergePolls(), Outrun: h.outrun()}
		if j.Left = j.Polls; j.Outrun && j.Left == 0 {
			j.Polls, j.Left = 1, 1
		}
		for _, l := range span[:len(span)-1] {
			upper, err := readLayer(l.Path, l.Format)
			if err != nil {
				return err
			}
			j.Total += upper.allocated()
		}
		// Half at once: a test that restores from the base after this point must fail.
		if err := copyDown(span, 1, 2); err != nil {
			return err
		}
		if d.Jobs == nil {
			d.Jobs = map[string]job{}
		}
		d.Jobs[m.Target] = j
		if j.Left == 0 {
			return d.finish(m.Target)
		}
		return nil
	})
}

// span returns the layers from Top to Base.
func span(disk *hypervisor.Disk, m hypervisor.Merge) ([]hypervisor.Layer, error) {
	chain, err := layers(disk)
	if err != nil {
		return nil, err
	}
	top := slices.IndexFunc(chain, func(l hypervisor.Layer) bool { return pathname.Same(l.Path, m.Top) })
	base := slices.IndexFunc(chain, func(l hypervisor.Layer) bool { return pathname.Same(l.Path, m.Base) })
	if top < 0 || base <= top || m.Active != (top == 0) {
		return nil, fmt.Errorf("%w: %s uses %v", hypervisor.ErrReplaced, m.Target, chain)
	}
	return chain[top : base+1], nil
}

// copyDown copies part/parts of every layer of span into the last one.
func copyDown(span []hypervisor.Layer, part, parts int) error {
	base := span[len(span)-1]
	for i := len(span) - 2; i >= 0; i-- {
		if err := mergeInto(span[i], base, part, parts); err != nil {
			return err
		}
	}
	return nil
}

// finish makes an active merge ready and ends a merge lower in the chain. An active
// merge then goes on mirroring writes until it is pivoted; in between the base alone is
// not the disk (FAULTS.md, fact 2).
func (d *domain) finish(target string) error {
	j := d.Jobs[target]
	d.tell(hypervisor.EventJob)
	if j.Active {
		j.Ready = true
		d.Jobs[target] = j
		return nil
	}
	disk, err := d.live(target)
	if err != nil {
		return err
	}
	span, err := span(disk, j.Merge)
	if err != nil {
		return err
	}
	// With all that was written to the lower layers meanwhile: nothing was, they are
	// frozen.
	if err := copyDown(span, 1, 1); err != nil {
		return err
	}
	delete(d.Jobs, target)
	if err := dropLayers(disk, j.Merge, true); err != nil {
		return err
	}
	if p, err := find(d.PersistentDisks, target); err == nil {
		if err := dropLayers(p, j.Merge, false); err != nil {
			return err
		}
	}
	return d.reopen()
}

// dropLayers takes what lies between the layer above Top and Base out of a
// stated chain, and out of the header above when asked.
func dropLayers(disk *hypervisor.Disk, m hypervisor.Merge, header bool) error {
	top := slices.IndexFunc(disk.Chain, func(l hypervisor.Layer) bool { return pathname.Same(l.Path, m.Top) })
	base := slices.IndexFunc(disk.Chain, func(l hypervisor.Layer) bool { return pathname.Same(l.Path, m.Base) })
	// A definition that states no chain has nothing to drop.
	if top < 0 || base < top {
		return nil
	}
	above := hypervisor.Layer{Path: disk.Path, Format: disk.Format}
	if top > 0 {
		above = disk.Chain[top-1]
	}
	format := disk.Chain[base].Format
	disk.Chain = slices.Delete(disk.Chain, top, base)
	if !header {
		return nil
	}
	return rebase(above.Path, above.Format, m.Base, format)
}

// MergeJob reads the job of one disk. While it is not ready its progress runs
// up to the full amount, which does not mean ready.
func (h *Host) MergeJob(ctx context.Context, id, target string) (hypervisor.Job, error) {
	var seen hypervisor.Job
	err := h.call(ctx, "MergeJob", id, func(d *domain) error {
		j, found, err := d.job(target)
		if err != nil || !found {
			return err
		}
		seen = hypervisor.Job{Found: true, Ready: j.Ready, Foreign: j.Foreign, Total: j.Total}
		switch {
		case j.Ready:
			seen.Done = j.Total
		// The total grows with what the guest dirties, as libvirt's "end" does.
		case j.Outrun && d.State == hypervisor.Running:
			j.Total += mergeChunk
			seen.Total, seen.Done = j.Total, j.Total/2
			d.Jobs[target] = j
		case j.Left > 0:
			j.Left--
			seen.Done = j.Total * int64(j.Polls-j.Left) / int64(j.Polls)
			d.Jobs[target] = j
			// This answer still is "not ready", with Done equal to Total (FAULTS.md,
			// row 16).
			if j.Left == 0 {
				return d.finish(target)
			}
		}
		return nil
	})
	if err != nil {
		return hypervisor.Job{}, err
	}
	return seen, nil
}

// job returns the job of a disk; a domain that is off has none.
func (d *domain) job(target string) (j job, found bool, err error) {
	if d.active() {
		_, err = d.live(target)
	}
	j, found = d.Jobs[target]
	return j, found, err
}

// SetMergeSpeed changes the limit of a running merge.
func (h *Host) SetMergeSpeed(ctx context.Context, id, target string, bytesPerSecond int64) error {
	return h.call(ctx, "SetMergeSpeed", id, func(d *domain) error {
		j, found, err := d.job(target)
		switch {
		case err != nil || !found:
			return err
		case j.Foreign:
			return fmt.Errorf("%w: the job is somebody else's", hypervisor.ErrBusy)
		}
		j.BytesPerSecond = bytesPerSecond
		d.Jobs[target] = j
		return nil
	})
}

// MergeSpeed is the limit of a running merge.
func (h *Host) MergeSpeed(id, target string) (bytesPerSecond int64, err error) {
	err = h.look(id, func(d *domain) error {
		j, found, err := d.job(target)
		if err == nil && !found {
			err = hypervisor.ErrNotFound
		}
		bytesPerSecond = j.BytesPerSecond
		return err
	})
	return bytesPerSecond, err
}

// Pivot makes the guest use the base of a ready merge.
func (h *Host) Pivot(ctx context.Context, id, target string) error {
	if err := h.pivot(ctx, id, target); err != nil {
		return fmt.Errorf("cannot pivot %s of domain %s: %w", target, id, err)
	}
	return nil
}

func (h *Host) pivot(ctx context.Context, id, target string) error {
	if err := h.reach(ctx, "Pivot.before", id); err != nil {
		return err
	}
	var top string
	var pivoted hypervisor.Disk
	err := h.update(id, func(d *domain) (err error) {
		top, pivoted, err = d.pivotLive(target)
		return err
	})
	if err != nil {
		return err
	}
	// libvirtd may die here: QEMU has pivoted and the definition on disk names the
	// overlay.
	if err := h.reach(ctx, "Pivot.half", id); err != nil {
		return err
	}
	err = h.update(id, func(d *domain) error {
		disk, err := find(d.PersistentDisks, target)
		// Defined again meanwhile: libvirt then leaves that definition alone.
		if errors.Is(err, hypervisor.ErrNotFound) || disk.Path != top {
			return nil
		}
		disk.Path, disk.Format = pivoted.Path, pivoted.Format
		disk.Chain, disk.ChainKnown = pivoted.Chain, true
		return nil
	})
	if err != nil {
		return err
	}
	return h.reach(ctx, "Pivot.after", id)
}

// pivotLive makes the guest use the base, and returns the image it used before
// and the disk as it is now.
func (d *domain) pivotLive(target string) (top string, pivoted hypervisor.Disk, err error) {
	fail := func(err error) (string, hypervisor.Disk, error) { return "", hypervisor.Disk{}, err }
	j, _, err := d.job(target)
	if err != nil {
		return fail(err)
	}
	if !j.Ready {
		return fail(hypervisor.ErrNotReady)
	}
	disk, err := d.live(target)
	if err != nil {
		return fail(err)
	}
	span, err := span(disk, j.Merge)
	if err != nil {
		return fail(err)
	}
	// Everything up to this moment, with what the guest wrote while the merge was ready.
	if err := copyDown(span, 1, 1); err != nil {
		return fail(err)
	}
	chain, err := layers(disk)
	if err != nil {
		return fail(err)
	}
	delete(d.Jobs, target)
	disk.Path, disk.Format = j.Base, span[len(span)-1].Format
	disk.Chain, disk.ChainKnown = chain[len(span):], true
	d.tell(hypervisor.EventJob)
	return span[0].Path, *disk, d.reopen()
}

// AbortMerge ends a job; what it wrote stays in the base. The overlay is whole; merging
// again gives the same contents.
func (h *Host) AbortMerge(ctx context.Context, id, target string) error {
	return h.call(ctx, "AbortMerge", id, func(d *domain) error {
		j, found, err := d.job(target)
		switch {
		case err != nil || !found:
			return err
		case j.Foreign:
			return fmt.Errorf("%w: the job is somebody else's", hypervisor.ErrBusy)
		}
		delete(d.Jobs, target)
		d.tell(hypervisor.EventJob)
		return nil
	})
}
