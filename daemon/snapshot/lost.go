package snapshot

import (
	"context"
	"errors"
	"fmt"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/startlock"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// mergeLost merges the disks of a VPS that is on which libvirt has lost track of: it died
// when it ended a merge.
func (s deleter) mergeLost(ctx context.Context, r *operation.Run, dom hypervisor.Domain, snap vps.Snapshot) error {
	var lost []int
	for i, disk := range snap.Disks {
		yes, err := s.merger.IsLost(ctx, dom, disk)
		if err != nil {
			return err
		}
		if yes {
			lost = append(lost, i)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	s.logger.Warn("libvirt died in a call and lost track of disks, which are merged past it", r.Op.LogAttr())
	if err := s.nameOverlays(ctx, dom, snap, lost); err != nil {
		return err
	}
	return s.merger.TakeBack(ctx, r, snap, lost, s.marker(ctx, r))
}

// marker marks the pivots of an operation.
func (s deleter) marker(ctx context.Context, r *operation.Run) merge.Mark {
	return func(disk vps.SnapshotDisk) error {
		return s.markPivot(ctx, r, disk, s.inventory.TimesResumed(r.Op.VPS), s.inventory.TimesLost())
	}
}

// nameOverlays has the next boot use the overlays of some disks.
func (s *Snapshots) nameOverlays(
	ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot, disks []int,
) error {
	var overlays []hypervisor.DiskSource
	for _, i := range disks {
		overlays = append(overlays, image.OnOverlay(dom, snap.Disks[i]))
	}
	return s.host.PointDisks(ctx, snap.VPS, overlays)
}

// takeBackSwitch gives a take up whose switch libvirt knows nothing of. From here on the
// overlays are the authority, as of a snapshot that was taken, and each until it is merged.
func (s taker) takeBackSwitch(ctx context.Context, r *operation.Run, dom hypervisor.Domain, snap vps.Snapshot) error {
	var rest []int
	for i, disk := range snap.Disks {
		if !disk.Pivoted {
			rest = append(rest, i)
		}
	}
	if dom.MigratedAway {
		return operation.Park(fault.Migrated(dom))
	}
	if snap.Consistency == "" {
		snap.Consistency, snap.UpdatedAt = vps.ConsistencyCrash, s.store.Now()
		if err := r.Record(ctx, func(tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) }); err != nil {
			return err
		}
	}
	var err error
	switch {
	case len(rest) == 0:
	case dom.State == hypervisor.Off:
		err = s.takeBackOff(ctx, r, dom, snap, rest)
	default:
		if err = s.nameOverlays(ctx, dom, snap, rest); err == nil {
			err = s.merger.TakeBack(ctx, r, snap, rest, deleter(s).marker(ctx, r))
		}
	}
	switch {
	case errors.Is(err, hypervisor.ErrReplaced), errors.Is(err, hypervisor.ErrUnsupported),
		errors.Is(err, hypervisor.ErrDenied):
		return errLostSwitch(dom, err)
	case err != nil:
		return err
	}
	if err := s.host.PointDisks(ctx, snap.VPS, image.BaseSources(dom, snap)); err != nil {
		return err
	}
	return operation.RollBack(s.errInterrupted(r.Op))
}

// takeBackOff merges what was written to the overlays of a VPS that has gone off since.
func (s taker) takeBackOff(
	ctx context.Context, r *operation.Run, dom hypervisor.Domain, snap vps.Snapshot, rest []int,
) error {
	if err := deleter(s).checkNotRunInPivot(ctx, r, dom, snap); err != nil {
		return err
	}
	err := startlock.Hold(ctx, s.stateDir, dom.ID, func(ctx context.Context) error {
		for _, i := range rest {
			disk := snap.Disks[i]
			what := hypervisor.OfflineMerge{Overlay: disk.Overlay, Base: disk.Base, BaseFormat: disk.BaseFormat}
			if err := s.host.MergeOffline(ctx, what, r.Progress); err != nil {
				return fmt.Errorf("overlay of disk %s not merged: %w", disk.Target, err)
			}
		}
		return s.merger.RecordTakenBack(ctx, r, snap, rest)
	})
	if errors.Is(err, startlock.ErrStarting) {
		return fmt.Errorf("%s is being started: %w", dom.Name, hypervisor.ErrBusy)
	}
	return err
}

// errLostSwitch leaves a VPS to an operator whose QEMU does with the overlays what libvirt
// does not know, and what cannot be told for sure.
func errLostSwitch(dom hypervisor.Domain, cause error) error {
	return operation.Park(
		vps.Errorf(vps.CodeVPSChanged, "%s may write to new overlays of which libvirt, which died in the take, does "+
			"not know", dom.Name).
			WithRemedy("shut %s down (virsh shutdown %s) and resume the operation: what it wrote is then merged",
				dom.Name, dom.Name).
			Because(cause),
	)
}
