package snapshot

import (
	"context"
	"errors"
	"slices"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/metadata"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// mayDiscard reports whether an operator may do away with the record of a snapshot that
// is broken or half deleted: the VPS has other disks by now. Whether they are the
// right ones, nobody else can tell.
func mayDiscard(dom hypervisor.Domain, rec store.Record, actor vps.Actor) bool {
	if actor.Way != vps.WayOperator || rec.Operation != nil || rec.Snapshot == nil {
		return false
	}
	others := rec.Snapshot.State == vps.SnapshotBroken
	for _, disk := range rec.Snapshot.Disks {
		if dom.Uses(disk.Overlay) {
			return false
		}
		// Half deleted, and neither overlay nor base is in use: the VPS was installed
		// again on other images.
		others = others || rec.Snapshot.State == vps.SnapshotDeleting && !dom.Uses(disk.Base)
	}
	return others
}

// forgetSnapshot gives up the record of a broken snapshot, and touches no file:
// the overlays may hold the newest data of the VPS (a panel had defined it with
// its base, and an operator who wanted to be rid of the snapshot lost both).
func (s *Snapshots) forgetSnapshot(ctx context.Context, r *operation.Run) error {
	snap, dom, err := s.recordAndDomain(ctx, r)
	if err != nil {
		return err
	}
	for _, disk := range snap.Disks {
		if dom.Uses(disk.Overlay) {
			return operation.Fail(
				vps.Errorf(vps.CodeVPSChanged, "%s uses the overlay of disk %s again", dom.Name, disk.Target),
			)
		}
	}
	// Metadata of another snapshot is not ours to take away.
	if m, err := metadata.Parse(dom.Metadata); err == nil && m.Snapshot.ID == snap.ID {
		if err := s.host.SetMetadata(ctx, dom.ID, ""); err != nil {
			return err
		}
	}
	r.Op.Result = "only its record, because it was broken; what is left of its files was not touched"
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, s.dropped(snap)) })
	return nil
}

// dropped is a snapshot whose record is dropped. Its disks keep saying that they
// were not merged, so that its files are never taken for stale ones.
func (s *Snapshots) dropped(snap vps.Snapshot) vps.Snapshot {
	snap.Disks = slices.Clone(snap.Disks)
	for i := range snap.Disks {
		snap.Disks[i].Pivoted = false
	}
	snap.State, snap.Heals, snap.UndoUntil, snap.UpdatedAt = vps.SnapshotGone, false, nil, s.store.Now()
	return snap
}

// discardGone drops what is recorded of a VPS that libvirt does not know, together
// with the operation that waits for it. Nothing of the host is touched: defined
// again with its metadata, the VPS gets its record back (Repair).
func (s *Snapshots) discardGone(
	ctx context.Context, ref string, actor vps.Actor, unknown error,
) (vps.Operation, error) {
	id, err := s.inventory.IDOf(ctx, ref)
	if err != nil {
		return vps.Operation{}, err
	}
	release, err := s.inventory.Lock(ctx, id)
	if err != nil {
		return vps.Operation{}, err
	}
	defer release()
	// Asked for itself, and not taken from the inventory: a picture a moment old must
	// not cost a customer the record.
	switch _, err := s.inventory.Read(ctx, id); {
	case err == nil:
		return vps.Operation{}, unknown
	case !errors.Is(err, hypervisor.ErrNotFound):
		return vps.Operation{}, fault.Explain("cannot read the VPS", err)
	}
	rec, err := s.store.Record(ctx, id)
	switch {
	case err != nil:
		return vps.Operation{}, err
	case rec.Snapshot == nil:
		return vps.Operation{}, unknown
	case rec.Operation != nil && rec.Operation.Status != vps.StatusNeedsAttention:
		return vps.Operation{}, fault.InProgress(s.inventory.Name(id))
	}
	now := s.store.Now()
	opID, err := s.store.NewOperationID(ctx, now)
	if err != nil {
		return vps.Operation{}, err
	}
	op := vps.Operation{
		ID:          opID,
		VPS:         id,
		VPSName:     s.inventory.Name(id),
		Kind:        vps.KindDelete,
		Status:      vps.StatusSucceeded,
		Step:        "give_up",
		SnapshotID:  rec.Snapshot.ID,
		Irrevocable: true,
		Actor:       actor,
		CreatedAt:   now,
		StartedAt:   &now,
		EndedAt:     &now,
		Result:      "only its record, because the VPS is gone; what is left of its files was not touched",
	}
	drop := func(tx *store.Tx) error {
		if err := s.dropAll(ctx, tx, op); err != nil {
			return err
		}
		return tx.KeepAnswer(ctx, op)
	}
	// A parked operation of the VPS can never go on, and would hold the record open for
	// ever.
	if rec.Operation == nil {
		err = s.store.Write(ctx, drop)
	} else {
		err = s.operations.Abandon(ctx, rec.Operation.ID,
			vps.Errorf(vps.CodeVPSChanged, "the VPS is gone from the host, and an operator gave its snapshot up"), drop)
	}
	s.onDiscarded()
	return op, err
}

// dropAll drops the record of every snapshot of a VPS.
func (s *Snapshots) dropAll(ctx context.Context, tx *store.Tx, op vps.Operation) error {
	snapshots, err := tx.SnapshotsOf(ctx, op.VPS)
	if err != nil {
		return err
	}
	for _, snap := range snapshots {
		if err := tx.SaveSnapshot(ctx, s.dropped(snap)); err != nil {
			return err
		}
	}
	return s.operations.Record(ctx, tx, op)
}
