package libvirt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// StartMerge begins a block commit. Never with the DELETE flag: libvirt then
// unlinks the overlay before it has saved the definition.
func (h *Host) StartMerge(ctx context.Context, id string, m hypervisor.Merge) error {
	return do(ctx, h, ordinary, "start the merge of "+m.Target+" of", id, func(d *libvirt.Domain) error {
		if active, err := d.IsActive(); err != nil || !active {
			return orOff(err)
		}
		live, err := readDefinition(d, 0)
		if err != nil {
			return err
		}
		top, base, flags, err := commitArguments(live, m)
		if err != nil {
			return err
		}
		if m.Active {
			h.stateBase(d, live, m)
		}
		// Bytes per second, as the flags say; 0 is no limit.
		err = d.BlockCommit(m.Target, base, top, uint64(max(0, m.BytesPerSecond)), flags)
		if err == nil {
			return nil
		}
		// For a second job on a disk libvirt has several codes, of other meanings too.
		if job, e := readJob(d, m.Target); e == nil && job.Found {
			return fmt.Errorf("%w: %w", hypervisor.ErrBusy, err)
		}
		return err
	})
}

// stateBase has the next boot's definition state the base of a merge that will pivot. To one
// that states nothing below the overlay libvirt gives, at the pivot, the chain of the running
// guest, which nobody had stated. Where it cannot be saved, that is all that comes of it.
func (h *Host) stateBase(d *libvirt.Domain, live *definition, m hypervisor.Merge) {
	persistent, err := d.IsPersistent()
	if err != nil || !persistent {
		return
	}
	next, err := readDefinition(d, secureInactive)
	base := find(live.disk(m.Target).SelectElement("backingStore"), m.Base)
	if err == nil && base != nil && next.stateBase(m, attr(base, "format", "type")) {
		err = h.define(d, next)
	}
	if err != nil {
		h.log.Warn("the definition will state the chain of the running guest", "error", err)
	}
}

// commitArguments checks the layers against what the guest uses, lest a caller
// with old knowledge merges another layer than it means.
func commitArguments(
	live *definition, m hypervisor.Merge,
) (top, base string, flags libvirt.DomainBlockCommitFlags, err error) {
	// Of the live definition: what the guest uses now, whatever the next boot will use.
	layers, err := live.layers(m.Target)
	if err != nil {
		return "", "", 0, err
	}
	find := func(path string) int {
		return slices.IndexFunc(layers, func(l layer) bool { return pathname.Same(l.path, path) })
	}
	from, to := find(m.Top), find(m.Base)
	// The image that the guest writes to is merged as active, and no other is.
	if from < 0 || to <= from || m.Active != (from == 0) {
		return "", "", 0, fmt.Errorf("%w: %s uses %q", hypervisor.ErrReplaced, m.Target, layers)
	}
	flags = libvirt.DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES
	if m.Active {
		flags |= libvirt.DOMAIN_BLOCK_COMMIT_ACTIVE
	}
	return layers[from].name, layers[to].name, flags, nil
}

// MergeJob reads the job of one disk.
func (h *Host) MergeJob(ctx context.Context, id, target string) (hypervisor.Job, error) {
	job, err := on(ctx, h, ordinary, id, func(d *libvirt.Domain) (hypervisor.Job, error) { return readJob(d, target) })
	if err != nil {
		return hypervisor.Job{}, fmt.Errorf("cannot read the merge of %s of domain %s: %w", target, id, err)
	}
	return job, nil
}

// readJob reads the job of a disk. Only <mirror ready='yes'> tells that it can
// be pivoted: the numbers are equal at other times too.
func readJob(d *libvirt.Domain, target string) (hypervisor.Job, error) {
	if active, err := d.IsActive(); err != nil || !active {
		return hypervisor.Job{}, err
	}
	live, err := readDefinition(d, 0)
	if err != nil {
		return hypervisor.Job{}, err
	}
	disk := live.disk(target)
	if disk == nil {
		return hypervisor.Job{}, fmt.Errorf("%w: %s", hypervisor.ErrNotFound, target)
	}
	// After the XML: a job that became ready in between is ready at the next look.
	info, err := d.GetBlockJobInfo(target, 0)
	if err != nil {
		if active, e := d.IsActive(); e == nil && !active {
			return hypervisor.Job{}, nil
		}
		return hypervisor.Job{}, err
	}
	if info.Type == libvirt.DOMAIN_BLOCK_JOB_TYPE_UNKNOWN {
		return hypervisor.Job{}, nil
	}
	job := hypervisor.Job{Found: true, Done: int64(min(info.Cur, info.End)), Total: int64(info.End)}
	switch info.Type {
	// A middle layer's merge ends by itself; it is never ready, and then not found.
	case libvirt.DOMAIN_BLOCK_JOB_TYPE_COMMIT:
	case libvirt.DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT:
		if job.Ready = attr(disk, "mirror", "ready") == "yes"; disk.SelectElement("mirror") == nil {
			lost, err := lostMerge(d, target)
			if err != nil && !errors.Is(err, hypervisor.ErrNotReady) {
				return hypervisor.Job{}, err
			}
			job.Ready, job.Lost = lost.ready(), true
		}
	default:
		job.Foreign = true
	}
	return job, nil
}

// SetMergeSpeed changes the limit of a running merge.
func (h *Host) SetMergeSpeed(ctx context.Context, id, target string, bytesPerSecond int64) error {
	return do(ctx, h, ordinary, "set the speed of the merge of "+target+" of", id, func(d *libvirt.Domain) error {
		return onMerge(d, target, func() error {
			return d.BlockJobSetSpeed(
				target, uint64(max(0, bytesPerSecond)), libvirt.DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES,
			)
		})
	})
}

// onMerge does something to a disk's merge. That there is none, or that it ended
// meanwhile by itself, is no error.
func onMerge(d *libvirt.Domain, target string, act func() error) error {
	job, err := readJob(d, target)
	switch {
	case err != nil || !job.Found:
		return err
	case job.Foreign:
		return fmt.Errorf("%w: the job is somebody else's", hypervisor.ErrBusy)
	}
	if err = act(); err == nil {
		return nil
	}
	// Ended between the look and the act: what was wanted has come about otherwise.
	if job, e := readJob(d, target); e == nil && !job.Found {
		return nil
	}
	return err
}

// Pivot makes the guest use the base of a merge that is ready.
func (h *Host) Pivot(ctx context.Context, id, target string) error {
	return do(ctx, h, ordinary, "pivot "+target+" of", id, func(d *libvirt.Domain) error {
		job, err := readJob(d, target)
		if err != nil {
			return err
		}
		// cur==end is not enough (FAULTS.md, row 16; libvirt's bugs 1376580, 1442266).
		if !job.Ready {
			return hypervisor.ErrNotReady
		}
		if job.Lost {
			return pivotLost(d, target)
		}
		// A pivot that fails leaves the job as it was, ready to be tried again.
		err = d.BlockJobAbort(target, libvirt.DOMAIN_BLOCK_JOB_ABORT_PIVOT)
		if hasCode(err, libvirt.ERR_BLOCK_COPY_ACTIVE) {
			return fmt.Errorf("%w: %w", hypervisor.ErrNotReady, err)
		}
		return err
	})
}

// lostPivotWait is how long libvirt may take to write down the end of a job.
const lostPivotWait = 10 * time.Second

// pivotLost has QEMU pivot where libvirt does not know that it could. When the job ends
// libvirt looks at what it was, and writes down the pivot all the same.
func pivotLost(d *libvirt.Domain, target string) error {
	job, err := lostMerge(d, target)
	if err != nil {
		return err
	}
	if err := ask(d, "job-complete", map[string]any{"id": job.ID}, nil); err != nil {
		return err
	}
	for until := time.Now().Add(lostPivotWait); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if job, err := readJob(d, target); err != nil || !job.Found {
			return err
		}
	}
	return fmt.Errorf("%w: libvirt has not written the pivot down yet", hypervisor.ErrUnavailable)
}

// AbortMerge ends a merge; the guest stays on the overlay.
func (h *Host) AbortMerge(ctx context.Context, id, target string) error {
	return do(ctx, h, ordinary, "abort the merge of "+target+" of", id, func(d *libvirt.Domain) error {
		job, err := readJob(d, target)
		if err == nil && job.Lost {
			// libvirt 9.0 dies of it, whoever ends the job, if it is not by a pivot.
			return fmt.Errorf("%w: libvirt lost track of the job when it died; it can only be pivoted", hypervisor.ErrBusy)
		}
		if err != nil {
			return err
		}
		return onMerge(d, target, func() error { return d.BlockJobAbort(target, 0) })
	})
}

// orOff is err, or what to say of a domain that is off.
func orOff(err error) error {
	if err != nil {
		return err
	}
	return hypervisor.ErrOff
}
