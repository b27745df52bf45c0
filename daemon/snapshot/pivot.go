package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/operation"
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
	if err := s.merger.MarkPivot(ctx, r, disk, resumed, lost); err != nil {
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
	if err := s.merger.CheckNotRunInPivot(ctx, r, dom, snap); err != nil {
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
