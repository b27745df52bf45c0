package daemon

import (
	"context"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// undoEnded is what an operation says that gave the undo of a restore up.
const undoEnded = "the last restore can no longer be undone"

// dropUndo removes the disks from before the last restore and stages the record
// of it. The record keeps naming the files until they are gone, so that a crash
// in between leaves none behind.
func (d *Daemon) dropUndo(ctx context.Context, snap vps.Snapshot, stage func(func(context.Context, *store.Tx) error)) error {
	if !undoIsKept(snap) {
		return nil
	}
	for i, disk := range snap.Disks {
		if err := d.removeRecorded(ctx, disk.Undo, disk.UndoInode); err != nil {
			return err
		}
		snap.Disks[i].Undo, snap.Disks[i].UndoInode = "", 0
	}
	if err := d.removeOwn(ctx, snap.NVRAMUndo); err != nil {
		return err
	}
	snap.NVRAMUndo, snap.UndoUntil, snap.UpdatedAt = "", nil, d.now()
	stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return nil
}

// expireUndo removes the disks from before a restore when their time is over.
func (d *Daemon) expireUndo(ctx context.Context, snap vps.Snapshot) error {
	release, err := d.locks.acquire(ctx, snap.VPS)
	if err != nil {
		return err
	}
	defer release()
	rec, err := readRecord(ctx, d.store, snap.VPS)
	if err != nil || rec.operation != nil || rec.snapshot == nil || rec.snapshot.UndoUntil == nil ||
		d.now().Before(*rec.snapshot.UndoUntil) {
		return err // whatever works on the VPS now will have its turn with the undo
	}
	var recordDropped func(context.Context, *store.Tx) error
	stage := func(write func(context.Context, *store.Tx) error) { recordDropped = write }
	if err := d.dropUndo(ctx, *rec.snapshot, stage); err != nil || recordDropped == nil {
		return err
	}
	return d.store.Write(ctx, func(tx *store.Tx) error {
		if err := recordDropped(ctx, tx); err != nil {
			return err
		}
		return d.say(ctx, tx, vps.Message{VPS: snap.VPS, Kind: vps.MessageUndoEnded,
			Actor:  vps.Actor{Name: "vpssnapd", Way: vps.WayExpiry},
			Phrase: vps.PhraseUndoEnded})
	})
}
