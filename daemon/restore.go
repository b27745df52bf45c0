package daemon

import (
	"context"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"

	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Restore begins to put the VPS's disks back to the snapshot. The snapshot
// stays, and the disks as they were before are kept for a while.
//
// Codes: not_found, confirmation_required, operation_in_progress, vps_changed,
// insufficient_space, hypervisor_unavailable.
func (d *Daemon) Restore(ctx context.Context, ref string, r vps.RestoreRequest, actor vps.Actor) (vps.Operation, error) {
	if err := r.Check(); err != nil {
		return vps.Operation{}, err
	}
	if r.PowerAfter == "" {
		r.PowerAfter = vps.PowerPrevious
	}
	return d.accept(ctx, ref, request{
		kind: vps.KindRestore, actor: actor, body: r,
		check: func(dom hypervisor.Domain, rec record, op *vps.Operation) error {
			if err := refused(restoreVerdict(dom, rec), vps.Words{}); err != nil {
				return err
			}
			if err := d.confirmed(ctx, dom, *rec.snapshot, r.Confirm); err != nil {
				return err
			}
			if err := d.checkRestorable(ctx, dom, *rec.snapshot); err != nil {
				return err
			}
			op.SnapshotID = rec.snapshot.ID
			return setPlan(op, restoreNotes{Was: dom.State, PauseReason: dom.PauseReason, Saved: dom.ManagedSave, After: r.PowerAfter})
		},
	})
}

// UndoRestore begins to put the disks back to how they were before the last
// restore. That is a restore too, with the kept disks in the place of fresh
// ones, and can be undone in the same way.
//
// Codes: not_found, operation_in_progress, vps_changed, hypervisor_unavailable.
func (d *Daemon) UndoRestore(ctx context.Context, ref string, actor vps.Actor) (vps.Operation, error) {
	return d.accept(ctx, ref, request{
		kind: vps.KindUndoRestore, actor: actor,
		check: func(dom hypervisor.Domain, rec record, op *vps.Operation) error {
			if err := refused(undoVerdict(dom, rec, d.now()), vps.Words{}); err != nil {
				return err
			}
			if err := d.checkRestorable(ctx, dom, *rec.snapshot); err != nil {
				return err
			}
			op.SnapshotID = rec.snapshot.ID
			notes := restoreNotes{Was: dom.State, PauseReason: dom.PauseReason, Saved: dom.ManagedSave, After: vps.PowerPrevious, NVRAMSpare: rec.snapshot.NVRAMUndo}
			for _, disk := range rec.snapshot.Disks {
				notes.Spares = append(notes.Spares, spare{Target: disk.Target, Path: disk.Undo, Inode: disk.UndoInode})
			}
			return setPlan(op, notes)
		},
	})
}

// confirmed makes sure that the caller knows what a restore destroys.
func (d *Daemon) confirmed(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot, confirm string) error {
	if confirm == snap.ID {
		return nil
	}
	lost := vps.Say("everything that %s has written since %s (about %s) is taken back, and the VPS is stopped for a moment; the restore %s",
		dom.Name, snap.CreatedAt.Format(time.RFC3339), humanize.IBytes(uint64(max(0, d.deltaBytes(ctx, snap)))), undoable(d.present().UndoKeep))
	if confirm != "" {
		lost = vps.Say("the confirmation names another snapshot: %s", lost)
	}
	return vps.Refuse(vps.CodeConfirmationRequired, lost, vps.Words{}).WithRemedy("send {\"confirm\": \"%s\"} to confirm", snap.ID)
}

// undoable says for how long a restore can be undone.
func undoable(keep time.Duration) vps.Words {
	n := int(keep.Seconds())
	if n <= 0 {
		return vps.Say("cannot be undone")
	}
	units := [][2]vps.Words{{vps.Say("second"), vps.Say("seconds")}, {vps.Say("minute"), vps.Say("minutes")}, {vps.Say("hour"), vps.Say("hours")}}
	for n%60 == 0 && len(units) > 1 {
		n, units = n/60, units[1:]
	}
	return vps.Say("can be undone for %d %s", n, units[0][min(n, 2)-1])
}

// checkRestorable makes sure that everything a restore needs is there and ours.
func (d *Daemon) checkRestorable(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) error {
	if target := d.sharedDisk(ctx, dom, imagesOf(snap)); target != "" {
		return vps.Errorf(vps.CodeVPSChanged, "cannot restore %s: disk %s: another VPS of this host uses an image of the snapshot", dom.Name, target).
			WithRemedy("give the other VPS a disk of its own (virsh domblklist)")
	}
	for _, disk := range snap.Disks {
		changed := func(why string) *vps.Error {
			return vps.Errorf(vps.CodeVPSChanged, "cannot restore %s: disk %s: %s", dom.Name, disk.Target, why).
				WithRemedy("nothing was changed; find out on the host what was done to the disk (virsh domblklist %s)", dom.Name)
		}
		now, ok := diskOf(dom.PersistentDisks, disk.Target)
		if !ok {
			return changed("the VPS has no such disk any more")
		}
		if now.Path != disk.Overlay {
			return changed("its next boot would use another image than the overlay that was recorded")
		}
		if live, ok := diskOf(dom.Disks, disk.Target); ok && live.Job {
			return changed("a block job runs on it")
		}
		if live, ok := diskOf(dom.Disks, disk.Target); !ok || live.Path != disk.Overlay {
			return changed("it runs on another image than the overlay that was recorded")
		}
		why, err := d.damage(ctx, disk)
		if err != nil {
			return changed("a file of the snapshot cannot be read").Because(err)
		}
		if why != "" {
			return changed(why)
		}
	}
	return nil
}

// restoreNotes is what the steps of a restore keep for each other.
type restoreNotes struct {
	Was         hypervisor.State
	PauseReason hypervisor.PauseReason
	// Saved says that its memory was saved to disk.
	Saved bool
	After vps.PowerAfter
	// Spares are the overlays that take the place of the present ones.
	Spares []spare
	// NVRAMSpare are the UEFI variables that take the place of the present ones.
	NVRAMSpare string
	// NVRAMInode is the spare's, to tell whether the exchange was done.
	NVRAMInode uint64
	// Dropped are the files of an earlier undo, to be removed at the end.
	Dropped      []spare
	NVRAMDropped string
}

// spare is an overlay waiting under another name.
type spare struct {
	Target string
	Path   string
	Inode  uint64
}

// restorePlan is the steps of a restore and of its undo. From "stop" on it
// only rolls forward: nothing boots the VPS before "start".
func (d *Daemon) restorePlan(op vps.Operation) operation.Plan {
	plan := operation.Plan{
		{Name: "spares", Do: d.makeSpares, Undo: d.removeSpares},
		{Name: "stop", Do: d.beginRestore, Irrevocable: true, Uncut: true},
		{Name: "exchange", Do: d.exchangeDisks, Irrevocable: true, Uncut: true},
		{Name: "definition", Do: d.verifyRestore, Irrevocable: true, Uncut: true},
		{Name: "start", Do: d.startAfterRestore, Irrevocable: true, Uncut: true},
		{Name: "answer", Do: d.awaitGuest, Irrevocable: true},
		{Name: "tidy", Do: d.tidyRestore, Irrevocable: true},
	}
	if op.Kind == vps.KindUndoRestore {
		plan[0] = operation.Step{Name: "spares", Do: d.useKeptSpares}
	}
	return plan
}

// makeSpares makes a fresh overlay on every base, as large as the disk was at
// the snapshot. It lies under the undo name, because the exchange will put the
// present overlay there in the same act.
func (d *Daemon) makeSpares(ctx context.Context, r *operation.Run) error {
	snap, notes, err := d.restoreState(ctx, r)
	if err != nil {
		return err
	}
	if r.Again() {
		if err := d.removeSpares(ctx, r); err != nil {
			return err
		}
	}
	notes.Spares = nil
	for _, disk := range snap.Disks {
		path := undoPath(disk.Base, snap.ID, disk.Target, r.Op.ID)
		file, err := d.Config.Host.CreateOverlay(ctx, hypervisor.Overlay{Path: path, Base: disk.Base, BaseFormat: disk.BaseFormat, SizeBytes: disk.SizeBytes})
		if err != nil {
			return fmt.Errorf("fresh overlay of disk %s: %w", disk.Target, err)
		}
		notes.Spares = append(notes.Spares, spare{disk.Target, path, file.Inode})
		if disk.Undo != "" {
			notes.Dropped = append(notes.Dropped, spare{disk.Target, disk.Undo, disk.UndoInode})
		}
	}
	if snap.NVRAMSaved != "" {
		notes.NVRAMSpare = nvramPath(snap.NVRAM, snap.ID, "undo-"+r.Op.ID)
		notes.NVRAMDropped = snap.NVRAMUndo
		file, err := d.Config.Host.Copy(ctx, snap.NVRAMSaved, notes.NVRAMSpare)
		if err != nil {
			return err
		}
		notes.NVRAMInode = file.Inode
	}
	return d.stageRestoring(ctx, r, snap, notes)
}

// removeSpares takes makeSpares back.
func (d *Daemon) removeSpares(ctx context.Context, r *operation.Run) error {
	snap, _, err := d.restoreState(ctx, r)
	if err != nil {
		return err
	}
	for _, disk := range snap.Disks {
		if err := d.removeOwn(ctx, undoPath(disk.Base, snap.ID, disk.Target, r.Op.ID)); err != nil {
			return err
		}
	}
	if snap.NVRAMSaved == "" {
		return nil
	}
	return d.removeOwn(ctx, nvramPath(snap.NVRAM, snap.ID, "undo-"+r.Op.ID))
}

// useKeptSpares checks that the disks from before the restore are still the ones recorded.
func (d *Daemon) useKeptSpares(ctx context.Context, r *operation.Run) error {
	snap, notes, err := d.restoreState(ctx, r)
	if err != nil {
		return err
	}
	for _, s := range notes.Spares {
		file, err := d.Config.Host.Stat(ctx, s.Path)
		if err != nil {
			return err
		}
		if file.Inode != s.Inode {
			return fmt.Errorf("the kept disk %s: %w", s.Target, hypervisor.ErrReplaced)
		}
	}
	if notes.NVRAMSpare != "" {
		file, err := d.Config.Host.Stat(ctx, notes.NVRAMSpare)
		if err != nil {
			return err
		}
		notes.NVRAMInode = file.Inode
	}
	return d.stageRestoring(ctx, r, snap, notes)
}

func (d *Daemon) stageRestoring(ctx context.Context, r *operation.Run, snap vps.Snapshot, notes restoreNotes) error {
	snap.State, snap.UpdatedAt = vps.SnapshotRestoring, d.now()
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return r.SetPlan(notes)
}

// beginRestore says in the VPS's own definition what is about to happen, and stops it.
func (d *Daemon) beginRestore(ctx context.Context, r *operation.Run) error {
	_, notes, err := d.restoreState(ctx, r)
	if err != nil {
		return err
	}
	if err := d.copyRecord(ctx, r, notes); err != nil {
		return err
	}
	return d.stopForRestore(ctx, r)
}

// stopForRestore ends QEMU, at once: what it holds in memory belongs to the disks
// that are about to go. The same holds for saved memory.
func (d *Daemon) stopForRestore(ctx context.Context, r *operation.Run) error {
	if err := d.Config.Host.PowerOff(ctx, r.Op.VPS); err != nil {
		return err
	}
	return d.Config.Host.RemoveManagedSave(ctx, r.Op.VPS)
}

// exchangeDisks swaps each overlay with its spare, in one atomic act per disk. The
// inode under the disk's name tells, whenever we look, which of the two is there.
func (d *Daemon) exchangeDisks(ctx context.Context, r *operation.Run) error {
	snap, notes, err := d.restoreState(ctx, r)
	if err != nil {
		return err
	}
	if err := d.stopForRestore(ctx, r); err != nil {
		return err // somebody may have started it between the steps
	}
	dom, err := d.inventory.domain(ctx, r.Op.VPS)
	if err != nil {
		return err
	}
	if dom.MigratedAway {
		return operation.Park(errMigrated(dom)) // just before it was stopped; it would run on both hosts
	}
	for i, s := range notes.Spares {
		disk := snap.Disks[i]
		if err := d.exchange(ctx, disk.Overlay, s.Path, disk.OverlayInode, s.Inode); err != nil {
			return fmt.Errorf("disk %s: %w", disk.Target, err)
		}
	}
	if notes.NVRAMSpare != "" {
		present, err := d.Config.Host.Stat(ctx, snap.NVRAM)
		if err != nil {
			return err
		}
		if present.Inode != notes.NVRAMInode {
			if err := d.Config.Host.Exchange(ctx, snap.NVRAM, notes.NVRAMSpare); err != nil {
				return err
			}
		}
	}
	if dom, err = d.inventory.domain(ctx, r.Op.VPS); err != nil {
		return err
	}
	if dom.State != hypervisor.Off {
		// It may have opened one disk before and another after its exchange.
		return operation.Back("stop", fmt.Errorf("%s was started meanwhile: %w", dom.Name, hypervisor.ErrBusy))
	}
	return nil
}

// exchange brings the file with inode after under the name path, and the one with
// inode before under the other name.
func (d *Daemon) exchange(ctx context.Context, path, other string, before, after uint64) error {
	present, err := d.Config.Host.Stat(ctx, path)
	switch {
	case err != nil:
		return err
	case present.Inode == after:
		return nil
	case present.Inode != before:
		return operation.Park(fmt.Errorf("%s: %w", path, hypervisor.ErrReplaced))
	}
	return d.Config.Host.Exchange(ctx, path, other)
}

// verifyRestore makes sure that the next boot uses the restored disks, and
// records the snapshot as available again.
func (d *Daemon) verifyRestore(ctx context.Context, r *operation.Run) error {
	snap, notes, err := d.restoreState(ctx, r)
	if err != nil {
		return err
	}
	if err := d.Config.Host.PointDisks(ctx, snap.VPS, overlaySources(snap)); err != nil {
		return err
	}
	now := d.now()
	until := now.Add(d.present().UndoKeep)
	for i, s := range notes.Spares {
		disk := &snap.Disks[i]
		disk.Undo, disk.UndoInode, disk.OverlayInode = s.Path, disk.OverlayInode, s.Inode
	}
	snap.NVRAMUndo = notes.NVRAMSpare
	snap.State, snap.UndoUntil, snap.UpdatedAt = vps.SnapshotAvailable, &until, now
	if r.Op.Kind == vps.KindRestore {
		snap.RestoredAt = &now
	}
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return nil
}

// startAfterRestore brings the VPS back as it was, or as was asked.
func (d *Daemon) startAfterRestore(ctx context.Context, r *operation.Run) error {
	_, notes, err := d.restoreState(ctx, r)
	if err != nil {
		return err
	}
	start, paused := notes.powerAfter()
	if start {
		if err := d.Config.Host.Start(ctx, r.Op.VPS, paused); err != nil {
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

func (n restoreNotes) powerAfter() (start, paused bool) {
	switch n.After {
	case vps.PowerOff:
		return false, false
	case vps.PowerRunning:
		return true, false
	}
	paused = n.Was == hypervisor.Paused && n.PauseReason != hypervisor.PausedByIO && n.PauseReason != hypervisor.PausedByNoSpace
	return n.Was != hypervisor.Off, paused
}

// agentPing is how long one question to the booting guest may take.
const agentPing = 2 * time.Second

// awaitGuest waits, for a bounded time, until the guest answers again, and says
// whether it did. A guest without agent is not waited for.
func (d *Daemon) awaitGuest(ctx context.Context, r *operation.Run) error {
	_, notes, err := d.restoreState(ctx, r)
	if err != nil {
		return err
	}
	if start, paused := notes.powerAfter(); !start || paused {
		return nil
	}
	for until := time.Now().Add(d.present().AgentWait); ; {
		changed := d.inventory.changes(r.Op.VPS)
		dom, err := d.inventory.domain(ctx, r.Op.VPS)
		if err != nil {
			return err
		}
		if dom.Agent == hypervisor.AgentNone || dom.State != hypervisor.Running {
			return nil
		}
		if dom.Agent == hypervisor.AgentConnected && d.Config.Host.PingAgent(ctx, dom.ID, agentPing) == nil {
			r.Op.Result += "; the guest answers again"
			return nil
		}
		if time.Now().After(until) {
			r.Op.Result += fmt.Sprintf("; the guest agent has not answered within %s", d.present().AgentWait)
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-time.After(time.Second):
		}
	}
}

// tidyRestore removes the undo of an earlier restore, which this one replaces.
func (d *Daemon) tidyRestore(ctx context.Context, r *operation.Run) error {
	_, notes, err := d.restoreState(ctx, r)
	if err != nil {
		return err
	}
	for _, s := range notes.Dropped {
		if err := d.removeRecorded(ctx, s.Path, s.Inode); err != nil {
			return err
		}
	}
	if err := d.removeOwn(ctx, notes.NVRAMDropped); err != nil {
		return err
	}
	return d.writeMetadata(ctx, r)
}

func (d *Daemon) restoreState(ctx context.Context, r *operation.Run) (vps.Snapshot, restoreNotes, error) {
	var notes restoreNotes
	if err := r.Plan(&notes); err != nil {
		return vps.Snapshot{}, notes, err
	}
	snap, err := d.store.Snapshot(ctx, r.Op.SnapshotID)
	return snap, notes, err
}
