package snapshot

import (
	"context"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/verdict"
	"vpssnapd/daemon/vps"
)

// undoEnded is what an operation reports when it gave up the undo of a restore.
const undoEnded = "the last restore can no longer be undone"

// dropUndo removes the disks from before the last restore and stages the record
// of it. The record keeps naming the files until they are gone, so that a crash
// in between leaves none behind.
func (s *Snapshots) dropUndo(
	ctx context.Context, snap vps.Snapshot, stage func(func(context.Context, *store.Tx) error),
) error {
	if !verdict.UndoIsKept(snap) {
		return nil
	}
	// By inode: the name may belong to a file of somebody else by now.
	for i, disk := range snap.Disks {
		if err := s.removeRecorded(ctx, disk.Undo, disk.UndoInode); err != nil {
			return err
		}
		snap.Disks[i].Undo, snap.Disks[i].UndoInode = "", 0
	}
	if err := s.removeOwn(ctx, snap.NVRAMUndo); err != nil {
		return err
	}
	snap.NVRAMUndo, snap.UndoUntil, snap.UpdatedAt = "", nil, s.store.Now()
	stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return nil
}

// ExpireUndo removes the disks from before a restore when their time is over.
func (s *Snapshots) ExpireUndo(ctx context.Context, vpsID string) error {
	// It works on files that a restore or a delete uses as well, so it takes the VPS's
	// lock as they do.
	release, err := s.inventory.Lock(ctx, vpsID)
	if err != nil {
		return err
	}
	defer release()
	rec, err := s.store.Record(ctx, vpsID)
	if err != nil || rec.Operation != nil || rec.Snapshot == nil || rec.Snapshot.UndoUntil == nil ||
		s.store.Now().Before(*rec.Snapshot.UndoUntil) {
		return err // whatever works on the VPS now will have its turn with the undo
	}
	var recordDropped func(context.Context, *store.Tx) error
	stage := func(write func(context.Context, *store.Tx) error) { recordDropped = write }
	if err := s.dropUndo(ctx, *rec.Snapshot, stage); err != nil || recordDropped == nil {
		return err
	}
	return s.store.Write(ctx, func(tx *store.Tx) error {
		if err := recordDropped(ctx, tx); err != nil {
			return err
		}
		return tx.AddMessage(ctx, vps.Message{VPS: vpsID, Kind: vps.MessageUndoEnded,
			Actor:  vps.ActorExpiry,
			Phrase: vps.PhraseUndoEnded})
	})
}
