package daemon

import (
	"context"
	"errors"

	"vpssnapd/daemon/failpoint"
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
func (d *Daemon) departed(ctx context.Context, id string) error {
	release, err := d.locks.acquire(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	dom, err := d.inventory.domain(ctx, id) // not found: its definition went with it
	if err != nil && !errors.Is(err, hypervisor.ErrNotFound) || err == nil && !dom.MigratedAway {
		return err // not known, or it has come back
	}
	rec, err := readRecord(ctx, d.store, id)
	if err != nil || rec.operation != nil {
		return err
	}
	snapshots, err := d.store.SnapshotsOf(ctx, id)
	if err != nil || rec.option == nil && len(snapshots) == 0 {
		return err
	}
	name := d.names.name(id)
	d.Logger.Info("VPS was migrated to another host and is let go", "vps", name, "snapshots", len(snapshots))
	defer d.cutReadersOf(id, "the VPS was migrated to another host") // which may merge the snapshot
	err = d.store.Write(failpoint.Within(ctx, "daemon", "departed"), func(tx *store.Tx) error {
		for _, snap := range snapshots {
			if err := tx.LetGoOfSnapshot(ctx, snap.ID, d.now()); err != nil {
				return err
			}
		}
		if rec.option != nil {
			if err := tx.SaveOption(ctx, d.optionLeft(*rec.option), watchman, "the VPS was migrated to another host"); err != nil {
				return err
			}
		}
		return d.say(ctx, tx, vps.Message{VPS: id, VPSName: name, Kind: vps.MessageMoved, Actor: watchman,
			Phrase: vps.PhraseMovedAway})
	})
	d.deadlinesChanged()
	return err
}

// definitionLeft is departed, for who can only log its error.
func (d *Daemon) definitionLeft(ctx context.Context, id string) {
	if err := d.departed(ctx, id); err != nil && ctx.Err() == nil {
		d.Logger.Error("VPS that was migrated away not let go", d.logAttr(id), "error", err)
	}
}

// arrived records the snapshot that a VPS has brought along from another host, if
// the files prove it to be whole and the VPS is active here: then QEMU's locks on
// them keep every other host out. All else is told by Checks, and left alone.
func (d *Daemon) arrived(ctx context.Context, id string) error {
	if known, ok := d.inventory.find(id); !ok || known.Metadata == "" || known.State == hypervisor.Off {
		return nil // most VPSes bring nothing, and need not wait for a lock
	}
	if rec, err := readRecord(ctx, d.store, id); err != nil || rec.snapshot != nil || rec.operation != nil {
		return err
	}
	release, err := d.locks.acquire(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	rec, err := readRecord(ctx, d.store, id)
	if err != nil || rec.snapshot != nil || rec.operation != nil {
		return err
	}
	dom, err := d.inventory.domain(ctx, id)
	if err != nil || dom.State == hypervisor.Off {
		return err
	}
	r := d.reconstruct(ctx, dom)
	if !r.exists || r.hopeless || r.snap.State != vps.SnapshotAvailable {
		return nil
	}
	if known, err := d.store.Snapshot(ctx, r.snap.ID); err == nil && !wasLetGo(known) {
		return nil // the definition is older than the record
	}
	if why, err := d.whatIsBroken(ctx, dom, r.snap); why != "" || err != nil {
		return err
	}
	d.Logger.Info("VPS has brought a snapshot along, which is adopted", vps.LogAttr(dom.ID, dom.Name), "snapshot", r.snap.ID)
	err = d.store.Write(failpoint.Within(ctx, "daemon", "arrived"), func(tx *store.Tx) error {
		if err := tx.SaveSnapshot(ctx, r.snap); err != nil {
			return err
		}
		return d.say(ctx, tx, vps.Message{VPS: dom.ID, VPSName: dom.Name, Kind: vps.MessageMoved, Actor: watchman,
			Phrase: vps.PhraseMovedHere})
	})
	d.deadlinesChanged()
	return err
}

// wasLetGo says that a snapshot's record ended because its VPS went to another
// host: that of a deleted one keeps naming its files, so that they are known as stale.
func wasLetGo(s vps.Snapshot) bool { return s.State == vps.SnapshotGone && len(s.Disks) == 0 }

// errMigrated refuses to work on what a migration has left behind.
func errMigrated(dom hypervisor.Domain) error {
	return vps.Errorf(vps.CodeVPSChanged, "%s was migrated to another host; only its definition is still here", dom.Name).
		WithRemedy("ask the host that it runs on; remove the definition that was left here (virsh undefine %s)", dom.ID)
}
