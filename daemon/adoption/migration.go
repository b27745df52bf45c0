package adoption

import (
	"context"
	"errors"
	"time"

	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// A VPS that is migrated takes its snapshot along: the files lie on storage that
// both hosts share, and the copy of the record travels in the definition. The
// host that it leaves lets go of it, the one that it reaches adopts it.

// departed lets go of a VPS that was migrated to another host. Its snapshot's
// record ends and names no file any more, so that nothing here will ever touch
// what the other host works on. While an operation is open it keeps the record.
func (a *Adopter) departed(ctx context.Context, id string) error {
	release, err := a.inventory.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	// Read under the lock: the VPS may have come back by now.
	dom, err := a.inventory.Read(ctx, id) // not found: its definition went with it
	if err != nil && !errors.Is(err, hypervisor.ErrNotFound) || err == nil && !dom.MigratedAway {
		return err // not known, or it has come back
	}
	rec, err := a.store.Record(ctx, id)
	if err != nil || rec.Operation != nil {
		return err
	}
	snapshots, err := a.store.SnapshotsOf(ctx, id)
	if err != nil || rec.Option == nil && len(snapshots) == 0 {
		return err
	}
	name := a.inventory.Name(id)
	a.logger.Info("VPS was migrated to another host and is let go", "vps", name, "snapshots", len(snapshots))
	defer a.cutOff(id, "the VPS was migrated to another host") // which may merge the snapshot
	// The option goes in the same transaction, or its end would delete what the other
	// host works on.
	err = a.store.Write(failpoint.Within(ctx, "daemon", "departed"), func(tx *store.Tx) error {
		for _, snap := range snapshots {
			if err := tx.LetGoOfSnapshot(ctx, snap.ID, tx.Now()); err != nil {
				return err
			}
		}
		if rec.Option != nil {
			if err := tx.SaveOption(ctx, rec.Option.Leave(tx.Now()), vps.ActorWatch,
				"the VPS was migrated to another host"); err != nil {
				return err
			}
		}
		return tx.AddMessage(ctx, vps.Message{VPS: id, VPSName: name, Kind: vps.MessageMoved, Actor: vps.ActorWatch,
			Phrase: vps.PhraseMovedAway})
	})
	a.onMoved()
	return err
}

// Departed is departed, for who can only log its error.
func (a *Adopter) Departed(ctx context.Context, id string) {
	if err := a.departed(ctx, id); err != nil && ctx.Err() == nil {
		a.logger.Error("VPS that was migrated away not let go", a.inventory.LogAttr(id), "error", err)
	}
}

// arrived records the snapshot that a VPS has brought along from another host, if
// the files prove it to be whole and the VPS is active here: then QEMU's locks on
// them keep every other host out. All else is told by Checks, and left alone.
func (a *Adopter) arrived(ctx context.Context, id string) error {
	if known, ok := a.inventory.Find(id); !ok || known.Metadata == "" || known.State == hypervisor.Off {
		return nil // most VPSes bring nothing, and need not wait for a lock
	}
	if rec, err := a.store.Record(ctx, id); err != nil || rec.Snapshot != nil || rec.Operation != nil {
		return err
	}
	// The checks before it cost little and are made again below.
	release, err := a.inventory.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	rec, err := a.store.Record(ctx, id)
	if err != nil || rec.Snapshot != nil || rec.Operation != nil {
		return err
	}
	dom, err := a.inventory.Read(ctx, id)
	if err != nil || dom.State == hypervisor.Off {
		return err
	}
	r, err := a.Reconstruct(ctx, dom)
	if err != nil {
		return err
	}
	if !r.Exists || r.Hopeless || r.Snap.State != vps.SnapshotAvailable {
		return nil
	}
	if known, err := a.store.Snapshot(ctx, r.Snap.ID); err == nil && !MovedAway(known) {
		return nil // the definition is older than the record
	}
	if why, err := a.integrity.WhatIsBroken(ctx, dom, r.Snap); why != "" || err != nil {
		return err
	}
	a.logger.Info("VPS has brought a snapshot along, which is adopted",
		vps.LogAttr(dom.ID, dom.Name), "snapshot", r.Snap.ID)
	err = a.store.Write(failpoint.Within(ctx, "daemon", "arrived"), func(tx *store.Tx) error {
		if err := tx.SaveSnapshot(ctx, r.Snap); err != nil {
			return err
		}
		return tx.AddMessage(ctx, vps.Message{VPS: dom.ID, VPSName: dom.Name,
			Kind: vps.MessageMoved, Actor: vps.ActorWatch, Phrase: vps.PhraseMovedHere})
	})
	a.onMoved()
	return err
}

// MovedAway reports whether a snapshot's record ended because its VPS went to another
// host: that of a deleted one keeps naming its files, so that they are known as stale.
func MovedAway(s vps.Snapshot) bool { return s.State == vps.SnapshotGone && len(s.Disks) == 0 }

// definitionChanged looks at a VPS that somebody defined, perhaps again from a
// panel's own database. A definition that names the base under our overlay
// would let the next boot write into the base and ruin both: it is put right.
func (a *Adopter) definitionChanged(ctx context.Context, id string) {
	if err := a.review(ctx, id); err != nil && ctx.Err() == nil {
		a.logger.Error("definition not put right", a.inventory.LogAttr(id), "error", err)
		a.retry(id, err)
	}
}

func (a *Adopter) review(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, inventory.HostRead)
	defer cancel()
	// First, so that everybody else sees the new definition too.
	a.inventory.RefreshDefined(ctx, id)
	if dom, ok := a.inventory.Find(id); ok && dom.MigratedAway {
		a.Departed(ctx, id)
		return nil
	}
	return errors.Join(a.arrived(ctx, id), a.integrity.RightDefinition(ctx, id))
}

// mostWait is the longest time between two looks at a VPS whose storage does not answer.
const mostWait = time.Minute

// retry reviews a VPS again, until its storage, or libvirt, answers: of a mount that does
// so again no event tells.
func (a *Adopter) retry(id string, err error) {
	if !fault.Unavailable(err) {
		return
	}
	a.group.Once("review "+id, func(ctx context.Context) {
		for wait := time.Second; fault.Unavailable(err); wait = min(2*wait, mostWait) {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
			err = a.review(ctx, id)
		}
		if err != nil && ctx.Err() == nil {
			a.logger.Error("definition not put right", a.inventory.LogAttr(id), "error", err)
		}
	})
}

// reviewDefinitions looks at every VPS that has a snapshot, or says so: somebody
// may have defined it again, or moved it, while nobody watched.
func (a *Adopter) reviewDefinitions(ctx context.Context) {
	records, err := a.store.Records(ctx)
	if err != nil {
		a.logger.Error("definitions not reviewed", "error", err)
		return
	}
	for _, dom := range a.inventory.All() {
		if records[dom.ID].Snapshot != nil || dom.Metadata != "" || dom.MigratedAway {
			a.definitionChanged(ctx, dom.ID)
		}
	}
}

// cameAlong looks whether a VPS that was started has come from another host.
func (a *Adopter) cameAlong(ctx context.Context, id string) {
	if err := errors.Join(a.arrived(ctx, id), a.integrity.NoteNames(ctx, id)); err != nil && ctx.Err() == nil {
		a.logger.Error("snapshot that a VPS brought along not adopted", a.inventory.LogAttr(id), "error", err)
		a.retry(id, err)
	}
}
