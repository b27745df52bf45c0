package snapshot

import (
	"context"
	"fmt"
	"slices"
	"time"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/integrity"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/verdict"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Delete begins to delete the snapshot: what was written since is merged into
// the base, and the VPS goes on with the base alone. From the first copied byte
// the snapshot can never be restored again.
//
// An operator may also give up what is broken, or recorded of a VPS that is gone;
// then no file is touched.
//
// Codes: not_found, operation_in_progress, vps_changed, hypervisor_unavailable.
func (s *Snapshots) Delete(ctx context.Context, ref string, actor vps.Actor) (vps.Operation, error) {
	op, err := s.beginDelete(ctx, ref, actor, nil)
	if vps.CodeOf(err) == vps.CodeNotFound && actor.Way == vps.WayOperator {
		return s.discardGone(ctx, ref, actor, err)
	}
	return op, err
}

// DeleteIf is Delete for a caller who has a reason that may be over: guard refuses it
// then, in the transaction that records the deletion. The option uses it to delete at
// the end of its grace: an order that came a moment before must win.
func (s *Snapshots) DeleteIf(
	ctx context.Context, vpsID string, actor vps.Actor, guard func(context.Context, *store.Tx) error,
) (vps.Operation, error) {
	return s.beginDelete(ctx, vpsID, actor, func(tx *store.Tx) error { return guard(ctx, tx) })
}

// beginDelete accepts a delete. guard runs in the transaction that writes the operation
// down, for a caller whose reason to delete may have gone meanwhile.
func (s *Snapshots) beginDelete(
	ctx context.Context, ref string, actor vps.Actor, guard func(*store.Tx) error,
) (vps.Operation, error) {
	c, err := s.operations.Begin(ctx, ref, actor)
	if err != nil {
		return vps.Operation{}, err
	}
	defer c.Release()
	// A broken snapshot fails the verdict and can still be given up by an operator,
	// which merges nothing.
	discard := mayDiscard(c.Domain, c.Record, actor)
	if err := verdict.Refused(verdict.Delete(c.Domain, c.Record), vps.Words{}); err != nil && !discard {
		return vps.Operation{}, err
	}
	c.SnapshotID = c.Record.Snapshot.ID
	notes := deleteNotes{Forget: discard}
	if !discard {
		// A replace that was interrupted leaves its old layer below ours; it is merged
		// away first, by the same operation.
		if notes.Replaces, err = s.layerLeft(ctx, *c.Record.Snapshot); err != nil {
			return vps.Operation{}, err
		}
	}
	return c.Commit(ctx, vps.KindDelete, nil, notes, guard)
}

// deleter does the steps of a delete.
type deleter struct{ *Snapshots }

// deleteNotes is what the steps of a delete keep for each other.
type deleteNotes struct {
	// Merged is when each overlay had last changed as it was merged with the
	// VPS off, by target. A later change means that the VPS ran in between.
	Merged map[string]time.Time
	// Forget: the snapshot is broken, and there is nothing to merge.
	Forget bool
	// Replaces is the snapshot before this one, when its overlay still lies below.
	Replaces string
}

// layerLeft is the snapshot that was replaced by this one and could not be
// merged away then; "" when there is none. It goes first: two at once cannot be
// told apart, and each merge has one layer above and one below.
func (s *Snapshots) layerLeft(ctx context.Context, snap vps.Snapshot) (string, error) {
	all, err := s.store.SnapshotsOf(ctx, snap.VPS)
	for _, other := range all {
		if other.ID != snap.ID && other.State == vps.SnapshotDeleting {
			return other.ID, err
		}
	}
	return "", err
}

// deletePlan is the steps of a delete. The overlay is the authority until
// "settle" has made durable that the base is.
func (s deleter) deletePlan(op vps.Operation) (operation.Plan, error) {
	var notes deleteNotes
	if err := operation.ReadPlan(op, &notes); err != nil {
		return nil, err
	}
	if notes.Forget {
		return operation.Plan{{Name: "forget", Do: s.forgetSnapshot, Irrevocable: true}}, nil
	}
	var plan operation.Plan
	if notes.Replaces != "" {
		plan = replacer(s).replaceSteps()
	}
	// Stored operations name these steps, and failpoints and mutants do too: a name is
	// never changed or used again for something else. "queue" alone can be cancelled;
	// from "end_undo" on the deletion only goes forward (FAULTS.md, fact 1).
	return append(plan, operation.Plan{
		{Name: "queue", Do: s.queueMerge},
		{Name: "end_undo", Do: s.endUndo, Irrevocable: true},
		{Name: "merge", Do: s.mergeOverlays, Irrevocable: true},
		{Name: "pivot", Do: s.pivot, Irrevocable: true, Uncut: true},
		{Name: "settle", Do: s.settle, Irrevocable: true, Uncut: true},
		{Name: "resume", Do: s.resumeAfterPivot, Irrevocable: true, Uncut: true},
		{Name: "unlink", Do: s.unlinkOverlays, Irrevocable: true},
	}...), nil
}

// queueMerge waits for a place among the merges; until then nothing is lost yet.
func (s deleter) queueMerge(ctx context.Context, r *operation.Run) (err error) {
	defer s.merger.LeaveWhenSilent(r, &err)
	dom, err := s.merger.Enter(ctx, r)
	if err != nil {
		return err
	}
	snap, err := s.store.Snapshot(ctx, r.Op.SnapshotID)
	if err != nil {
		return err
	}
	if snap.State == vps.SnapshotDeleting { // its merge may have been cut off
		if err := s.merger.MergeLost(ctx, r, dom, snap); err != nil {
			return err
		}
	}
	// Read after the wait, which may have lasted hours: what was checked when the
	// request came in tells nothing any more.
	err = s.checkMergeable(ctx, dom, snap)
	if err == nil {
		err = s.images.CheckUnshared(ctx, dom, image.Of(snap))
	}
	if err == nil {
		// Found now, a denial costs nothing; later it would fail a merge that has begun
		// to write the base (AppArmor's default on Debian).
		err = s.host.AllowMerge(ctx, dom.ID, image.Bases(snap))
	}
	if err != nil && r.Op.Irrevocable && !fault.Unavailable(err) {
		return operation.Fail(err) // the layer below was merged away: all is whole
	}
	if err != nil {
		return err
	}
	// From here on a restore is refused: the next steps begin to write the base.
	snap.State, snap.UpdatedAt = vps.SnapshotDeleting, s.store.Now()
	r.Stage(func(ctx context.Context, tx *store.Tx) error {
		if err := tx.ForgetPivot(ctx, snap.VPS); err != nil { // of a deletion that was given up
			return err
		}
		return tx.SaveSnapshot(ctx, snap)
	})
	return nil
}

// checkMergeable makes sure, before anything irrevocable, that the chain is what the
// record says and that nothing else works on it. The headers are read too, not only the
// definition: libvirt drops what a definition says of the chain at an offline start and
// trusts the header. Nothing is changed here, so that a refusal costs nothing.
func (s deleter) checkMergeable(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) error {
	if dom.MigratedAway {
		return fault.Migrated(dom) // while it waited for its turn: another host works on the files now
	}
	for _, disk := range snap.Disks {
		changed := func(why string) error {
			return vps.Errorf(vps.CodeVPSChanged, "cannot merge disk %s of %s: %s", disk.Target, dom.Name, why)
		}
		now, ok := image.Live(dom, disk)
		switch {
		case disk.Pivoted:
			continue
		case !ok:
			return changed("the VPS has no such disk any more")
		case !now.Is(disk.Overlay):
			return changed("it uses another image than the overlay that was recorded")
		}
		// A deletion that is taken up again finds its own job, which MergeJob tells from
		// a foreign one.
		if now.Job && snap.State != vps.SnapshotDeleting {
			return changed("a block job runs on it already")
		}
		why, err := s.integrity.Damage(ctx, disk)
		if err != nil {
			return err
		}
		// A resumed merge has itself written the base; that is then no damage.
		if why != "" && (snap.State != vps.SnapshotDeleting || why != integrity.BaseWritten) {
			return changed(why)
		}
		img, err := s.host.Inspect(ctx, disk.Overlay, "qcow2")
		if err != nil {
			return err
		}
		if !img.LiesOn(disk.Base, disk.BaseFormat) {
			return changed("its overlay lies on another image than the base that was recorded")
		}
		if img.InternalSnapshots > 0 {
			return changed("its overlay holds internal snapshots, which would be lost (qemu-img snapshot -l)")
		}
	}
	return nil
}

// endUndo removes the disks from before the last restore: they lie on the same
// base, which is about to change.
func (s deleter) endUndo(ctx context.Context, r *operation.Run) error {
	snap, err := s.store.Snapshot(ctx, r.Op.SnapshotID)
	if err != nil {
		return err
	}
	// The last moment at which the base is still the snapshot. A rebuild of the record
	// (adoption) needs that state.
	if err := s.integrity.WriteMetadata(ctx, r); err != nil {
		return err
	}
	if verdict.UndoIsKept(snap) {
		r.Op.Result = undoEnded
	}
	// The files go before the merge writes its first byte: through a changed base an
	// undo would bring back a disk that never was.
	return s.dropUndo(ctx, snap, r.Stage)
}

// mergeOverlays copies every overlay into its base and ends when the guest can
// pivot, or when all is copied with the VPS off.
func (s deleter) mergeOverlays(ctx context.Context, r *operation.Run) (err error) {
	defer s.merger.LeaveWhenSilent(r, &err)
	// An earlier try may have stopped the guest to help the merge.
	if err := s.resumeAfterPivot(ctx, r); err != nil {
		return err
	}
	if err := s.merger.Stay(ctx, r); err != nil {
		return err
	}
	// Downloads read the base, and would deliver bytes of two moments.
	if err := s.cutReaders(ctx, r); err != nil {
		return err
	}
	snap, dom, err := s.recordAndDomain(ctx, r)
	if err != nil {
		return err
	}
	if err := s.merger.MergeLost(ctx, r, dom, snap); err != nil {
		return err
	}
	// Of a merge while the VPS runs, one before it while it was off tells nothing. Left
	// in place, its times would make the overlay of a running guest look unwritten.
	if err := noteMerged(r, nil); err != nil {
		return err
	}
	set := merge.Set{Snap: snap, Active: true, Merged: pivoted, Next: []vps.Snapshot{snap},
		Bandwidth: s.merger.Bandwidth()}
	return s.merger.Merge(ctx, r, set, func(ctx context.Context, dom hypervisor.Domain) error {
		return s.mergeOverlaysOff(ctx, r, dom, set)
	})
}

// mergeOverlaysOff merges the overlays of a VPS that is off, disk by disk, and notes of
// each when its overlay was last written before that: a write to it after that is noticed
// by its younger time.
func (s deleter) mergeOverlaysOff(ctx context.Context, r *operation.Run, dom hypervisor.Domain, set merge.Set) error {
	merged := map[string]time.Time{}
	for _, disk := range set.Snap.Disks {
		if disk.Pivoted {
			continue
		}
		// Read before the merge: a change during it counts as one after it.
		file, err := s.host.Stat(ctx, disk.Overlay)
		if err != nil {
			return err
		}
		merged[disk.Target] = file.Modified
	}
	if err := s.merger.Off(ctx, r, dom, set); err != nil {
		return err
	}
	return noteMerged(r, merged)
}

// noteMerged keeps the times in the plan, so that a resumed delete knows them after a kill.
func noteMerged(r *operation.Run, merged map[string]time.Time) error {
	var notes deleteNotes
	if err := r.Plan(&notes); err != nil {
		return err
	}
	notes.Merged = merged
	return r.SetPlan(notes)
}

// pivoted reports whether a disk's record says so; it is never merged again.
func pivoted(_ hypervisor.Domain, disk vps.SnapshotDisk) bool { return disk.Pivoted }

// goBackIfWritten goes back to merging when an overlay that has not pivoted is
// in use, or has changed since it was merged with the VPS off: somebody started
// the VPS meanwhile, and the overlay is still the authority.
func (s deleter) goBackIfWritten(ctx context.Context, r *operation.Run, snap vps.Snapshot) error {
	// With every disk pivoted the base is in use, and no overlay can count any more.
	if !slices.ContainsFunc(snap.Disks, func(disk vps.SnapshotDisk) bool { return !disk.Pivoted }) {
		return nil
	}
	var notes deleteNotes
	if err := r.Plan(&notes); err != nil {
		return err
	}
	dom, err := s.inventory.Read(ctx, r.Op.VPS)
	if err != nil {
		return err
	}
	written := false
	var overlays []hypervisor.DiskSource
	for _, disk := range snap.Disks {
		if disk.Pivoted {
			continue
		}
		file, err := s.host.Stat(ctx, disk.Overlay)
		if err != nil {
			return err
		}
		now, ok := image.Live(dom, disk)
		inUse := dom.State != hypervisor.Off && ok && now.Is(disk.Overlay)
		written = written || inUse || !file.Modified.Equal(notes.Merged[disk.Target])
		// The definition may name the base already, from the try before: the next boot
		// must find the overlay.
		if next, ok := image.Next(dom, disk); ok && !next.Is(disk.Overlay) {
			overlays = append(overlays, image.OnOverlay(dom, disk))
		}
	}
	if !written {
		return nil
	}
	if len(overlays) > 0 {
		// Durable before the step goes back, because the merge that follows relies on
		// it.
		if err := s.host.PointDisks(ctx, dom.ID, overlays); err != nil {
			return err
		}
	}
	return operation.Back("merge", fmt.Errorf("%s was started meanwhile: %w", dom.Name, hypervisor.ErrBusy))
}

// settle makes the base the authority: the next boot's definition names it on
// every disk, durably, and then the record says so. It looks at the overlays
// before and after, because somebody may start the VPS in between.
func (s deleter) settle(ctx context.Context, r *operation.Run) error {
	snap, err := s.store.Snapshot(ctx, r.Op.SnapshotID)
	if err != nil {
		return err
	}
	if err := s.goBackIfWritten(ctx, r, snap); err != nil {
		return err
	}
	// PointDisks also syncs libvirt's directory, which libvirt 9.0 does not: after a
	// power cut the old definition could boot on an overlay whose file is unlinked
	// (FAULTS.md, fact 5).
	dom, err := s.inventory.Read(ctx, r.Op.VPS)
	if err != nil {
		return err
	}
	if err := s.host.PointDisks(ctx, r.Op.VPS, image.BaseSources(dom, snap)); err != nil {
		return err
	}
	// A start between the first look and the new definition used the overlay, and is
	// found here.
	if err := s.goBackIfWritten(ctx, r, snap); err != nil {
		return err
	}
	for i := range snap.Disks {
		snap.Disks[i].Pivoted = true
	}
	snap.UpdatedAt = s.store.Now()
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return nil
}

// resumeAfterPivot lets a guest that we suspended run again. That a guest is suspended
// is a debt in the record, written before the suspension, so that the daemon that
// follows a killed one finds it and pays it within seconds.
func (s deleter) resumeAfterPivot(ctx context.Context, r *operation.Run) error {
	owed, err := s.store.Owes(ctx, r.Op.VPS, store.DebtResume)
	if err != nil || !owed {
		return err
	}
	return s.guests.Resume(ctx, r.Op.VPS)
}

// unlinkOverlays removes what nothing uses any more, and the record with it.
func (s deleter) unlinkOverlays(ctx context.Context, r *operation.Run) error {
	snap, dom, err := s.recordAndDomain(ctx, r)
	if err != nil {
		return err
	}
	if err := s.removeSnapshotFiles(ctx, dom, snap, "settle"); err != nil {
		return err
	}
	// The files are gone first: a crash here leaves metadata without a snapshot, which
	// adoption knows as a leftover. The other order could leave files that nothing
	// names.
	if err := s.host.SetMetadata(ctx, dom.ID, ""); err != nil {
		return err
	}
	snap.State, snap.UndoUntil, snap.UpdatedAt = vps.SnapshotGone, nil, s.store.Now()
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return nil
}

// recordAndDomain reads both sides of what a step of a deletion compares: the record of
// the snapshot and the VPS as libvirt has it now.
func (s *Snapshots) recordAndDomain(ctx context.Context, r *operation.Run) (vps.Snapshot, hypervisor.Domain, error) {
	snap, err := s.store.Snapshot(ctx, r.Op.SnapshotID)
	if err != nil {
		return snap, hypervisor.Domain{}, err
	}
	dom, err := s.inventory.Read(ctx, r.Op.VPS)
	return snap, dom, err
}

// removeSnapshotFiles removes the overlays, stale since they were merged, and
// the saved variables. Where somebody has brought one back into the VPS, the
// operation goes back to the step that puts that right.
func (s *Snapshots) removeSnapshotFiles(
	ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot, right string,
) error {
	for _, disk := range snap.Disks {
		// Only a person can tell what the guest wrote to the stale overlay since;
		// unlinking it would lose that, and merging it would put old data over new
		// (FAULTS.md, fact 3).
		if now, ok := image.Live(dom, disk); ok && dom.State != hypervisor.Off && now.Is(disk.Overlay) {
			return operation.Park(
				vps.Errorf(vps.CodeVPSChanged, "%s was started on an old overlay of disk %s, which had been merged",
					dom.Name, disk.Target).
					WithRemedy("shut %s down, point disk %s at its base (virsh edit %s), and resume the operation; "+
						"what was written since the start is lost with the old overlay",
						dom.Name, disk.Target, dom.Name).
					Because(fmt.Errorf("base %s, overlay %s", disk.Base, disk.Overlay)),
			)
		}
		// It is off, or will use it at the next boot only: nothing was written, so the
		// definition can be put right.
		if dom.Uses(disk.Overlay) {
			return operation.Back(
				right,
				fmt.Errorf(
					"the definition of %s names the old overlay of disk %s again: %w", dom.Name, disk.Target,
					hypervisor.ErrBusy,
				),
			)
		}
		if err := s.removeRecorded(ctx, disk.Overlay, disk.OverlayInode); err != nil {
			return err
		}
	}
	return s.removeOwn(ctx, snap.NVRAMSaved)
}
