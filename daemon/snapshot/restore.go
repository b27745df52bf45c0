package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/dustin/go-humanize"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/metadata"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/verdict"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Restore begins to put the VPS's disks back to the snapshot. The snapshot
// stays, and the disks as they were before are kept for a while.
//
// Codes: not_found, confirmation_required, operation_in_progress, vps_changed,
// insufficient_space, hypervisor_unavailable.
func (s *Snapshots) Restore(
	ctx context.Context, ref string, r vps.RestoreRequest, actor vps.Actor,
) (vps.Operation, error) {
	if err := r.Check(); err != nil {
		return vps.Operation{}, err
	}
	if r.PowerAfter == "" {
		r.PowerAfter = vps.PowerPrevious
	}
	c, err := s.operations.Begin(ctx, ref, actor)
	if err != nil {
		return vps.Operation{}, err
	}
	defer c.Release()
	if err := verdict.Refused(verdict.Restore(c.Domain, c.Record), vps.Words{}); err != nil {
		return vps.Operation{}, err
	}
	// A restore takes back what the customer wrote since; the caller must name the
	// snapshot to show that it knows.
	if err := s.confirmed(ctx, c.Domain, *c.Record.Snapshot, r.Confirm); err != nil {
		return vps.Operation{}, err
	}
	if err := s.checkRestorable(ctx, c.Domain, *c.Record.Snapshot); err != nil {
		return vps.Operation{}, err
	}
	c.SnapshotID = c.Record.Snapshot.ID
	return c.Commit(ctx, vps.KindRestore, r, notesOfRestore(c.Domain, r.PowerAfter), nil)
}

// notesOfRestore remembers how the VPS was before it is stopped.
func notesOfRestore(dom hypervisor.Domain, after vps.PowerAfter) restoreNotes {
	return restoreNotes{Was: dom.State, PauseReason: dom.PauseReason, Saved: dom.ManagedSave, After: after}
}

// UndoRestore begins to put the disks back to how they were before the last
// restore. That is a restore too, with the kept disks in the place of fresh
// ones, and can be undone in the same way.
//
// Codes: not_found, operation_in_progress, vps_changed, hypervisor_unavailable.
func (s *Snapshots) UndoRestore(ctx context.Context, ref string, actor vps.Actor) (vps.Operation, error) {
	c, err := s.operations.Begin(ctx, ref, actor)
	if err != nil {
		return vps.Operation{}, err
	}
	defer c.Release()
	if err := verdict.Refused(verdict.Undo(c.Domain, c.Record, s.store.Now()), vps.Words{}); err != nil {
		return vps.Operation{}, err
	}
	snap := *c.Record.Snapshot
	if err := s.checkRestorable(ctx, c.Domain, snap); err != nil {
		return vps.Operation{}, err
	}
	c.SnapshotID = snap.ID
	notes := notesOfRestore(c.Domain, vps.PowerPrevious)
	notes.NVRAMSpare = snap.NVRAMUndo
	for _, disk := range snap.Disks {
		notes.Spares = append(notes.Spares, metadata.Replacement{Target: disk.Target,
			Path: disk.Undo, Inode: disk.UndoInode})
	}
	return c.Commit(ctx, vps.KindUndoRestore, nil, notes, nil)
}

// confirmed makes sure that the caller knows what a restore destroys.
func (s *Snapshots) confirmed(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot, confirm string) error {
	if confirm == snap.ID {
		return nil
	}
	lost := vps.Say(
		"everything that %s has written since %s (about %s) is taken back, and the VPS is stopped for a moment; the restore %s",
		dom.Name, snap.CreatedAt.Format(time.RFC3339), humanize.IBytes(uint64(max(0, s.deltaBytes(ctx, snap)))),
		undoable(s.policy().UndoKeep),
	)
	if confirm != "" {
		lost = vps.Say("the confirmation names another snapshot: %s", lost)
	}
	return vps.Refuse(vps.CodeConfirmationRequired, lost, vps.Words{}).
		WithRemedy("send {\"confirm\": \"%s\"} to confirm", snap.ID)
}

// undoable says for how long a restore can be undone. It names the largest unit in which
// the time is a whole number, hours at most.
func undoable(keep time.Duration) vps.Words {
	n := int(keep.Seconds())
	if n <= 0 {
		return vps.Say("cannot be undone")
	}
	units := [][2]vps.Words{
		{vps.Say("second"), vps.Say("seconds")},
		{vps.Say("minute"), vps.Say("minutes")},
		{vps.Say("hour"), vps.Say("hours")},
	}
	for n%60 == 0 && len(units) > 1 {
		n, units = n/60, units[1:]
	}
	return vps.Say("can be undone for %d %s", n, units[0][min(n, 2)-1])
}

// checkRestorable makes sure that everything a restore needs is there and ours. It is
// asked when the request comes in, so that the VPS is not powered off for a restore that
// cannot succeed (FAULTS.md, row 34).
func (s *Snapshots) checkRestorable(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) error {
	if target := s.images.SharedDisk(ctx, dom, image.Of(snap)); target != "" {
		return vps.Errorf(vps.CodeVPSChanged,
			"cannot restore %s: disk %s: another VPS of this host uses an image of the snapshot", dom.Name, target).
			WithRemedy("give the other VPS a disk of its own (virsh domblklist)")
	}
	for _, disk := range snap.Disks {
		changed := func(why string) *vps.Error {
			return vps.Errorf(vps.CodeVPSChanged, "cannot restore %s: disk %s: %s", dom.Name, disk.Target, why).
				WithRemedy("nothing was changed; find out on the host what was done to the disk (virsh domblklist %s)",
					dom.Name)
		}
		now, ok := image.Next(dom, disk)
		if !ok {
			return changed("the VPS has no such disk any more")
		}
		if !now.Is(disk.Overlay) {
			return changed("its next boot would use another image than the overlay that was recorded")
		}
		if live, ok := image.Live(dom, disk); ok && live.Job {
			return changed("a block job runs on it")
		}
		if live, ok := image.Live(dom, disk); !ok || !live.Is(disk.Overlay) {
			return changed("it runs on another image than the overlay that was recorded")
		}
		why, err := s.integrity.Damage(ctx, disk)
		if err != nil {
			return changed("a file of the snapshot cannot be read").Because(err)
		}
		if why != "" {
			return changed(why)
		}
		if err := s.checkBaseLies(ctx, dom, disk); err != nil {
			return err
		}
	}
	return s.images.CheckExchange(ctx, cannotRestore, dom.Name, snap, image.OverlayOfDisk)
}

// checkBaseLies makes sure that the snapshot's data lies on nothing that the VPS must not
// read: a snapshot may be older than the rule, and templates may have moved.
func (s *Snapshots) checkBaseLies(ctx context.Context, dom hypervisor.Domain, disk vps.SnapshotDisk) error {
	err := s.images.CheckChain(ctx, dom.ID, disk.Target, disk.Base, disk.BaseFormat)
	if why, ok := errors.AsType[*image.Unfit](err); ok {
		detail := vps.Say("cannot restore %s: disk %s: %s", dom.Name, disk.Target, why.Why)
		return vps.Refuse(vps.CodeVPSChanged, detail, why.Remedy).Because(why)
	}
	if err != nil {
		return fault.Explain("cannot restore "+dom.Name, err)
	}
	return nil
}

// restorer does the steps of a restore and of its undo.
type restorer struct{ *Snapshots }

// restoreNotes is what the steps of a restore keep for each other.
type restoreNotes struct {
	Was         hypervisor.State
	PauseReason hypervisor.PauseReason
	// Saved is set when its memory was saved to disk.
	Saved bool
	After vps.PowerAfter
	// Found is how it ran just before it was stopped; "" in operations of older versions.
	Found       hypervisor.State
	FoundReason hypervisor.PauseReason
	// Spares are the overlays that take the place of the present ones.
	Spares []metadata.Replacement
	// Made is when each spare was last written to before the exchange, by target.
	Made map[string]time.Time
	// NVRAMSpare are the UEFI variables that take the place of the present ones.
	NVRAMSpare string
	// NVRAMInode is the spare's, to tell whether the exchange was done.
	NVRAMInode uint64
	// Dropped are the files of an earlier undo, to be removed at the end.
	Dropped      []metadata.Replacement
	NVRAMDropped string
}

// restorePlan is the steps of a restore. From "exchange" on it only rolls forward, unless
// nothing was exchanged or an operator takes it back: nothing boots the VPS before "start".
func (s restorer) restorePlan(vps.Operation) (operation.Plan, error) {
	return append(operation.Plan{{Name: "spares", Do: s.makeSpares, Undo: s.removeSpares}}, s.exchangeSteps()...), nil
}

// undoPlan is the steps of the undo of a restore: the kept overlays take the place of
// fresh ones.
func (s restorer) undoPlan(vps.Operation) (operation.Plan, error) {
	return append(operation.Plan{{Name: "spares", Do: s.useKeptSpares}}, s.exchangeSteps()...), nil
}

// exchangeSteps are what a restore and its undo have in common. Until the disks are in
// their new places and the record says so, all of it can be taken back.
func (s restorer) exchangeSteps() operation.Plan {
	return operation.Plan{
		{Name: "try", Do: s.tryRestore},
		{Name: "stop", Do: s.beginRestore, Undo: s.takeBack, Uncut: true},
		{Name: "exchange", Do: s.exchangeDisks, Undo: s.takeBack, Irrevocable: true, Uncut: true},
		{Name: "definition", Do: s.verifyRestore, Undo: s.takeBack, Irrevocable: true, Uncut: true},
		{Name: "start", Do: s.startAfterRestore, Irrevocable: true, Uncut: true},
		{Name: "answer", Do: s.awaitGuest, Irrevocable: true},
		{Name: "tidy", Do: s.tidyRestore, Irrevocable: true},
	}
}

// makeSpares makes a fresh overlay on every base, as large as the disk was at
// the snapshot. It lies under the undo name, because the exchange will put the
// present overlay there in the same act.
func (s restorer) makeSpares(ctx context.Context, r *operation.Run) error {
	snap, notes, err := s.restoreState(ctx, r)
	if err != nil {
		return err
	}
	// A try before may have made some; their names are the same, and CreateOverlay
	// refuses one that exists.
	if r.Again() {
		if err := s.removeSpares(ctx, r); err != nil {
			return err
		}
	}
	notes.Spares, notes.Made = nil, map[string]time.Time{}
	for _, disk := range snap.Disks {
		path := image.UndoPath(disk.Base, snap.ID, disk.Target, r.Op.ID)
		file, err := s.host.CreateOverlay(
			ctx,
			hypervisor.Overlay{Path: path, Base: disk.Base, BaseFormat: disk.BaseFormat, SizeBytes: disk.SizeBytes},
		)
		if err != nil {
			return fmt.Errorf("fresh overlay of disk %s: %w", disk.Target, err)
		}
		notes.Spares = append(notes.Spares, metadata.Replacement{Target: disk.Target, Path: path, Inode: file.Inode})
		notes.Made[disk.Target] = file.Modified
		// They go only when this restore has succeeded ("tidy"): until then they are the
		// one way back.
		if disk.Undo != "" {
			notes.Dropped = append(
				notes.Dropped, metadata.Replacement{Target: disk.Target, Path: disk.Undo, Inode: disk.UndoInode},
			)
		}
	}
	if snap.NVRAMSaved != "" {
		notes.NVRAMSpare = image.NVRAMPath(snap.NVRAM, snap.ID, "undo-"+r.Op.ID)
		notes.NVRAMDropped = snap.NVRAMUndo
		file, err := s.host.Copy(ctx, snap.NVRAMSaved, notes.NVRAMSpare)
		if err != nil {
			return err
		}
		notes.NVRAMInode = file.Inode
	}
	return r.SetPlan(notes)
}

// removeSpares takes makeSpares back. What lies under a spare's name and is the disk itself,
// as when an exchange could not be taken back, stays.
func (s restorer) removeSpares(ctx context.Context, r *operation.Run) error {
	snap, _, err := s.restoreState(ctx, r)
	if err != nil {
		return err
	}
	for _, disk := range snap.Disks {
		path := image.UndoPath(disk.Base, snap.ID, disk.Target, r.Op.ID)
		file, err := s.host.Stat(ctx, path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && file.Inode == disk.OverlayInode {
			continue
		}
		if err != nil {
			return err
		}
		if err := s.host.Remove(ctx, path, file.Inode); err != nil {
			return err
		}
	}
	if snap.NVRAMSaved == "" {
		return nil
	}
	return s.removeOwn(ctx, image.NVRAMPath(snap.NVRAM, snap.ID, "undo-"+r.Op.ID))
}

// useKeptSpares checks that the disks from before the restore are still the ones recorded.
func (s restorer) useKeptSpares(ctx context.Context, r *operation.Run) error {
	_, notes, err := s.restoreState(ctx, r)
	if err != nil {
		return err
	}
	notes.Made = map[string]time.Time{}
	for _, spare := range notes.Spares {
		file, err := s.host.Stat(ctx, spare.Path)
		if err != nil {
			return err
		}
		if file.Inode != spare.Inode {
			return fmt.Errorf("the kept disk %s: %w", spare.Target, hypervisor.ErrReplaced)
		}
		notes.Made[spare.Target] = file.Modified
	}
	if notes.NVRAMSpare != "" {
		file, err := s.host.Stat(ctx, notes.NVRAMSpare)
		if err != nil {
			return err
		}
		notes.NVRAMInode = file.Inode
	}
	return r.SetPlan(notes)
}

// beginRestore says in the VPS's own definition what is about to happen, and stops it.
func (s restorer) beginRestore(ctx context.Context, r *operation.Run) error {
	_, notes, err := s.restoreState(ctx, r)
	if err != nil {
		return err
	}
	// The copy in the definition outlives a lost database, so that a rebuild can tell
	// which disks were exchanged.
	if err := s.integrity.WriteRestoring(ctx, r, metadata.Restoring{Replacements: notes.Spares,
		NVRAMInode: notes.NVRAMInode}); err != nil {
		return err
	}
	return s.host.PowerOff(ctx, r.Op.VPS)
}

// exchangeDisks swaps each overlay with its spare, in one atomic act per disk. The
// inode under the disk's name tells, whenever we look, which of the two is there.
// While none is, whatever stands in the way takes the whole restore back.
func (s restorer) exchangeDisks(ctx context.Context, r *operation.Run) error {
	snap, notes, err := s.restoreState(ctx, r)
	if err != nil {
		return err
	}
	if err := s.host.PowerOff(ctx, r.Op.VPS); err != nil {
		return s.unlessUntouched(ctx, snap, notes, err) // somebody may have started it between the steps
	}
	dom, err := s.inventory.Read(ctx, r.Op.VPS)
	if err != nil {
		return err
	}
	if dom.MigratedAway {
		return operation.Park(fault.Migrated(dom)) // just before it was stopped; it would run on both hosts
	}
	if err := s.exchangeAll(ctx, dom, snap, notes); err != nil {
		return s.unlessUntouched(ctx, snap, notes, err)
	}
	// The hook should have prevented a start; it may be missing on this host.
	if dom, err = s.inventory.Read(ctx, r.Op.VPS); err != nil {
		return err
	}
	if dom.State != hypervisor.Off {
		// It may have opened one disk before and another after its exchange.
		return operation.Back("stop", fmt.Errorf("%s was started meanwhile: %w", dom.Name, hypervisor.ErrBusy))
	}
	return nil
}

// exchangeAll tries once more before the first exchange: a file system can have become
// read-only since. Saved memory belongs to the disks that go; it is dropped only then.
func (s restorer) exchangeAll(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot, notes restoreNotes) error {
	begun, err := s.anyExchanged(ctx, snap, notes)
	if err == nil && !begun {
		err = s.images.CheckExchange(ctx, cannotRestore, dom.Name, snap, image.OverlayOfDisk)
	}
	if err != nil {
		return err
	}
	if err := s.host.RemoveManagedSave(ctx, dom.ID); err != nil {
		return err
	}
	for i, spare := range notes.Spares {
		disk := snap.Disks[i]
		if err := s.exchange(ctx, disk.Overlay, spare.Path, disk.OverlayInode, spare.Inode); err != nil {
			return fmt.Errorf("disk %s: %w", disk.Target, err)
		}
	}
	if notes.NVRAMSpare == "" {
		return nil
	}
	present, err := s.host.Stat(ctx, snap.NVRAM)
	if err != nil || present.Inode == notes.NVRAMInode {
		return err
	}
	return s.host.Exchange(ctx, snap.NVRAM, notes.NVRAMSpare)
}

// exchange brings the file with inode after under the name path, and the one with inode
// before under the other name. It may run any number of times: the inode tells whether
// it was done before. A third file under the name is somebody else's, and is not
// touched.
func (s restorer) exchange(ctx context.Context, path, other string, before, after uint64) error {
	present, err := s.host.Stat(ctx, path)
	switch {
	case err != nil:
		return err
	case present.Inode == after:
		return nil
	case present.Inode != before:
		return operation.Park(fmt.Errorf("%s: %w", path, hypervisor.ErrReplaced))
	}
	return s.host.Exchange(ctx, path, other)
}

// verifyRestore makes sure that the next boot uses the restored disks, and
// records the snapshot as available again.
func (s restorer) verifyRestore(ctx context.Context, r *operation.Run) error {
	snap, notes, err := s.restoreState(ctx, r)
	if err != nil {
		return err
	}
	// libvirt's own file is made durable with it; a stated backing store of the old
	// overlay goes.
	dom, err := s.inventory.Read(ctx, snap.VPS)
	if err != nil {
		return err
	}
	if err := s.host.PointDisks(ctx, snap.VPS, image.OverlaySources(dom, snap)); err != nil {
		return err
	}
	now := s.store.Now()
	until := now.Add(s.policy().UndoKeep)
	for i, spare := range notes.Spares {
		disk := &snap.Disks[i]
		disk.Undo, disk.UndoInode, disk.OverlayInode = spare.Path, disk.OverlayInode, spare.Inode
	}
	snap.NVRAMUndo = notes.NVRAMSpare
	snap.State, snap.UndoUntil, snap.UpdatedAt = vps.SnapshotAvailable, &until, now
	// An undo goes back to a state after the snapshot, which is no restore of it.
	if r.Op.Kind == vps.KindRestore {
		snap.RestoredAt = &now
	}
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return nil
}

// startAfterRestore brings the VPS back as it was, or as was asked.
func (s restorer) startAfterRestore(ctx context.Context, r *operation.Run) error {
	_, notes, err := s.restoreState(ctx, r)
	if err != nil {
		return err
	}
	start, paused := notes.powerAfter()
	if start {
		// Start succeeds for a VPS that runs already, so that a resumed step is no
		// error.
		if err := s.host.Start(ctx, r.Op.VPS, paused); err != nil {
			return fmt.Errorf("the disks are restored, but the VPS does not start: %w", err)
		}
	}
	r.Op.Result = notes.powerResult()
	return nil
}

// powerResult says what has become of the VPS, for a human.
func (n restoreNotes) powerResult() string {
	text := "the VPS is off"
	switch start, paused := n.powerAfter(); {
	case paused:
		text = "the VPS was started and is paused, as before"
	case start:
		text = "the VPS was started"
	}
	if n.Saved {
		text += "; its saved memory belonged to the disks of before and was dropped"
	}
	return text
}

// powerAfter reports whether the VPS runs again after the restore, and whether it is paused
// then. A VPS that was paused for want of space or for an I/O error was not paused by
// anyone, so it runs.
func (n restoreNotes) powerAfter() (start, paused bool) {
	switch n.After {
	case vps.PowerOff:
		return false, false
	case vps.PowerRunning:
		return true, false
	}
	paused = n.Was == hypervisor.Paused && n.PauseReason != hypervisor.PausedByIO &&
		n.PauseReason != hypervisor.PausedByNoSpace
	return n.Was != hypervisor.Off, paused
}

// awaitGuest waits until the guest answers again, as long as a setting says.
func (s restorer) awaitGuest(ctx context.Context, r *operation.Run) error {
	_, notes, err := s.restoreState(ctx, r)
	if err != nil {
		return err
	}
	if start, paused := notes.powerAfter(); !start || paused {
		return nil
	}
	return s.guests.AwaitAgent(ctx, r, s.policy().AgentWait)
}

// tidyRestore removes the undo of an earlier restore, which this one replaces.
func (s restorer) tidyRestore(ctx context.Context, r *operation.Run) error {
	_, notes, err := s.restoreState(ctx, r)
	if err != nil {
		return err
	}
	for _, spare := range notes.Dropped {
		// By their inode: the names were free again, for whatever the operator put
		// there.
		if err := s.removeRecorded(ctx, spare.Path, spare.Inode); err != nil {
			return err
		}
	}
	if err := s.removeOwn(ctx, notes.NVRAMDropped); err != nil {
		return err
	}
	return s.integrity.WriteMetadata(ctx, r)
}

// restoreState reads the snapshot and what earlier steps noted.
func (s restorer) restoreState(ctx context.Context, r *operation.Run) (vps.Snapshot, restoreNotes, error) {
	var notes restoreNotes
	if err := r.Plan(&notes); err != nil {
		return vps.Snapshot{}, notes, err
	}
	snap, err := s.store.Snapshot(ctx, r.Op.SnapshotID)
	return snap, notes, err
}
