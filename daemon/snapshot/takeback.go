package snapshot

import (
	"context"
	"errors"
	"fmt"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// anyExchanged reports whether a spare lies under the name of its disk, or the spare
// variables under that of the VPS's.
func (s restorer) anyExchanged(ctx context.Context, snap vps.Snapshot, notes restoreNotes) (bool, error) {
	for i, spare := range notes.Spares {
		if file, err := s.host.Stat(ctx, snap.Disks[i].Overlay); err != nil || file.Inode == spare.Inode {
			return err == nil, err
		}
	}
	if notes.NVRAMSpare == "" {
		return false, nil
	}
	file, err := s.host.Stat(ctx, snap.NVRAM)
	return err == nil && file.Inode == notes.NVRAMInode, err
}

// unlessUntouched takes a restore back that has failed before it exchanged anything. Where
// another file lies in a disk's place, somebody has to say what it is first.
func (s restorer) unlessUntouched(ctx context.Context, snap vps.Snapshot, notes restoreNotes, cause error) error {
	if fault.Unavailable(cause) || errors.Is(cause, hypervisor.ErrReplaced) {
		return cause
	}
	if begun, err := s.anyExchanged(ctx, snap, notes); err != nil || begun {
		return cause
	}
	return operation.RollBack(cause)
}

// takeBack ends a restore with everything as it was before: what was exchanged changes
// places again, the snapshot is available, and a VPS that we stopped is started.
func (s restorer) takeBack(ctx context.Context, r *operation.Run) error {
	snap, notes, err := s.restoreState(ctx, r)
	if err != nil {
		return err
	}
	strange, err := s.exchangeBack(ctx, r, snap, notes)
	if err != nil {
		return err
	}
	if snap.State == vps.SnapshotRestoring {
		snap.State, snap.UpdatedAt = vps.SnapshotAvailable, s.store.Now()
		if strange != "" {
			snap.State, snap.Heals, snap.Reason = vps.SnapshotBroken, true, strange
		}
		// At once: libvirt's hook lets nobody start a VPS that is being restored.
		if err := r.Record(ctx, func(tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) }); err != nil {
			return err
		}
	}
	if strange != "" {
		r.AddResult("the VPS was left off: " + strange)
		return s.tellAsBefore(ctx, r, snap)
	}
	if err := s.startAgain(ctx, r, notes); err != nil {
		return err
	}
	return s.tellAsBefore(ctx, r, snap)
}

// exchangeBack brings the disks back that were exchanged. strange names a file that is
// neither of the two, as somebody has put another there: it is left to him.
func (s restorer) exchangeBack(
	ctx context.Context, r *operation.Run, snap vps.Snapshot, notes restoreNotes,
) (strange string, err error) {
	if err := s.checkUnused(ctx, r, snap, notes); err != nil {
		return "", err
	}
	for i, spare := range notes.Spares {
		disk := snap.Disks[i]
		present, err := s.host.Stat(ctx, disk.Overlay)
		if err != nil {
			return "", err
		}
		switch present.Inode {
		case disk.OverlayInode:
		case spare.Inode:
			if err := s.host.Exchange(ctx, disk.Overlay, spare.Path); err != nil {
				return "", fmt.Errorf("disk %s: %w", disk.Target, err)
			}
		default:
			strange = "disk " + disk.Target + ": its overlay was replaced by another file"
		}
	}
	if notes.NVRAMSpare == "" {
		return strange, nil
	}
	present, err := s.host.Stat(ctx, snap.NVRAM)
	if err != nil || present.Inode != notes.NVRAMInode {
		return strange, err
	}
	return strange, s.host.Exchange(ctx, snap.NVRAM, notes.NVRAMSpare)
}

// checkUnused makes sure that the VPS has not run on disks that were exchanged: what it wrote
// there would be lost. Then the restore can only be finished.
func (s restorer) checkUnused(ctx context.Context, r *operation.Run, snap vps.Snapshot, notes restoreNotes) error {
	begun, err := s.anyExchanged(ctx, snap, notes)
	if err != nil || !begun {
		return err
	}
	dom, err := s.inventory.Read(ctx, r.Op.VPS)
	if err != nil {
		return err
	}
	used := dom.State != hypervisor.Off
	for i, spare := range notes.Spares {
		file, err := s.host.Stat(ctx, snap.Disks[i].Overlay)
		if err != nil {
			return err
		}
		used = used || file.Inode == spare.Inode && !file.Modified.Equal(notes.Made[spare.Target])
	}
	if !used {
		return nil
	}
	return operation.Forward(vps.Errorf(vps.CodeVPSChanged,
		"%s was started on disks that are restored already, and may have written to them", dom.Name).
		WithRemedy("resume the operation, which ends the restore"))
}

// startAgain starts a VPS that we stopped as it ran before. One whose memory was saved was
// stopped by somebody else.
func (s restorer) startAgain(ctx context.Context, r *operation.Run, notes restoreNotes) error {
	dom, err := s.inventory.Read(ctx, r.Op.VPS)
	if err != nil {
		return err
	}
	before := restoreNotes{Was: notes.Found, PauseReason: notes.FoundReason, After: vps.PowerPrevious}
	if notes.Found == "" {
		before.Was, before.PauseReason = notes.Was, notes.PauseReason
	}
	start, paused := before.powerAfter()
	if dom.State != hypervisor.Off || !start || dom.MigratedAway || dom.ManagedSave {
		return nil
	}
	if err := s.host.Start(ctx, dom.ID, paused); err != nil {
		return fmt.Errorf("everything is as it was before, but the VPS does not start: %w", err)
	}
	r.AddResult("nothing was changed, and the VPS was started again")
	return nil
}

// tellAsBefore takes out of the definition that a restore is under way. Where that cannot be
// saved nothing is lost: it says which files would change places, none has, and whoever
// compares it with the record puts it right.
func (s restorer) tellAsBefore(ctx context.Context, r *operation.Run, snap vps.Snapshot) error {
	dom, err := s.inventory.Read(ctx, r.Op.VPS)
	if err != nil {
		return err
	}
	if err := s.integrity.RightMetadata(ctx, dom, snap); err != nil {
		if fault.Unavailable(err) {
			return err
		}
		s.logger.Warn("the definition still speaks of a restore", r.Op.LogAttr(), "error", err)
	}
	return nil
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
		err = s.merger.TakeBackOff(ctx, r, dom, snap, rest)
	default:
		err = s.merger.TakeBack(ctx, r, dom, snap, rest)
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
