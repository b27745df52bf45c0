package snapshot

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/startlock"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// pivot makes the running guest use the bases. For each disk the guest is suspended from
// before the pivot until it is on record, for the last until "resume": with nothing
// written in between, overlay and base are equal whatever dies.
func (s deleter) pivot(ctx context.Context, r *operation.Run) (err error) {
	defer s.merger.LeaveWhenSilent(r, &err)
	snap, dom, err := s.recordAndDomain(ctx, r)
	if err != nil {
		return err
	}
	// Nothing to pivot then, but which disks have pivoted before it went off must be
	// found out.
	if dom.State == hypervisor.Off {
		return s.pivotedOff(ctx, r, dom, snap)
	}
	if !dom.Persistent {
		// Before the guest is suspended: it could not be let go again.
		return operation.Park(
			vps.Errorf(vps.CodeVPSChanged,
				"%s is not persistent any more: there is no definition that could name its merged disks", dom.Name).
				WithRemedy("define %s again (virsh define), then resume the operation", dom.Name),
		)
	}
	until, err := s.stopUntil(ctx, r)
	if err != nil {
		return err
	}
	for i := range snap.Disks {
		err := s.suspendForPivot(ctx, r)
		if err == nil {
			err = s.pivotDisk(ctx, r, snap, i)
		}
		if err == nil && i < len(snap.Disks)-1 {
			err = s.betweenPivots(ctx, r, snap, until)
		}
		if errors.Is(err, errRedefined) {
			return errDefinedAnew(dom, snap.Disks[i])
		}
		if err == nil {
			continue
		}
		// Going off ends the jobs; that is no failure of the pivot.
		if now, e := s.inventory.Read(ctx, r.Op.VPS); e == nil && now.State == hypervisor.Off {
			return s.pivotedOff(ctx, r, now, snap)
		}
		return s.pivotLater(ctx, r, err)
	}
	return nil
}

// errRedefined: the definition names a base that no pivot of ours put there.
var errRedefined = errors.New("the VPS was defined anew")

// redefined reports whether somebody defined the VPS again, which wipes our metadata.
// The merge sees to it that there is some: a base that a definition names
// without it may lack what the guest wrote last.
func redefined(dom hypervisor.Domain) bool { return dom.Metadata == "" }

// errDefinedAnew leaves the choice to an operator: the definition names the base although
// the overlay is newer, and only a person knows whether the VPS ran like that.
func errDefinedAnew(dom hypervisor.Domain, disk vps.SnapshotDisk) error {
	return operation.Park(
		vps.Errorf(vps.CodeVPSChanged, "%s was defined anew with the base of disk %s before the merge had ended",
			dom.Name, disk.Target).
			WithRemedy("if %s was not started since, its newest data is in the overlay: point disk %s at it (virsh "+
				"edit %s), then resume the operation; else keep both files and compare them first",
				dom.Name, disk.Target, dom.Name).
			Because(fmt.Errorf("base %s, overlay %s", disk.Base, disk.Overlay)),
	)
}

// stopUntil is until when a guest that was stopped to let its merges become ready may stay
// so for the pivots: one that writes faster than they copy would outpace the rest again.
func (s deleter) stopUntil(ctx context.Context, r *operation.Run) (time.Time, error) {
	stopped, err := s.store.Owes(ctx, r.Op.VPS, store.DebtResume)
	if err != nil || !stopped {
		return time.Time{}, err
	}
	return time.Now().Add(s.merger.LongestStop()), nil
}

// suspendForPivot stops a running guest: suspended, overlay and base were equal in 20 of
// 20 kills (FAULTS.md, fact 4). One that was stopped to let the merge become ready is
// suspended already. The debt to resume it is on record before it is suspended.
func (s deleter) suspendForPivot(ctx context.Context, r *operation.Run) error {
	dom, err := s.inventory.Read(ctx, r.Op.VPS)
	if err != nil || dom.State != hypervisor.Running {
		return err
	}
	return s.guests.Suspend(ctx, r)
}

// breath is how long a guest runs between two pauses: long enough to answer its clients.
const breath = 100 * time.Millisecond

// betweenPivots lets the guest run before its next disk pivots: the pauses of many disks
// would add up to one that its clients notice (FAULTS row 42).
func (s deleter) betweenPivots(ctx context.Context, r *operation.Run, snap vps.Snapshot, until time.Time) error {
	if !time.Now().Before(until) {
		if err := s.resumeAfterPivot(ctx, r); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(breath):
		}
	}
	// With AppArmor the pivot may have taken the next base away.
	return s.host.AllowMerge(ctx, r.Op.VPS, image.Bases(snap))
}

// pivotReadyWait is how long a suspended guest may wait for a merge to become
// ready again: with the guest still, only what was in flight is left to copy.
const pivotReadyWait = 2 * time.Second

// pivotDisk pivots one disk, unless it has pivoted, and records it at once. A
// guest that somebody let run meanwhile is not pivoted: overlay and base would
// not be equal.
func (s deleter) pivotDisk(ctx context.Context, r *operation.Run, snap vps.Snapshot, i int) error {
	disk := snap.Disks[i]
	if disk.Pivoted {
		return nil
	}
	ours, until := false, time.Now().Add(pivotReadyWait)
	// The events of libvirt wake it; 50 ms is for those that are lost with a connection.
	return s.inventory.Await(ctx, r.Op.VPS, 50*time.Millisecond, func() (bool, error) {
		for {
			pivoted, again, err := s.tryPivot(ctx, r, snap, i, ours)
			ours = ours || again
			if !again && errors.Is(err, hypervisor.ErrNotReady) && !time.Now().After(until) {
				return false, nil
			}
			if pivoted || err != nil {
				return true, err
			}
		}
	})
}

// tryPivot looks at one disk and pivots it, if it has not. again: it was pivoted just
// now, and is to be looked at again, to see that the live definition names the base.
func (s deleter) tryPivot(
	ctx context.Context, r *operation.Run, snap vps.Snapshot, i int, ours bool,
) (pivoted, again bool, err error) {
	disk := snap.Disks[i]
	// Read before the domain: a resume that comes after this line is counted as one
	// during the pivot.
	resumed, lost := s.inventory.TimesResumed(r.Op.VPS), s.inventory.TimesLost()
	dom, err := s.inventory.Read(ctx, r.Op.VPS)
	if err != nil {
		return false, false, err
	}
	now, ok := image.Live(dom, disk)
	switch {
	case dom.State == hypervisor.Off:
		return false, false, hypervisor.ErrOff
	case ok && now.Is(disk.Base) && !ours && redefined(dom):
		return false, false, errRedefined
	// The live definition is the witness, not the answer of the pivot call: libvirtd may
	// die within it.
	case ok && now.Is(disk.Base): // by this or an earlier try
		snap.Disks[i].Pivoted, snap.UpdatedAt = true, s.store.Now()
		return true, false, r.Record(ctx, func(tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	// Pivoted while it runs, it would write to the base alone, and a kill before the
	// record would lose that.
	case dom.State == hypervisor.Running:
		return false, false, fmt.Errorf(
			"disk %s not pivoted: somebody let the guest run: %w", disk.Target, hypervisor.ErrBusy,
		)
	}
	if err := s.markPivot(ctx, r, disk, resumed, lost); err != nil {
		return false, false, err
	}
	if err := s.host.Pivot(ctx, dom.ID, image.LiveName(dom, disk)); err != nil {
		return false, false, fmt.Errorf("disk %s not pivoted: %w", disk.Target, err)
	}
	return false, true, nil
}

// pivotLater lets the guest run again, each disk on the side it is on, and goes
// back to merging.
func (s deleter) pivotLater(ctx context.Context, r *operation.Run, cause error) error {
	// A guest is never left suspended while a failed pivot waits for its next try.
	err := s.guests.Resume(ctx, r.Op.VPS)
	if fault.Unavailable(cause) {
		return cause // nothing is known; the next try reads the host, still within this step
	}
	if err != nil {
		return err
	}
	return operation.Back("merge", cause)
}

// pivotedOff goes on with a VPS that is off. If it went off between pivots, the
// definition's choice of each disk holds: the guest was suspended, so that overlay
// and base were equal.
func (s deleter) pivotedOff(ctx context.Context, r *operation.Run, dom hypervisor.Domain, snap vps.Snapshot) error {
	var notes deleteNotes
	if err := r.Plan(&notes); err != nil {
		return err
	}
	if err := s.checkNotRunInPivot(ctx, r, dom, snap); err != nil {
		return err
	}
	for i, disk := range snap.Disks {
		now, ok := image.Next(dom, disk)
		// Merged off, a disk that names its base was merged completely before; "settle"
		// decides about it.
		if !ok || disk.Pivoted || !now.Is(disk.Base) || !notes.Merged[disk.Target].IsZero() {
			continue
		}
		if redefined(dom) {
			return errDefinedAnew(dom, disk)
		}
		snap.Disks[i].Pivoted = true
	}
	snap.UpdatedAt = s.store.Now()
	return r.Record(ctx, func(tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
}

// A guest is suspended from before its pivots until the record and the definition
// name the bases, so that overlay and base are equal whatever dies. Somebody else
// can resume it in between. Of one that still runs its live definition tells what
// it writes to. One that went off may have written to the base after a pivot that
// libvirt did not come to write down: then the definition names an old overlay.

// pivotState is how things stood, in this process, before a pivot was asked for that
// is not on record yet. What must outlive the process is store.PivotMark.
type pivotState struct {
	target  string
	resumed int // how often the guest had been resumed
	lost    int // how often the connection had been lost, and events with it
}

// markPivot records that a pivot is under way, unless an earlier try has: a daemon that
// dies after the pivot must not merge old data over what the guest then wrote.
func (s deleter) markPivot(ctx context.Context, r *operation.Run, disk vps.SnapshotDisk, resumed, lost int) error {
	known, err := s.store.PivotMark(ctx, r.Op.VPS)
	if err == nil && known.Target == disk.Target {
		return nil
	}
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	// Read before the pivot: a younger time later on tells that the guest wrote to the
	// base.
	base, err := s.host.Stat(ctx, disk.Base)
	if err != nil {
		return err
	}
	mark := store.PivotMark{VPS: r.Op.VPS, Target: disk.Target, BaseModified: base.Modified}
	if err := r.Record(ctx, func(tx *store.Tx) error { return tx.MarkPivot(ctx, mark) }); err != nil {
		return err
	}
	s.pivots.Store(r.Op.VPS, pivotState{disk.Target, resumed, lost})
	return nil
}

// checkNotRunInPivot makes sure that the definition of a VPS that is off names its
// newest data.
func (s deleter) checkNotRunInPivot(
	ctx context.Context, r *operation.Run, dom hypervisor.Domain, snap vps.Snapshot,
) error {
	mark, err := s.store.PivotMark(ctx, dom.ID)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, disk := range snap.Disks {
		if disk.Target != mark.Target || disk.Pivoted {
			continue
		}
		if err := s.checkChoice(ctx, dom, disk, mark); err != nil {
			return err
		}
	}
	s.pivots.Delete(dom.ID)
	return r.Record(ctx, func(tx *store.Tx) error { return tx.ForgetPivot(ctx, dom.ID) })
}

// checkChoice does so for the disk that was to pivot. Where the guest may have run
// meanwhile, the definition is right if it knows of the pivot, if the base was not
// written to since, or if both hold the same.
func (s deleter) checkChoice(
	ctx context.Context, dom hypervisor.Domain, disk vps.SnapshotDisk, mark store.PivotMark,
) error {
	next, ok := image.Next(dom, disk)
	// The definition on disk names the base, so libvirt came to write the pivot down.
	if ok && next.Is(disk.Base) || !s.mayHaveRun(ctx, dom.ID, mark) {
		return nil
	}
	base, err := s.host.Stat(ctx, disk.Base)
	if err != nil || base.Modified.Equal(mark.BaseModified) {
		return err
	}
	same := false
	// The lock keeps the hook from letting the VPS start while both files are read.
	err = startlock.Hold(ctx, s.stateDir, dom.ID, func(ctx context.Context) (err error) {
		same, err = s.host.SameAsBase(
			ctx, hypervisor.OfflineMerge{Overlay: disk.Overlay, Base: disk.Base, BaseFormat: disk.BaseFormat},
		)
		return err
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil && same:
		return nil
	case errors.Is(err, hypervisor.ErrUnavailable):
		return err // nor can the VPS be started from storage that does not answer
	}
	// Also when they could not be compared: with the VPS on, nobody can any more.
	return errRanInPivot(dom, disk, err)
}

// mayHaveRun reports whether somebody else may have let a guest run since a pivot was
// asked for. While there is no connection nothing tells; nor does anything of the time
// before this process.
func (s deleter) mayHaveRun(ctx context.Context, id string, mark store.PivotMark) bool {
	known, ok := s.pivots.Load(id)
	if !ok {
		return true
	}
	state := known.(pivotState) //nolint:forcetypeassert // the only type that is stored
	return state.target != mark.Target || s.inventory.ResumedSince(ctx, id, state.resumed) ||
		s.inventory.TimesLost() != state.lost
}

// errRanInPivot leaves the choice to an operator: the guest may have written to the overlay
// or to the base after the last moment at which both were the same.
func errRanInPivot(dom hypervisor.Domain, disk vps.SnapshotDisk, cause error) error {
	if cause == nil {
		cause = fmt.Errorf("overlay and base differ")
	}
	return operation.Park(
		vps.Errorf(vps.CodeVPSChanged,
			"somebody resumed %s while disk %s pivoted, or libvirt could not tell, and then it went off: its newest "+
				"data is in the overlay or in the base", dom.Name, disk.Target).
			WithRemedy("compare both (qemu-img compare -U), point disk %s at the one with the newest data (virsh "+
				"edit %s), then resume the operation", disk.Target, dom.Name).
			Because(fmt.Errorf("base %s, overlay %s: %w", disk.Base, disk.Overlay, cause)),
	)
}
