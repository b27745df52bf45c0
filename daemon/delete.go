package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
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
func (d *Daemon) Delete(ctx context.Context, ref string, actor vps.Actor) (vps.Operation, error) {
	op, err := d.beginDelete(ctx, ref, actor)
	if vps.CodeOf(err) == vps.CodeNotFound && actor.Way == vps.WayOperator {
		return d.giveUpGone(ctx, ref, actor, err)
	}
	return op, err
}

func (d *Daemon) beginDelete(ctx context.Context, ref string, actor vps.Actor) (vps.Operation, error) {
	return d.accept(ctx, ref, request{
		kind: vps.KindDelete, actor: actor,
		check: func(dom hypervisor.Domain, rec record, op *vps.Operation) error {
			forget := mayForget(dom, rec, actor)
			if err := refused(deleteVerdict(dom, rec), vps.Words{}); err != nil && !forget {
				return err
			}
			op.SnapshotID = rec.snapshot.ID
			notes := deleteNotes{Forget: forget}
			if !forget {
				var err error
				if notes.Replaces, err = d.layerLeft(ctx, *rec.snapshot); err != nil {
					return err
				}
			}
			return setPlan(op, notes)
		},
		insert: func(tx *store.Tx) error {
			if actor != expiry {
				return nil
			}
			_, over, err := d.graceOver(ctx, tx, ref) // which is the id, then
			if err == nil && !over {
				err = vps.Errorf(vps.CodeVPSChanged, "the option was renewed")
			}
			return err
		},
	})
}

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
func (d *Daemon) layerLeft(ctx context.Context, snap vps.Snapshot) (string, error) {
	all, err := d.store.SnapshotsOf(ctx, snap.VPS)
	for _, other := range all {
		if other.ID != snap.ID && other.State == vps.SnapshotDeleting {
			return other.ID, err
		}
	}
	return "", err
}

// deletePlan is the steps of a delete. The overlay is the authority until
// "settle" has made durable that the base is.
func (d *Daemon) deletePlan(op vps.Operation) (operation.Plan, error) {
	var notes deleteNotes
	if err := readPlan(op, &notes); err != nil {
		return nil, err
	}
	if notes.Forget {
		return operation.Plan{{Name: "forget", Do: d.forgetSnapshot, Irrevocable: true}}, nil
	}
	var plan operation.Plan
	if notes.Replaces != "" {
		plan = d.replaceSteps()
	}
	return append(plan, operation.Plan{
		{Name: "queue", Do: d.queueMerge},
		{Name: "end_undo", Do: d.endUndo, Irrevocable: true},
		{Name: "merge", Do: d.mergeOverlays, Irrevocable: true},
		{Name: "pivot", Do: d.pivot, Irrevocable: true, Uncut: true},
		{Name: "settle", Do: d.settle, Irrevocable: true, Uncut: true},
		{Name: "resume", Do: d.resumeAfterPivot, Irrevocable: true, Uncut: true},
		{Name: "unlink", Do: d.unlinkOverlays, Irrevocable: true},
	}...), nil
}

// queueMerge waits for a place among the merges; until then nothing is lost yet.
func (d *Daemon) queueMerge(ctx context.Context, r *operation.Run) (err error) {
	defer d.leaveWhenSilent(r, &err)
	dom, err := d.enterMerges(ctx, r)
	if err != nil {
		return err
	}
	snap, err := d.store.Snapshot(ctx, r.Op.SnapshotID)
	if err != nil {
		return err
	}
	err = d.checkMergeable(ctx, dom, snap)
	if err == nil {
		err = d.checkUnshared(ctx, dom, imagesOf(snap))
	}
	if err == nil {
		// Found now, a denial costs nothing.
		err = d.Config.Host.AllowMerge(ctx, dom.ID, bases(snap))
	}
	if err != nil && r.Op.Irrevocable && !unavailable(err) {
		return operation.Fail(err) // the layer below was merged away: all is whole
	}
	if err != nil {
		return err
	}
	snap.State, snap.UpdatedAt = vps.SnapshotDeleting, d.now()
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return nil
}

// checkMergeable makes sure, before anything irrevocable, that the chain is
// what the record says and that nothing else works on it.
func (d *Daemon) checkMergeable(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) error {
	if dom.MigratedAway {
		return errMigrated(dom) // while it waited for its turn: another host works on the files now
	}
	for _, disk := range snap.Disks {
		changed := func(why string) error {
			return vps.Errorf(vps.CodeVPSChanged, "cannot merge disk %s of %s: %s", disk.Target, dom.Name, why)
		}
		now, ok := diskOf(dom.Disks, disk.Target)
		switch {
		case disk.Pivoted:
			continue
		case !ok:
			return changed("the VPS has no such disk any more")
		case now.Path != disk.Overlay:
			return changed("it uses another image than the overlay that was recorded")
		}
		if now.Job && snap.State != vps.SnapshotDeleting {
			return changed("a block job runs on it already")
		}
		img, err := d.Config.Host.Inspect(ctx, disk.Overlay, "qcow2")
		if err != nil {
			return err
		}
		if img.Backing != disk.Base || img.BackingFormat != disk.BaseFormat {
			return changed("its overlay lies on another image than the base that was recorded")
		}
		if img.InternalSnapshots > 0 {
			return changed("its overlay holds internal snapshots, which would be lost (qemu-img snapshot -l)")
		}
		why, err := d.damage(ctx, disk)
		if err != nil {
			return err
		}
		if why != "" && (snap.State != vps.SnapshotDeleting || why != baseWritten) {
			return changed(why)
		}
	}
	return nil
}

// comparedAtOnce is how many deletions compare their images with those of all other
// VPSes at the same time, which takes a process for each image that was not asked yet:
// of a hundred that began at once, that was a third of the heap. An image that does
// not answer holds up all the same who must ask it, and that is every deletion.
const comparedAtOnce = 4

// checkUnshared makes sure that no other VPS uses what is about to be merged.
func (d *Daemon) checkUnshared(ctx context.Context, dom hypervisor.Domain, images map[string]string) error {
	if err := d.comparing.Acquire(ctx, 1); err != nil {
		return err
	}
	defer d.comparing.Release(1)
	target := d.sharedDisk(ctx, dom, images)
	var err error
	if target == "" {
		target, err = d.sharedBelow(ctx, dom, images)
	}
	if err != nil {
		return fmt.Errorf("what the images of other VPSes lie on is not known: %w", err)
	}
	if target == "" {
		return nil
	}
	return vps.Errorf(vps.CodeVPSChanged, "cannot merge disk %s of %s: another VPS of this host uses an image of the snapshot, and would change with it", target, dom.Name).
		WithRemedy("give the other VPS a disk of its own (virsh domblklist), then ask for the same again")
}

// endUndo removes the disks from before the last restore: they lie on the same
// base, which is about to change.
func (d *Daemon) endUndo(ctx context.Context, r *operation.Run) error {
	snap, err := d.store.Snapshot(ctx, r.Op.SnapshotID)
	if err != nil {
		return err
	}
	// The last moment at which the base is still the snapshot.
	if err := d.writeMetadata(ctx, r); err != nil {
		return err
	}
	if undoIsKept(snap) {
		r.Op.Result = undoEnded
	}
	return d.dropUndo(ctx, snap, r.Stage)
}

// mergeOverlays copies every overlay into its base and ends when the guest can
// pivot, or when all is copied with the VPS off.
func (d *Daemon) mergeOverlays(ctx context.Context, r *operation.Run) (err error) {
	defer d.leaveWhenSilent(r, &err)
	// An earlier try may have stopped the guest to help the merge.
	if err := d.resumeAfterPivot(ctx, r); err != nil {
		return err
	}
	if err := d.stayAtMerges(ctx, r); err != nil {
		return err
	}
	if err := d.cutReaders(ctx, r); err != nil {
		return err
	}
	snap, err := d.store.Snapshot(ctx, r.Op.SnapshotID)
	if err != nil {
		return err
	}
	// Of a merge while the VPS runs, one before it while it was off tells nothing.
	if err := noteMerged(r, nil); err != nil {
		return err
	}
	set := mergeSet{snap: snap, active: true, merged: pivoted, next: []vps.Snapshot{snap}, bandwidth: d.present().Merge.Bandwidth}
	return d.mergeEitherWay(ctx, r, set, func(ctx context.Context, dom hypervisor.Domain) error {
		return d.mergeOverlaysOff(ctx, r, dom, set)
	})
}

func (d *Daemon) mergeOverlaysOff(ctx context.Context, r *operation.Run, dom hypervisor.Domain, set mergeSet) error {
	merged := map[string]time.Time{}
	for _, disk := range set.snap.Disks {
		if disk.Pivoted {
			continue
		}
		// Read before the merge: a change during it counts as one after it.
		file, err := d.Config.Host.Stat(ctx, disk.Overlay)
		if err != nil {
			return err
		}
		merged[disk.Target] = file.Modified
	}
	if err := d.mergeOff(ctx, r, dom, set); err != nil {
		return err
	}
	return noteMerged(r, merged)
}

func noteMerged(r *operation.Run, merged map[string]time.Time) error {
	var notes deleteNotes
	if err := r.Plan(&notes); err != nil {
		return err
	}
	notes.Merged = merged
	return r.SetPlan(notes)
}

// pivoted says that a disk's record says so; it is never merged again.
func pivoted(_ hypervisor.Domain, disk vps.SnapshotDisk) bool { return disk.Pivoted }

// pivot makes the running guest use the bases. The guest is suspended from
// before the first pivot until "resume": with nothing written in between,
// overlay and base are equal whatever dies.
func (d *Daemon) pivot(ctx context.Context, r *operation.Run) (err error) {
	defer d.leaveWhenSilent(r, &err)
	snap, err := d.store.Snapshot(ctx, r.Op.SnapshotID)
	if err != nil {
		return err
	}
	dom, err := d.inventory.domain(ctx, r.Op.VPS)
	if err != nil {
		return err
	}
	if dom.State == hypervisor.Off {
		return d.pivotedOff(ctx, r, dom, snap)
	}
	if !dom.Persistent {
		// Before the guest is suspended: it could not be let go again.
		return operation.Park(vps.Errorf(vps.CodeVPSChanged, "%s is not persistent any more: there is no definition that could name its merged disks", dom.Name).
			WithRemedy("define %s again (virsh define), then resume the operation", dom.Name))
	}
	if err := d.suspendForPivot(ctx, r, dom); err != nil {
		return err
	}
	for i := range snap.Disks {
		err := d.pivotDisk(ctx, r, snap, i)
		if err == nil && i < len(snap.Disks)-1 {
			// With AppArmor the pivot may have taken the next base away.
			err = d.Config.Host.AllowMerge(ctx, dom.ID, bases(snap))
		}
		if errors.Is(err, errRedefined) {
			return errDefinedAnew(dom, snap.Disks[i])
		}
		if err == nil {
			continue
		}
		if now, e := d.inventory.domain(ctx, r.Op.VPS); e == nil && now.State == hypervisor.Off {
			return d.pivotedOff(ctx, r, now, snap)
		}
		return d.pivotLater(ctx, r, err)
	}
	return nil
}

// errRedefined: the definition names a base that no pivot of ours put there.
var errRedefined = errors.New("the VPS was defined anew")

// redefined says that somebody defined the VPS anew, which wipes our metadata.
// The merge sees to it that there is some: a base that a definition names
// without it may lack what the guest wrote last.
func redefined(dom hypervisor.Domain) bool { return dom.Metadata == "" }

func errDefinedAnew(dom hypervisor.Domain, disk vps.SnapshotDisk) error {
	return operation.Park(vps.Errorf(vps.CodeVPSChanged, "%s was defined anew with the base of disk %s before the merge had ended", dom.Name, disk.Target).
		WithRemedy("if %s was not started since, its newest data is in the overlay: point disk %s at it (virsh edit %s), then resume the operation; else keep both files and compare them first",
			dom.Name, disk.Target, dom.Name).
		Because(fmt.Errorf("base %s, overlay %s", disk.Base, disk.Overlay)))
}

// suspendForPivot stops a running guest. One that was stopped to let the merge
// become ready stands still already.
func (d *Daemon) suspendForPivot(ctx context.Context, r *operation.Run, dom hypervisor.Domain) error {
	if dom.State != hypervisor.Running {
		return nil
	}
	if err := d.suspend(ctx, r); err != nil {
		return d.pivotLater(ctx, r, err)
	}
	return nil
}

// suspend stops the guest of an operation; that it will run again is promised first.
func (d *Daemon) suspend(ctx context.Context, r *operation.Run) error {
	return d.withGuest(ctx, r.Op.VPS, func() error {
		owed := store.Promise{VPS: r.Op.VPS, Kind: store.PromiseResume, Since: d.now()}
		if err := r.Record(ctx, func(tx *store.Tx) error { return tx.Promise(ctx, owed) }); err != nil {
			return err
		}
		d.suspended.Store(r.Op.VPS, true)
		return d.Config.Host.Suspend(ctx, r.Op.VPS)
	})
}

// pivotReadyWait is how long a suspended guest may wait for a merge to become
// ready again: with the guest still, only what was in flight is left to copy.
const pivotReadyWait = 2 * time.Second

// pivotDisk pivots one disk, unless it has pivoted, and records it at once. A
// guest that somebody let run meanwhile is not pivoted: overlay and base would
// not be equal.
func (d *Daemon) pivotDisk(ctx context.Context, r *operation.Run, snap vps.Snapshot, i int) error {
	disk := snap.Disks[i]
	if disk.Pivoted {
		return nil
	}
	ours := false
	for until := time.Now().Add(pivotReadyWait); ; {
		changed := d.inventory.changes(r.Op.VPS)
		resumed, lost := d.inventory.timesResumed(r.Op.VPS), d.inventory.timesLost()
		dom, err := d.inventory.domain(ctx, r.Op.VPS)
		if err != nil {
			return err
		}
		now, ok := diskOf(dom.Disks, disk.Target)
		switch {
		case dom.State == hypervisor.Off:
			return hypervisor.ErrOff
		case ok && now.Path == disk.Base && !ours && redefined(dom):
			return errRedefined
		case ok && now.Path == disk.Base: // by this or an earlier try
			snap.Disks[i].Pivoted, snap.UpdatedAt = true, d.now()
			return r.Record(ctx, func(tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
		case dom.State == hypervisor.Running:
			return fmt.Errorf("disk %s not pivoted: somebody let the guest run: %w", disk.Target, hypervisor.ErrBusy)
		}
		if err := d.markPivot(ctx, dom.ID, disk, resumed, lost); err != nil {
			return err
		}
		err = d.Config.Host.Pivot(ctx, dom.ID, disk.Target)
		if err == nil {
			ours = true
			continue // and see that the live definition names the base
		}
		if !errors.Is(err, hypervisor.ErrNotReady) || time.Now().After(until) {
			return fmt.Errorf("disk %s not pivoted: %w", disk.Target, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// pivotLater lets the guest run again, each disk on the side it is on, and goes
// back to merging.
func (d *Daemon) pivotLater(ctx context.Context, r *operation.Run, cause error) error {
	err := d.keepResume(ctx, r.Op.VPS)
	if unavailable(cause) {
		return cause // nothing is known; the next try reads the host, still within this step
	}
	if err != nil {
		return err
	}
	return operation.Back("merge", cause)
}

// pivotedOff goes on with a VPS that is off. If it went off between pivots, the
// definition's choice of each disk holds: the guest stood still, so that overlay
// and base were equal.
func (d *Daemon) pivotedOff(ctx context.Context, r *operation.Run, dom hypervisor.Domain, snap vps.Snapshot) error {
	var notes deleteNotes
	if err := r.Plan(&notes); err != nil {
		return err
	}
	if err := d.checkNotRunInPivot(ctx, dom, snap); err != nil {
		return err
	}
	for i, disk := range snap.Disks {
		now, ok := diskOf(dom.PersistentDisks, disk.Target)
		if !ok || disk.Pivoted || now.Path != disk.Base || !notes.Merged[disk.Target].IsZero() {
			continue
		}
		if redefined(dom) {
			return errDefinedAnew(dom, disk)
		}
		snap.Disks[i].Pivoted = true
	}
	snap.UpdatedAt = d.now()
	return r.Record(ctx, func(tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
}

// goBackIfWritten goes back to merging when an overlay that has not pivoted is
// in use, or has changed since it was merged with the VPS off: somebody started
// the VPS meanwhile, and the overlay is still the authority.
func (d *Daemon) goBackIfWritten(ctx context.Context, r *operation.Run, snap vps.Snapshot) error {
	if !slices.ContainsFunc(snap.Disks, func(disk vps.SnapshotDisk) bool { return !disk.Pivoted }) {
		return nil
	}
	var notes deleteNotes
	if err := r.Plan(&notes); err != nil {
		return err
	}
	dom, err := d.inventory.domain(ctx, r.Op.VPS)
	if err != nil {
		return err
	}
	written := false
	var overlays []hypervisor.DiskSource
	for _, disk := range snap.Disks {
		if disk.Pivoted {
			continue
		}
		file, err := d.Config.Host.Stat(ctx, disk.Overlay)
		if err != nil {
			return err
		}
		now, ok := diskOf(dom.Disks, disk.Target)
		inUse := dom.State != hypervisor.Off && ok && now.Path == disk.Overlay
		written = written || inUse || !file.Modified.Equal(notes.Merged[disk.Target])
		if next, ok := diskOf(dom.PersistentDisks, disk.Target); ok && next.Path != disk.Overlay {
			overlays = append(overlays, hypervisor.DiskSource{Target: disk.Target, Path: disk.Overlay, Format: "qcow2"})
		}
	}
	if !written {
		return nil
	}
	if len(overlays) > 0 {
		if err := d.Config.Host.PointDisks(ctx, dom.ID, overlays); err != nil {
			return err
		}
	}
	return operation.Back("merge", fmt.Errorf("%s was started meanwhile: %w", dom.Name, hypervisor.ErrBusy))
}

// settle makes the base the authority: the next boot's definition names it on
// every disk, durably, and then the record says so. It looks at the overlays
// before and after, because somebody may start the VPS in between.
func (d *Daemon) settle(ctx context.Context, r *operation.Run) error {
	snap, err := d.store.Snapshot(ctx, r.Op.SnapshotID)
	if err != nil {
		return err
	}
	if err := d.goBackIfWritten(ctx, r, snap); err != nil {
		return err
	}
	if err := d.Config.Host.PointDisks(ctx, r.Op.VPS, baseSources(snap)); err != nil {
		return err
	}
	if err := d.goBackIfWritten(ctx, r, snap); err != nil {
		return err
	}
	for i := range snap.Disks {
		snap.Disks[i].Pivoted = true
	}
	snap.UpdatedAt = d.now()
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return nil
}

func baseSources(snap vps.Snapshot) []hypervisor.DiskSource {
	var s []hypervisor.DiskSource
	for _, disk := range snap.Disks {
		s = append(s, hypervisor.DiskSource{Target: disk.Target, Path: disk.Base, Format: disk.BaseFormat})
	}
	return s
}

// resumeAfterPivot lets a guest that we suspended run again.
func (d *Daemon) resumeAfterPivot(ctx context.Context, r *operation.Run) error {
	owed, err := d.store.HasPromise(ctx, r.Op.VPS, store.PromiseResume)
	if err != nil || !owed {
		return err
	}
	return d.keepResume(ctx, r.Op.VPS)
}

// unlinkOverlays removes what nothing uses any more, and the record with it.
func (d *Daemon) unlinkOverlays(ctx context.Context, r *operation.Run) error {
	snap, err := d.store.Snapshot(ctx, r.Op.SnapshotID)
	if err != nil {
		return err
	}
	dom, err := d.inventory.domain(ctx, r.Op.VPS)
	if err != nil {
		return err
	}
	if err := d.removeSnapshotFiles(ctx, dom, snap, "settle"); err != nil {
		return err
	}
	if err := d.Config.Host.SetMetadata(ctx, dom.ID, ""); err != nil {
		return err
	}
	snap.State, snap.UndoUntil, snap.UpdatedAt = vps.SnapshotGone, nil, d.now()
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return nil
}

// removeSnapshotFiles removes the overlays, stale since they were merged, and
// the saved variables. Where somebody has brought one back into the VPS, the
// operation goes back to the step that puts that right.
func (d *Daemon) removeSnapshotFiles(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot, right string) error {
	for _, disk := range snap.Disks {
		if now, ok := diskOf(dom.Disks, disk.Target); ok && dom.State != hypervisor.Off && now.Path == disk.Overlay {
			return operation.Park(vps.Errorf(vps.CodeVPSChanged, "%s was started on an old overlay of disk %s, which had been merged", dom.Name, disk.Target).
				WithRemedy("shut %s down, point disk %s at its base (virsh edit %s), and resume the operation; what was written since the start is lost with the old overlay",
					dom.Name, disk.Target, dom.Name).
				Because(fmt.Errorf("base %s, overlay %s", disk.Base, disk.Overlay)))
		}
		if uses(dom, disk.Overlay) {
			return operation.Back(right, fmt.Errorf("the definition of %s names the old overlay of disk %s again: %w", dom.Name, disk.Target, hypervisor.ErrBusy))
		}
		if err := d.removeRecorded(ctx, disk.Overlay, disk.OverlayInode); err != nil {
			return err
		}
	}
	return d.removeOwn(ctx, snap.NVRAMSaved)
}
