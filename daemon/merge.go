package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// mergePoll is how often progress is read while a merge copies; its end is an event.
const mergePoll = 500 * time.Millisecond

// mergeStall is how many times a job may vanish without result before it counts as failed.
const mergeStall = 5

// enterMerges waits for a place among the merges, once the VPS answers: one that
// hangs takes up no place. It returns the VPS as it is then.
func (d *Daemon) enterMerges(ctx context.Context, r *operation.Run) (hypervisor.Domain, error) {
	dom, err := d.inventory.sized(ctx, r.Op.VPS)
	if err != nil {
		return dom, err
	}
	waited, err := d.merges.acquire(ctx, r.Op.ID)
	if err != nil || !waited {
		return dom, err
	}
	return d.inventory.domain(ctx, r.Op.VPS)
}

// stayAtMerges is enterMerges for an operation that mostly has its place from a step
// before.
func (d *Daemon) stayAtMerges(ctx context.Context, r *operation.Run) error {
	if d.merges.holds(r.Op.ID) {
		return nil
	}
	dom, err := d.enterMerges(ctx, r)
	if err == nil && dom.MigratedAway {
		err = operation.Park(errMigrated(dom))
	}
	return err
}

// leaveWhenSilent gives the place to others when a step ended because the VPS,
// or libvirt, does not answer.
func (d *Daemon) leaveWhenSilent(r *operation.Run, err *error) {
	if unavailable(*err) {
		d.merges.release(r.Op.ID)
	}
}

// mergeSet is the disks whose overlays are to be merged, all in the same way.
type mergeSet struct {
	snap vps.Snapshot
	// active: the overlays are what the guest writes to. Otherwise they are
	// the middle layers that a replace leaves behind.
	active bool
	// merged says that a disk needs no merge any more.
	merged func(dom hypervisor.Domain, disk vps.SnapshotDisk) bool
	// next is whose overlays the next boot shall use, whoever defines the VPS
	// anew during the merge.
	next []vps.Snapshot
	// bandwidth limits the copying of each disk; 0: unlimited.
	bandwidth int64
}

// mergeRunning merges while QEMU runs. It returns done when every disk is
// merged or, for active overlays, ready to pivot; not done, and the VPS as it was
// read, when that is off.
// All merges begin before anything pivots: with AppArmor a pivot of one disk
// can take the right to write the next one's base away.
func (d *Daemon) mergeRunning(ctx context.Context, r *operation.Run, set mergeSet) (dom hypervisor.Domain, done bool, err error) {
	help := catchUp{d: d, r: r}
	for vanished := 0; ; {
		changed := d.inventory.changes(r.Op.VPS)
		if dom, err = d.inventory.domain(ctx, r.Op.VPS); err != nil {
			return dom, false, err
		}
		if dom.State == hypervisor.Off {
			return dom, false, nil
		}
		d.hasStarted(r.Op.VPS)
		for _, snap := range set.next {
			if _, err := d.repairDefinition(ctx, dom, snap); err != nil {
				return dom, false, err
			}
		}
		state, err := d.pushMerges(ctx, dom, set)
		switch {
		case errors.Is(err, hypervisor.ErrOff): // the next look sees it off
		case err != nil:
			return dom, false, err
		case state.waiting == 0:
			return dom, true, nil
		}
		r.Progress(state.done, state.total)
		if vanished += state.started; vanished > mergeStall*len(set.snap.Disks) {
			return dom, false, d.mergeFailed(ctx, r, set.snap)
		}
		if ready, err := help.look(ctx, dom, &set, state); ready || err != nil {
			return dom, ready, err
		}
		select {
		case <-ctx.Done():
			return dom, false, ctx.Err()
		case <-changed:
		case <-time.After(mergePoll):
		}
	}
}

type mergeState struct {
	waiting, started int
	done, total      int64
	// copied and left are of the disks that are waited for: a disk that is ready
	// goes on to copy what the guest writes.
	copied, left int64
	// rate is how much was copied per second while the guest stood still.
	rate float64
}

// pushMerges starts what does not run yet and tells how far everything is.
func (d *Daemon) pushMerges(ctx context.Context, dom hypervisor.Domain, set mergeSet) (mergeState, error) {
	var s mergeState
	for _, disk := range set.snap.Disks {
		if set.merged(dom, disk) {
			continue
		}
		if now, ok := diskOf(dom.Disks, disk.Target); set.active && (!ok || now.Path != disk.Overlay) {
			return s, operation.Park(vps.Errorf(vps.CodeVPSChanged, "disk %s of %s runs on another image than its overlay", disk.Target, dom.Name).
				WithRemedy("somebody changed the VPS's disks during the merge; compare virsh domblklist %s with the overlay, keep both files, then resume the operation", dom.Name).
				Because(fmt.Errorf("the overlay is %s", disk.Overlay)))
		}
		job, err := d.Config.Host.MergeJob(ctx, dom.ID, disk.Target)
		if err != nil {
			return s, err
		}
		switch {
		case job.Foreign:
			return s, fmt.Errorf("disk %s has a job that is not ours: %w", disk.Target, hypervisor.ErrBusy)
		case !job.Found:
			if err := d.checkClosed(ctx, dom, disk); err != nil {
				return s, err
			}
			if err := d.Config.Host.AllowMerge(ctx, dom.ID, bases(set.snap)); err != nil {
				return s, fmt.Errorf("merge of disk %s not allowed: %w", disk.Target, err)
			}
			m := hypervisor.Merge{Target: disk.Target, Top: disk.Overlay, Base: disk.Base, Active: set.active, BytesPerSecond: set.bandwidth}
			if err := d.Config.Host.StartMerge(ctx, dom.ID, m); err != nil {
				return s, fmt.Errorf("merge of disk %s not started: %w", disk.Target, err)
			}
			s.started++
			s.waiting++
		case !job.Ready || !set.active:
			s.waiting++
			s.copied += job.Done
			s.left += job.Total - job.Done
		}
		s.done += job.Done
		s.total += job.Total
	}
	return s, nil
}

// checkClosed refuses to let a running VPS write to a base that nobody closed, as when
// QEMU died in a merge: behind lazy refcounts it would give clusters away that are in
// use, because it repairs an image only when it opens it for writing at once.
func (d *Daemon) checkClosed(ctx context.Context, dom hypervisor.Domain, disk vps.SnapshotDisk) error {
	if disk.BaseFormat != "qcow2" {
		return nil
	}
	img, err := d.Config.Host.Inspect(ctx, disk.Base, disk.BaseFormat)
	if err != nil || !img.Dirty {
		return err
	}
	return operation.Park(vps.Errorf(vps.CodeVPSChanged, "the base of disk %s of %s was not closed by who last wrote to it, and cannot be merged into while the VPS runs", disk.Target, dom.Name).
		WithRemedy("shut %s down, then resume the operation: the merge repairs the base (its qcow2 header has the dirty flag), and goes on", dom.Name).
		Because(fmt.Errorf("the base is %s", disk.Base)))
}

// bases are what the merges of a snapshot write to.
func bases(snap vps.Snapshot) []string {
	var files []string
	for _, disk := range snap.Disks {
		files = append(files, disk.Base)
	}
	return files
}

// mergeFailed says why merges end without result, as far as the host tells. The
// overlays are whole, so the same can be asked for again; until then no job of
// another disk goes on without anybody to end it.
func (d *Daemon) mergeFailed(ctx context.Context, r *operation.Run, snap vps.Snapshot) error {
	for _, disk := range snap.Disks {
		if err := d.Config.Host.AbortMerge(ctx, r.Op.VPS, disk.Target); err != nil {
			return fmt.Errorf("merge of disk %s not ended: %w", disk.Target, err)
		}
	}
	for _, disk := range snap.Disks {
		if space, err := d.Config.Host.Space(ctx, filepath.Dir(disk.Base)); err == nil && space.Free < 16<<20 {
			return operation.Fail(d.noRoomToMerge(r.Op, disk, space.Free))
		}
	}
	return operation.Fail(vps.Errorf(vps.CodeInternal, "cannot %s of %s: QEMU gives the merge up each time it is begun", actions[r.Op.Kind], r.Op.VPSName).
		WithRemedy("the VPS's disks are whole; look into QEMU's log of the VPS for an I/O error, then ask for the deletion again"))
}

func (d *Daemon) noRoomToMerge(op vps.Operation, disk vps.SnapshotDisk, free int64) error {
	return vps.Errorf(vps.CodeInsufficientSpace, "cannot %s of %s: %d bytes are free for disk %s", actions[op.Kind], op.VPSName, free, disk.Target).
		WithRemedy("the VPS's disks are whole; free space on the host, then ask for the deletion again")
}

// mergeOff merges the overlays of a VPS that is off. ErrBusy means that somebody
// started it meanwhile.
func (d *Daemon) mergeOff(ctx context.Context, r *operation.Run, dom hypervisor.Domain, set mergeSet) error {
	if dom.ManagedSave {
		return operation.Park(vps.Errorf(vps.CodeVPSChanged, "the memory of %s was saved to disk during the merge; a start would put it on disks that are no longer there", dom.Name).
			WithRemedy("start %s, or drop the saved memory (virsh managedsave-remove %s), then resume the operation", dom.Name, dom.Name))
	}
	for i, disk := range set.snap.Disks {
		if set.merged(dom, disk) {
			continue
		}
		m := hypervisor.OfflineMerge{Overlay: disk.Overlay, Base: disk.Base, BaseFormat: disk.BaseFormat, BytesPerSecond: set.bandwidth}
		err := d.Config.Host.MergeOffline(ctx, m,
			func(done, total int64) { r.Progress(int64(i)*total+done, int64(len(set.snap.Disks))*total) })
		if errors.Is(err, hypervisor.ErrNoSpace) {
			space, _ := d.Config.Host.Space(ctx, filepath.Dir(disk.Base))
			return operation.Fail(d.noRoomToMerge(r.Op, disk, space.Free))
		}
		if err != nil {
			return fmt.Errorf("overlay of disk %s not merged: %w", disk.Target, err)
		}
	}
	return nil
}
