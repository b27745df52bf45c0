package operation

import (
	"context"
	"encoding/json"
	"fmt"

	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Claim is a VPS on which an operation is about to begin: it is locked, and was read
// from the host and from the record. A request checks both, and commits.
type Claim struct {
	Domain hypervisor.Domain
	Record store.Record
	// SnapshotID is set by the request: which snapshot the operation is about.
	SnapshotID string

	operations *Operations
	actor      vps.Actor
	release    func()
}

// Begin locks a VPS and reads it. The caller must Release the claim, also after Commit.
// Codes: not_found, vps_changed, hypervisor_unavailable.
func (o *Operations) Begin(ctx context.Context, ref string, actor vps.Actor) (*Claim, error) {
	if !o.inventory.Ready() {
		return nil, fault.Disconnected()
	}
	release, dom, err := o.inventory.LockAndRead(ctx, ref)
	if err != nil {
		return nil, err
	}
	c := &Claim{Domain: dom, operations: o, actor: actor, release: release}
	if dom.MigratedAway {
		c.Release()
		return nil, fault.Migrated(dom)
	}
	if err = c.readRecord(ctx); err != nil {
		c.Release()
		return nil, err
	}
	return c, nil
}

// readRecord reads what is recorded of the VPS, with the names that its disks have now:
// they stay the same for the whole operation.
func (c *Claim) readRecord(ctx context.Context) (err error) {
	o := c.operations
	if c.Record, err = o.store.Record(ctx, c.Domain.ID); err != nil {
		return err
	}
	if c.Record.StateDamaged {
		return fault.RecordDamaged(c.Domain.Name)
	}
	snap := c.Record.Snapshot
	if snap == nil || c.Record.Operation != nil {
		return nil
	}
	renamed, changed := image.Renamed(c.Domain, *snap)
	if !changed {
		return nil
	}
	c.Record.Snapshot = &renamed
	return o.store.Write(ctx, func(tx *store.Tx) error { return tx.RenameDisks(ctx, *snap, renamed) })
}

// Release gives the lock of the VPS back.
func (c *Claim) Release() { c.release() }

// Commit makes the operation durable and starts it. request is what the caller asked
// for and plan what the steps need; both are kept with the operation. also is written
// in the operation's own transaction; nil: nothing. Codes: operation_in_progress.
func (c *Claim) Commit(
	ctx context.Context, kind vps.Kind, request, plan any, also func(*store.Tx) error,
) (vps.Operation, error) {
	o, now := c.operations, c.operations.store.Now()
	id, err := o.store.NewOperationID(ctx, now)
	if err != nil {
		return vps.Operation{}, err
	}
	op := vps.Operation{
		ID: id, VPS: c.Domain.ID, VPSName: c.Domain.Name, Kind: kind, Status: vps.StatusPending,
		Actor: c.actor, SnapshotID: c.SnapshotID, CreatedAt: now,
	}
	if op.Request, err = json.Marshal(request); err != nil {
		return op, fmt.Errorf("cannot record the request: %w", err)
	}
	if op.Plan, err = json.Marshal(plan); err != nil {
		return op, fmt.Errorf("cannot record the plan: %w", err)
	}
	err = o.store.Write(failpoint.Within(ctx, string(kind), "request"), func(tx *store.Tx) error {
		if err := tx.InsertOperation(ctx, op); err != nil {
			return err
		}
		if also != nil {
			if err := also(tx); err != nil {
				return err
			}
		}
		if err := o.tellChanged(ctx, tx, op); err != nil {
			return err
		}
		return tx.KeepAnswer(ctx, op)
	})
	if store.IsUnique(err) {
		return op, fault.InProgress(c.Domain.Name)
	}
	if err != nil {
		return op, err
	}
	o.runner.Start(op)
	return op, nil
}

// ReadPlan reads what Commit, or a step, kept for the steps.
func ReadPlan(op vps.Operation, plan any) error {
	if err := json.Unmarshal(op.Plan, plan); err != nil {
		return fmt.Errorf("the plan of operation %s cannot be read: %w", op.ID, err)
	}
	return nil
}
