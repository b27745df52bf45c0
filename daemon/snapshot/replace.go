package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"vpssnapd/daemon/image"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// A replace lays the new overlay over the old one. From the switch on the new
// snapshot is "old overlay over base"; merging the old overlay down into the
// base does not change what that pair shows, so there is no moment without a
// snapshot, and the new one can be restored at any point of the merge.

// replacer does the steps by which a take gives the snapshot before it up.
type replacer struct{ *Snapshots }

// replaceSteps follow the steps of a take.
func (s replacer) replaceSteps() operation.Plan {
	// The guest never writes to the old overlay again, so no pivot and no suspension is
	// needed.
	return operation.Plan{
		{Name: "old_merge", Do: s.mergeOld, Irrevocable: true},
		{Name: "old_settle", Do: s.settleOld, Irrevocable: true},
		{Name: "old_unlink", Do: s.unlinkOld, Irrevocable: true},
	}
}

// supersede makes the new snapshot available and gives the old one up, in one
// transaction. A crash between two would leave two snapshots available, or none.
func (s replacer) supersede(ctx context.Context, tx *store.Tx, oldID string, snap vps.Snapshot) error {
	old, err := tx.Snapshot(ctx, oldID)
	if err != nil {
		return err
	}
	old.State, old.UpdatedAt = vps.SnapshotDeleting, s.store.Now()
	if err := tx.SaveSnapshot(ctx, old); err != nil {
		return err
	}
	return tx.SaveSnapshot(ctx, snap)
}

// mergeOld merges the layer between the new overlay and the base.
func (s replacer) mergeOld(ctx context.Context, r *operation.Run) (err error) {
	defer s.merger.LeaveWhenSilent(r, &err)
	if err := s.merger.Stay(ctx, r); err != nil {
		return err
	}
	if err := s.cutReaders(ctx, r); err != nil {
		return err
	}
	snap, old, err := s.replaceState(ctx, r)
	if err != nil {
		return err
	}
	if err := s.endUndoOf(ctx, r, old); err != nil {
		return err
	}
	merged := func(dom hypervisor.Domain, disk vps.SnapshotDisk) bool { return s.middleGone(ctx, dom, snap, disk) }
	set := merge.Set{
		Snap:   old,
		Merged: merged,
		// A definition is right with either: libvirt names the layer until the merge is
		// done, then the base.
		Next:      []vps.Snapshot{snap, basedOn(snap, old)},
		Bandwidth: s.merger.Bandwidth(),
	}
	return s.merger.Merge(ctx, r, set, func(ctx context.Context, dom hypervisor.Domain) error {
		return s.mergeOldOff(ctx, r, dom, snap, set)
	})
}

// basedOn is a snapshot as it will be when the layer below it is merged away.
func basedOn(snap, old vps.Snapshot) vps.Snapshot {
	snap.Disks = slices.Clone(snap.Disks)
	for i, disk := range snap.Disks {
		for _, below := range old.Disks {
			if below.Target == disk.Target {
				snap.Disks[i].Base, snap.Disks[i].BaseFormat, snap.Disks[i].BaseInode =
					below.Base, below.BaseFormat, below.BaseInode
			}
		}
	}
	return snap
}

// endUndoOf removes what would undo the old snapshot's last restore: it lies on
// the base, which is about to change.
func (s replacer) endUndoOf(ctx context.Context, r *operation.Run, old vps.Snapshot) error {
	var record func(context.Context, *store.Tx) error
	err := s.dropUndo(ctx, old, func(write func(context.Context, *store.Tx) error) { record = write })
	if err != nil || record == nil {
		return err
	}
	r.AddResult(undoEnded)
	return r.Record(ctx, func(tx *store.Tx) error { return record(ctx, tx) })
}

// middleGone reports whether the new overlay of a running VPS lies on the base
// already. The overlay's header is the authority: QEMU writes it when the merge
// is done, and if libvirtd was dead at that moment its live definition names
// the merged layer until the next boot (found by the kill campaign).
func (s replacer) middleGone(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot, old vps.SnapshotDisk) bool {
	now, ok := image.Live(dom, old)
	if !ok || dom.State == hypervisor.Off || !now.Is(image.OverlayOf(snap, old.Target)) || now.Job {
		return false
	}
	// An overlay that cannot be read now is taken as not yet merged, and asked again.
	img, err := s.host.Inspect(ctx, now.Path, "qcow2")
	return err == nil && img.LiesOn(old.Base, old.BaseFormat)
}

// withoutStaleLayers is the domain without the merged layers that libvirt alone
// still believes to be in use. While a job runs on a disk nothing is stale.
func (s replacer) withoutStaleLayers(
	ctx context.Context, dom hypervisor.Domain, snap, old vps.Snapshot,
) (hypervisor.Domain, error) {
	dom.Disks = slices.Clone(dom.Disks)
	for _, disk := range old.Disks {
		job, err := s.host.MergeJob(ctx, dom.ID, image.LiveName(dom, disk))
		if err != nil {
			return dom, err
		}
		if job.Found || !s.middleGone(ctx, dom, snap, disk) {
			continue
		}
		for i, now := range dom.Disks {
			if now.Target == image.LiveName(dom, disk) {
				stale := func(l hypervisor.Layer) bool { return pathname.Same(l.Path, disk.Overlay) }
				dom.Disks[i].Chain = slices.DeleteFunc(slices.Clone(now.Chain), stale)
			}
		}
	}
	return dom, nil
}

// mergeOldOff does the same with qemu-img and then makes the new overlay name the base.
func (s replacer) mergeOldOff(
	ctx context.Context, r *operation.Run, dom hypervisor.Domain, snap vps.Snapshot, set merge.Set,
) error {
	onBase := map[string]bool{}
	for _, disk := range snap.Disks {
		// By the headers, because the definition of a VPS that is off states no chain.
		img, err := s.host.Inspect(ctx, disk.Overlay, "qcow2")
		if err != nil {
			return err
		}
		onBase[disk.Target] = !img.LiesOn(disk.Base, disk.BaseFormat)
	}
	set.Merged = func(_ hypervisor.Domain, disk vps.SnapshotDisk) bool { return onBase[disk.Target] }
	if err := s.merger.Off(ctx, r, dom, set); err != nil {
		return err
	}
	// Only the header is rewritten: old overlay over base and the base alone read the
	// same by now.
	for _, old := range set.Snap.Disks {
		if onBase[old.Target] {
			continue
		}
		if err := s.host.Rebase(ctx, image.OverlayOf(snap, old.Target), old.Base, old.BaseFormat); err != nil {
			return fmt.Errorf("overlay of disk %s not put on the base: %w", old.Target, err)
		}
	}
	return nil
}

// settleOld makes sure that header and definitions name the base under the new
// overlay, durably, and records the base as the new snapshot's.
func (s replacer) settleOld(ctx context.Context, r *operation.Run) error {
	snap, old, err := s.replaceState(ctx, r)
	if err != nil {
		return err
	}
	for _, disk := range old.Disks {
		// Not taken from the job's end: libvirtd may have died before it saw that.
		img, err := s.host.Inspect(ctx, image.OverlayOf(snap, disk.Target), "qcow2")
		if err != nil {
			return err
		}
		if !img.LiesOn(disk.Base, disk.BaseFormat) {
			return operation.Back(
				"old_merge",
				fmt.Errorf("the overlay of disk %s does not lie on the base yet: %w", disk.Target, hypervisor.ErrBusy),
			)
		}
	}
	snap = basedOn(snap, old)
	for i, disk := range snap.Disks {
		// The merge wrote the base, so the time from the take is void; "was it written
		// since?" counts from now.
		base, err := s.host.Stat(ctx, disk.Base)
		if err != nil {
			return err
		}
		snap.Disks[i].BaseModified = base.Modified
	}
	for i := range old.Disks {
		old.Disks[i].Pivoted = true
	}
	// A stale backing store in the definition would override the header: it is left out.
	dom, err := s.inventory.Read(ctx, snap.VPS)
	if err != nil {
		return err
	}
	if err := s.host.PointDisks(ctx, snap.VPS, image.OverlaySources(dom, snap)); err != nil {
		return err
	}
	now := s.store.Now()
	snap.UpdatedAt, old.UpdatedAt = now, now
	r.Stage(func(ctx context.Context, tx *store.Tx) error {
		return errors.Join(tx.SaveSnapshot(ctx, old), tx.SaveSnapshot(ctx, snap))
	})
	return nil
}

// unlinkOld removes the old overlay, which nothing uses any more.
func (s replacer) unlinkOld(ctx context.Context, r *operation.Run) error {
	snap, old, err := s.replaceState(ctx, r)
	if err != nil {
		return err
	}
	dom, err := s.inventory.Read(ctx, r.Op.VPS)
	if err != nil {
		return err
	}
	dom, err = s.withoutStaleLayers(ctx, dom, snap, old)
	if err != nil {
		return err
	}
	if err := s.removeSnapshotFiles(ctx, dom, old, "old_merge"); err != nil {
		return err
	}
	if err := s.integrity.WriteMetadata(ctx, r); err != nil {
		return err
	}
	old.State, old.UpdatedAt = vps.SnapshotGone, s.store.Now()
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, old) })
	return nil
}

// replaceState reads the new snapshot and the one that it replaces.
func (s replacer) replaceState(ctx context.Context, r *operation.Run) (snap, old vps.Snapshot, err error) {
	snap, notes, err := s.takeState(ctx, r)
	if err != nil {
		return snap, old, err
	}
	old, err = s.store.Snapshot(ctx, notes.Replaces)
	return snap, old, err
}
