// Package merge copies the layers of disks down into their bases, while the VPS runs or
// with it off, and from the one to the other as the VPS goes on and off.
package merge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/guest"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/integrity"
	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/startlock"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// mergePoll is how often progress is read while a merge copies; its end is an event.
const mergePoll = 500 * time.Millisecond

// mergeStall is how many times a job may vanish without result before it counts as failed.
const mergeStall = 5

// Policy is what is done about merges.
type Policy struct {
	// Limit is how many may copy at the same time.
	Limit int
	// Bandwidth limits the copying of each disk, in bytes per second; 0: unlimited.
	Bandwidth int64
	// StalledAfter is how long a merge is watched before it counts as outpaced by its
	// guest, and how long it may make no headway before it is begun again; 0: for ever.
	StalledAfter time.Duration
	// Help lifts the limit of a merge that is outpaced, and stops its guest for moments.
	Help bool
	// LongestStop is how long a guest may be stopped at a time; 0: not at all.
	LongestStop time.Duration
}

// Merger merges the disks of one host's VPSes.
type Merger struct {
	host       hypervisor.Host
	inventory  *inventory.Inventory
	store      *store.Store
	operations *operation.Operations
	guests     *guest.Guests
	integrity  *integrity.Integrity
	stateDir   string // for the file by which hook and merge agree
	policy     func() Policy
	logger     *slog.Logger
	limiter    *limiter
	pivots     sync.Map // by VPS, the pivotState of a pivot that this process has begun
}

// New makes a merger. The place of an operation is free again when its run is over.
func New(
	host hypervisor.Host, inv *inventory.Inventory, db *store.Store, ops *operation.Operations, guests *guest.Guests,
	in *integrity.Integrity, stateDir string, policy func() Policy, logger *slog.Logger,
) *Merger {
	m := &Merger{host: host, inventory: inv, store: db, operations: ops, guests: guests,
		integrity: in, stateDir: stateDir, policy: policy, logger: logger, limiter: newLimiter(policy().Limit)}
	ops.OnEnded(func(op vps.Operation) {
		m.limiter.release(op.ID)
		m.pivots.Delete(op.VPS) // what must outlive an operation is in the record
		startlock.Forget(stateDir, op.VPS)
	})
	return m
}

// Apply takes up another limit. A merge that has its place keeps it.
func (m *Merger) Apply() { m.limiter.resize(m.policy().Limit) }

// Count tells how many merges copy, how many wait for their turn, and how many may copy.
func (m *Merger) Count() (running, waiting, limit int) { return m.limiter.count() }

// Bandwidth is the limit with which a merge begins.
func (m *Merger) Bandwidth() int64 { return m.policy().Bandwidth }

// LongestStop is how long a guest may be stopped at a time to help its merge.
func (m *Merger) LongestStop() time.Duration { return m.policy().LongestStop }

// Enter waits for a place among the merges, once the VPS answers: one that
// hangs takes up no place. It returns the VPS as it is then.
func (m *Merger) Enter(ctx context.Context, r *operation.Run) (hypervisor.Domain, error) {
	dom, err := m.inventory.ReadFull(ctx, r.Op.VPS)
	if err != nil {
		return dom, err
	}
	waited, err := m.limiter.acquire(ctx, r.Op.ID)
	if err != nil || !waited {
		return dom, err
	}
	return m.inventory.Read(ctx, r.Op.VPS)
}

// Stay is Enter for an operation that mostly has its place from a step
// before.
func (m *Merger) Stay(ctx context.Context, r *operation.Run) error {
	if m.limiter.holds(r.Op.ID) {
		return nil
	}
	dom, err := m.Enter(ctx, r)
	if err == nil && dom.MigratedAway {
		err = operation.Park(fault.Migrated(dom))
	}
	return err
}

// LeaveWhenSilent gives the place to others when a step ended because the VPS,
// or libvirt, does not answer.
func (m *Merger) LeaveWhenSilent(r *operation.Run, err *error) {
	if fault.Unavailable(*err) {
		m.limiter.release(r.Op.ID)
	}
}

// Set is the disks whose overlays are to be merged, all in the same way.
type Set struct {
	Snap vps.Snapshot
	// Active: the overlays are what the guest writes to. Otherwise they are
	// the middle layers that a replace leaves behind.
	Active bool
	// Merged reports whether a disk needs no merge any more.
	Merged func(dom hypervisor.Domain, disk vps.SnapshotDisk) bool
	// Next is whose overlays the next boot shall use, whoever defines the VPS
	// again during the merge.
	Next []vps.Snapshot
	// Bandwidth limits the copying of each disk; 0: unlimited.
	Bandwidth int64
}

// mergeRunning merges while QEMU runs. It returns done when every disk is
// merged or, for active overlays, ready to pivot; not done, and the VPS as it was
// read, when that is off.
// All merges begin before anything pivots: with AppArmor a pivot of one disk
// can take the right to write the next one's base away.
func (m *Merger) mergeRunning(ctx context.Context, r *operation.Run, set Set) (
	dom hypervisor.Domain, done bool, err error,
) {
	help := throttler{m: m, r: r}
	ahead := headway{m: m, r: r}
	vanished := 0
	err = m.inventory.Await(ctx, r.Op.VPS, mergePoll, func() (bool, error) {
		var err error
		if dom, err = m.inventory.Read(ctx, r.Op.VPS); err != nil {
			return false, err
		}
		if dom.State == hypervisor.Off {
			return true, nil
		}
		startlock.Forget(m.stateDir, r.Op.VPS)
		for _, snap := range set.Next {
			if _, err := m.integrity.RepairDefinition(ctx, dom, snap); err != nil {
				return false, err
			}
		}
		state, err := m.push(ctx, dom, set)
		switch {
		case errors.Is(err, hypervisor.ErrOff): // the next look sees it off
		case err != nil:
			return false, err
		case state.waiting == 0:
			done = true
			return true, nil
		}
		r.Progress(state.done, state.total)
		if vanished += state.started; vanished > mergeStall*len(set.Snap.Disks) {
			return false, m.failed(ctx, r, dom, set.Snap)
		}
		if err := ahead.look(ctx, dom, set, state); err != nil {
			return false, err
		}
		done, err = help.look(ctx, dom, &set, state)
		return done, err
	})
	return dom, done, err
}

// state is how far the merges of a set are.
type state struct {
	waiting, started int
	done, total      int64
	// copied and left are of the disks that are waited for: a disk that is ready
	// goes on to copy what the guest writes.
	copied, left int64
	// rate is how much was copied per second while the guest was suspended.
	rate float64
}

// push starts what does not run yet and tells how far everything is.
func (m *Merger) push(ctx context.Context, dom hypervisor.Domain, set Set) (state, error) {
	var s state
	for _, disk := range set.Snap.Disks {
		if set.Merged(dom, disk) {
			continue
		}
		if now, ok := image.Live(dom, disk); set.Active && (!ok || !now.Is(disk.Overlay)) {
			return s, operation.Park(
				vps.Errorf(vps.CodeVPSChanged, "disk %s of %s runs on another image than its overlay",
					disk.Target, dom.Name).
					WithRemedy("somebody changed the VPS's disks during the merge; compare virsh domblklist %s with "+
						"the overlay, keep both files, then resume the operation", dom.Name).
					Because(fmt.Errorf("the overlay is %s", disk.Overlay)),
			)
		}
		job, err := m.host.MergeJob(ctx, dom.ID, image.LiveName(dom, disk))
		if err != nil {
			return s, err
		}
		switch {
		case job.Foreign:
			return s, fmt.Errorf("disk %s has a job that is not ours: %w", disk.Target, hypervisor.ErrBusy)
		case !job.Found:
			if err := m.checkClosed(ctx, dom, disk); err != nil {
				return s, err
			}
			if err := m.host.AllowMerge(ctx, dom.ID, image.Bases(set.Snap)); err != nil {
				return s, fmt.Errorf("merge of disk %s not allowed: %w", disk.Target, err)
			}
			begin := hypervisor.Merge{
				Target:         image.LiveName(dom, disk),
				Top:            disk.Overlay,
				Base:           disk.Base,
				Active:         set.Active,
				BytesPerSecond: set.Bandwidth,
			}
			if err := m.host.StartMerge(ctx, dom.ID, begin); err != nil {
				return s, fmt.Errorf("merge of disk %s not started: %w", disk.Target, err)
			}
			s.started++
			s.waiting++
		case !job.Ready || !set.Active:
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
func (m *Merger) checkClosed(ctx context.Context, dom hypervisor.Domain, disk vps.SnapshotDisk) error {
	if disk.BaseFormat != "qcow2" {
		return nil
	}
	img, err := m.host.Inspect(ctx, disk.Base, disk.BaseFormat)
	if err != nil || !img.Dirty {
		return err
	}
	return operation.Park(
		vps.Errorf(vps.CodeVPSChanged,
			"the base of disk %s of %s was not closed by who last wrote to it, and cannot be merged into while the "+
				"VPS runs", disk.Target, dom.Name).
			WithRemedy("shut %s down, then resume the operation: the merge repairs the base (its qcow2 header has "+
				"the dirty flag), and goes on", dom.Name).
			Because(fmt.Errorf("the base is %s", disk.Base)),
	)
}

// failed says why merges end without result, as far as the host tells. The
// overlays are whole, so the same can be asked for again; until then no job of
// another disk goes on without anybody to end it.
func (m *Merger) failed(ctx context.Context, r *operation.Run, dom hypervisor.Domain, snap vps.Snapshot) error {
	for _, disk := range snap.Disks {
		if err := m.host.AbortMerge(ctx, r.Op.VPS, image.LiveName(dom, disk)); err != nil {
			return fmt.Errorf("merge of disk %s not ended: %w", disk.Target, err)
		}
	}
	for _, disk := range snap.Disks {
		if space, err := m.host.Space(ctx, filepath.Dir(disk.Base)); err == nil && space.Free < 16<<20 {
			return operation.Fail(m.noRoom(r.Op, disk, space.Free))
		}
	}
	return operation.Fail(
		vps.Errorf(vps.CodeInternal, "cannot %s of %s: QEMU gives the merge up each time it is begun",
			m.operations.Of(r.Op.Kind).Verb, r.Op.VPSName).
			WithRemedy("the VPS's disks are whole; look into QEMU's log of the VPS for an I/O error, then ask for " +
				"the deletion again"),
	)
}

func (m *Merger) noRoom(op vps.Operation, disk vps.SnapshotDisk, free int64) error {
	return vps.Errorf(vps.CodeInsufficientSpace, "cannot %s of %s: %d bytes are free for disk %s",
		m.operations.Of(op.Kind).Verb, op.VPSName, free, disk.Target).
		WithRemedy("the VPS's disks are whole; free space on the host, then ask for the deletion again")
}

// Off merges the overlays of a VPS that is off. ErrBusy means that somebody
// started it meanwhile.
func (m *Merger) Off(ctx context.Context, r *operation.Run, dom hypervisor.Domain, set Set) error {
	if dom.ManagedSave {
		return operation.Park(
			vps.Errorf(vps.CodeVPSChanged,
				"the memory of %s was saved to disk during the merge; a start would put it on disks that are no "+
					"longer there", dom.Name).
				WithRemedy("start %s, or drop the saved memory (virsh managedsave-remove %s), "+
					"then resume the operation",
					dom.Name, dom.Name),
		)
	}
	for i, disk := range set.Snap.Disks {
		if set.Merged(dom, disk) {
			continue
		}
		what := hypervisor.OfflineMerge{
			Overlay:        disk.Overlay,
			Base:           disk.Base,
			BaseFormat:     disk.BaseFormat,
			BytesPerSecond: set.Bandwidth,
		}
		err := m.host.MergeOffline(ctx, what,
			func(done, total int64) { r.Progress(int64(i)*total+done, int64(len(set.Snap.Disks))*total) })
		if errors.Is(err, hypervisor.ErrNoSpace) {
			space, _ := m.host.Space(ctx, filepath.Dir(disk.Base))
			return operation.Fail(m.noRoom(r.Op, disk, space.Free))
		}
		if err != nil {
			return fmt.Errorf("overlay of disk %s not merged: %w", disk.Target, err)
		}
	}
	return nil
}

// Merge merges while QEMU runs, or with the VPS off as off does it, and
// goes from the one to the other as the VPS does.
func (m *Merger) Merge(
	ctx context.Context, r *operation.Run, set Set, off func(context.Context, hypervisor.Domain) error,
) error {
	for {
		dom, done, err := m.mergeRunning(ctx, r, set)
		if done || err != nil {
			return err
		}
		if dom.MigratedAway {
			return operation.Park(fault.Migrated(dom))
		}
		err = startlock.Hold(ctx, m.stateDir, r.Op.VPS, func(ctx context.Context) error { return off(ctx, dom) })
		if !errors.Is(err, startlock.ErrStarting) {
			return err
		}
		m.logger.Info("merge makes way for the VPS, which is being started", "operation", r.Op.ID, "vps", r.Op.VPSName)
		if err := m.awaitStart(ctx, r.Op.VPS); err != nil {
			return err
		}
	}
}

// awaitStart returns when the VPS is on, or has had time enough for it.
func (m *Merger) awaitStart(ctx context.Context, id string) error {
	late, cancel := context.WithTimeout(ctx, startlock.StartWait)
	defer cancel()
	err := m.inventory.Await(late, id, 0, func() (bool, error) {
		dom, err := m.inventory.Read(ctx, id)
		return dom.State != hypervisor.Off, err
	})
	if late.Err() != nil && ctx.Err() == nil {
		return nil
	}
	return err
}
