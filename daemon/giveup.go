package daemon

import (
	"context"
	"errors"
	"slices"

	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// mayForget says that an operator may do away with the record of a snapshot that
// is broken or half deleted: the VPS has other disks by now. Whether they are the
// right ones, nobody else can tell.
func mayForget(dom hypervisor.Domain, rec record, actor vps.Actor) bool {
	if actor.Way != vps.WayOperator || rec.operation != nil || rec.snapshot == nil {
		return false
	}
	others := rec.snapshot.State == vps.SnapshotBroken
	for _, disk := range rec.snapshot.Disks {
		if uses(dom, disk.Overlay) {
			return false
		}
		others = others || rec.snapshot.State == vps.SnapshotDeleting && !uses(dom, disk.Base)
	}
	return others
}

// forgetSnapshot gives up the record of a broken snapshot, and touches no file:
// the overlays may hold the newest data of the VPS (a panel had defined it with
// its base, and an operator who wanted to be rid of the snapshot lost both).
func (d *Daemon) forgetSnapshot(ctx context.Context, r *operation.Run) error {
	snap, err := d.store.Snapshot(ctx, r.Op.SnapshotID)
	if err != nil {
		return err
	}
	dom, err := d.inventory.domain(ctx, r.Op.VPS)
	if err != nil {
		return err
	}
	for _, disk := range snap.Disks {
		if uses(dom, disk.Overlay) {
			return operation.Fail(vps.Errorf(vps.CodeVPSChanged, "%s uses the overlay of disk %s again", dom.Name, disk.Target))
		}
	}
	if m, err := parseMetadata(dom.Metadata); err == nil && m.snap.ID == snap.ID {
		if err := d.Config.Host.SetMetadata(ctx, dom.ID, ""); err != nil {
			return err
		}
	}
	r.Op.Result = "only its record, because it was broken; what is left of its files was not touched"
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, d.dropped(snap)) })
	return nil
}

// dropped is a snapshot whose record is dropped. Its disks keep saying that they
// were not merged, so that its files are never taken for stale ones.
func (d *Daemon) dropped(snap vps.Snapshot) vps.Snapshot {
	snap.Disks = slices.Clone(snap.Disks)
	for i := range snap.Disks {
		snap.Disks[i].Pivoted = false
	}
	snap.State, snap.Heals, snap.UndoUntil, snap.UpdatedAt = vps.SnapshotGone, false, nil, d.now()
	return snap
}

// giveUpGone drops what is recorded of a VPS that libvirt does not know, together
// with the operation that waits for it. Nothing of the host is touched: defined
// again with its metadata, the VPS gets its record back (Repair).
func (d *Daemon) giveUpGone(ctx context.Context, ref string, actor vps.Actor, unknown error) (vps.Operation, error) {
	id, err := d.idOf(ctx, ref)
	if err != nil {
		return vps.Operation{}, err
	}
	release, err := d.locks.acquire(ctx, id)
	if err != nil {
		return vps.Operation{}, err
	}
	defer release()
	switch _, err := d.inventory.domain(ctx, id); {
	case err == nil:
		return vps.Operation{}, unknown
	case !errors.Is(err, hypervisor.ErrNotFound):
		return vps.Operation{}, explainAs("cannot read the VPS", err)
	}
	rec, err := readRecord(ctx, d.store, id)
	switch {
	case err != nil:
		return vps.Operation{}, err
	case rec.snapshot == nil:
		return vps.Operation{}, unknown
	case rec.operation != nil && rec.operation.Status != vps.StatusNeedsAttention:
		return vps.Operation{}, errInProgress(d.names.name(id))
	}
	now := d.now()
	op := vps.Operation{ID: newOperationID(now), VPS: id, VPSName: d.names.name(id), Kind: vps.KindDelete, Status: vps.StatusSucceeded, Step: "give_up",
		SnapshotID: rec.snapshot.ID, Irrevocable: true, Actor: actor, CreatedAt: now, StartedAt: &now, EndedAt: &now,
		Result: "only its record, because the VPS is gone; what is left of its files was not touched"}
	drop := func(tx *store.Tx) error {
		if err := d.dropAll(ctx, tx, op); err != nil {
			return err
		}
		return d.remember(ctx, tx, op)
	}
	if rec.operation == nil {
		err = d.store.Write(ctx, drop)
	} else {
		err = d.runner.Abandon(ctx, rec.operation.ID, vps.Errorf(vps.CodeVPSChanged, "the VPS is gone from the host, and an operator gave its snapshot up"), drop)
	}
	d.deadlinesChanged()
	return op, err
}

// dropAll drops the record of every snapshot of a VPS.
func (d *Daemon) dropAll(ctx context.Context, tx *store.Tx, op vps.Operation) error {
	snapshots, err := tx.SnapshotsOf(ctx, op.VPS)
	if err != nil {
		return err
	}
	for _, snap := range snapshots {
		if err := tx.SaveSnapshot(ctx, d.dropped(snap)); err != nil {
			return err
		}
	}
	if err := tx.InsertOperation(ctx, op); err != nil {
		return err
	}
	return d.journalOperation(ctx, tx, op)
}
