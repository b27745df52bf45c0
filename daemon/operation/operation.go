package operation

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"time"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// Operations is the long work on one host: how it begins (Begin), how it is looked at
// and stopped, and who is told of it. The kinds of work register themselves.
type Operations struct {
	*Kinds
	store     *store.Store
	inventory *inventory.Inventory
	runner    *Runner
	logger    *slog.Logger

	changed []func(ctx context.Context, tx *store.Tx, op vps.Operation) error
	failed  []func(ctx context.Context, op vps.Operation)
	ended   []func(op vps.Operation)
	over    []func(op vps.Operation)
}

// NewOperations makes a runner for the kinds that will be added. hold keeps the host
// up until what it returns is called; nil: nothing does.
func NewOperations(
	db *store.Store, inv *inventory.Inventory, hold func(ctx context.Context, why string) func(), logger *slog.Logger,
) *Operations {
	o := &Operations{Kinds: NewKinds(), store: db, inventory: inv, logger: logger}
	o.runner = New(Config{
		Store: db, Plan: o.plan, Changed: o.tellChanged, Unavailable: fault.Unavailable, Explain: o.explain,
		Failed: o.tellFailed, Ended: o.tellEnded, Over: o.tellOver, Hold: holdFor(hold), Logger: logger, Now: db.Now,
	})
	return o
}

func holdFor(hold func(ctx context.Context, why string) func()) func(context.Context, vps.Operation) func() {
	if hold == nil {
		return nil
	}
	return func(ctx context.Context, op vps.Operation) func() {
		return hold(ctx, string(op.Kind)+" of "+op.VPSName)
	}
}

// explain turns the error of an operation into what a caller may read. The cause
// stays for the log.
func (o *Operations) explain(op vps.Operation, err error) *vps.Error {
	return fault.Explain(o.Cannot(op), err)
}

// Cannot begins the sentence that says what an operation could not do.
func (o *Operations) Cannot(op vps.Operation) string {
	return "cannot " + o.Of(op.Kind).Verb + " of " + op.VPSName
}

// Listeners are called in the order in which they were added, before the first
// operation is begun or taken up.

// OnChanged adds a listener to the transaction that changes an operation's status.
func (o *Operations) OnChanged(do func(context.Context, *store.Tx, vps.Operation) error) {
	o.changed = append(o.changed, do)
}

// OnFailed adds one that is called when a step failed, or cannot be recorded, before
// that is tried again: for what must not wait so long.
func (o *Operations) OnFailed(do func(context.Context, vps.Operation)) {
	o.failed = append(o.failed, do)
}

// OnEnded adds one that is called when a run is over, to give back what it holds. The
// next operation of the VPS is not begun before.
func (o *Operations) OnEnded(do func(vps.Operation)) { o.ended = append(o.ended, do) }

// OnOver adds one that is called after that, for what need hold nobody up.
func (o *Operations) OnOver(do func(vps.Operation)) { o.over = append(o.over, do) }

func (o *Operations) tellChanged(ctx context.Context, tx *store.Tx, op vps.Operation) error {
	if err := addMessage(ctx, tx, op); err != nil {
		return err
	}
	for _, do := range o.changed {
		if err := do(ctx, tx, op); err != nil {
			return err
		}
	}
	return nil
}

func (o *Operations) tellFailed(ctx context.Context, op vps.Operation) {
	for _, do := range o.failed {
		do(ctx, op)
	}
}

func (o *Operations) tellEnded(op vps.Operation) {
	for _, do := range o.ended {
		do(op)
	}
}

func (o *Operations) tellOver(op vps.Operation) {
	for _, do := range o.over {
		do(op)
	}
}

// TakeUp goes on with operations of an earlier process, but for those that are parked.
func (o *Operations) TakeUp(ops []vps.Operation) {
	for _, op := range ops {
		if op.Status != vps.StatusNeedsAttention {
			o.logger.Info("operation is taken up", op.LogAttr(), "kind", op.Kind, "step", op.Step)
			o.runner.Start(op)
		}
	}
}

// Park leaves operations that nobody has begun to work on to an operator, within a
// transaction. why makes the cause of each.
func (o *Operations) Park(ctx context.Context, tx *store.Tx, ops []vps.Operation, why func(vps.Operation) *vps.Error) error {
	for _, op := range ops {
		if op.Status == vps.StatusNeedsAttention {
			continue
		}
		if err := o.runner.Park(ctx, tx, op, why(op)); err != nil {
			return err
		}
	}
	return nil
}

// Record makes an operation durable that is done already, within a transaction.
func (o *Operations) Record(ctx context.Context, tx *store.Tx, op vps.Operation) error {
	if err := tx.InsertOperation(ctx, op); err != nil {
		return err
	}
	return o.tellChanged(ctx, tx, op)
}

// Abandon ends a parked operation as failed, in one transaction with also.
func (o *Operations) Abandon(ctx context.Context, id string, cause *vps.Error, also func(*store.Tx) error) error {
	return o.runner.Abandon(ctx, id, cause, also)
}

// Interrupt ends the present step of an operation that was asked to stop.
func (o *Operations) Interrupt(id string) { o.runner.Interrupt(id) }

// Stuck names an operation that is between two steps for longer than limit.
func (o *Operations) Stuck(limit time.Duration) error { return o.runner.Stuck(limit) }

// Live adds to an operation what only the memory knows: its progress.
func (o *Operations) Live(op vps.Operation) vps.Operation { return o.runner.Live(op) }

// Close stops all work where it is and waits until it has stopped.
func (o *Operations) Close() { o.runner.Close() }

// Operation returns one operation with its progress. Codes: not_found.
func (o *Operations) Operation(ctx context.Context, id string) (vps.Operation, error) {
	op, err := o.store.Operation(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return op, vps.Errorf(vps.CodeNotFound, "no such operation")
	}
	return o.Live(op), err
}

// Operations returns one page of operations, newest first. Codes: not_found.
func (o *Operations) Operations(ctx context.Context, q vps.OperationQuery) (vps.OperationPage, error) {
	q.Limit = vps.PageLimit(q.Limit)
	if q.VPS != "" {
		id, err := o.inventory.IDOf(ctx, q.VPS)
		if err != nil {
			return vps.OperationPage{}, err
		}
		q.VPS = id
	}
	page, err := o.store.Operations(ctx, q)
	for i, op := range page.Operations {
		page.Operations[i] = o.Live(op)
	}
	return page, err
}

// WaitOperation returns the operation when it is final or parked, or after limit as
// it then is. Codes: not_found.
func (o *Operations) WaitOperation(ctx context.Context, id string, limit time.Duration) (vps.Operation, error) {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for {
		changed := o.runner.Changes(id)
		op, err := o.Operation(ctx, id)
		if err != nil || op.Status.Final() || op.Status == vps.StatusNeedsAttention || limit <= 0 {
			o.runner.Forget(id, changed)
			return op, err
		}
		select {
		case <-changed:
			continue
		case <-timeout.C:
			limit = 0
		case <-ctx.Done():
			limit = 0
		}
		o.runner.Forget(id, changed)
	}
}

// CancelOperation asks an operation to stop. It is refused once something
// irrevocable has begun, but for an operator who takes back one that is parked, where the
// step at which it stopped can be. Codes: not_found, vps_changed.
func (o *Operations) CancelOperation(ctx context.Context, id string, actor vps.Actor) (vps.Operation, error) {
	op, err := o.Operation(ctx, id)
	if err != nil {
		return op, err
	}
	switch {
	case op.Status == vps.StatusNeedsAttention && actor.Way == vps.WayOperator && o.CanTakeBack(op):
		o.logger.Info("operation is to be taken back", "operation", id, "by", actor.Name)
		return o.runner.TakeBack(ctx, op, func(tx *store.Tx, op vps.Operation) error { return tx.KeepAnswer(ctx, op) })
	case op.Status == vps.StatusNeedsAttention:
		return op, o.tooLate(ctx, id)
	case op.CancelRequested && !op.Status.Final():
		return op, o.store.KeepAnswer(ctx, op)
	}
	err = o.runner.Cancel(ctx, id, func(tx *store.Tx) error {
		if op, err = tx.Operation(ctx, id); err != nil {
			return err
		}
		op = o.Live(op)
		return tx.KeepAnswer(ctx, op)
	})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return op, o.tooLate(ctx, id)
	case err != nil:
		return op, err
	}
	o.logger.Info("operation is to be cancelled", "operation", id, "by", actor.Name)
	return op, nil
}

// CanTakeBack reports whether a parked operation can be undone from the step at which it
// stopped, as far as the step alone tells.
func (o *Operations) CanTakeBack(op vps.Operation) bool {
	plan, err := o.plan(op)
	if err != nil || op.Status != vps.StatusNeedsAttention {
		return false
	}
	at := plan.index(op.Step)
	return at >= 0 && (!op.Irrevocable || plan[at].Undo != nil)
}

// tooLate says why an operation can no longer be cancelled.
func (o *Operations) tooLate(ctx context.Context, id string) error {
	op, err := o.store.Operation(ctx, id)
	switch {
	case err != nil:
		return err
	case op.Status.Final():
		return vps.Errorf(vps.CodeVPSChanged, "cannot cancel operation %s: it has ended (%s)", id, op.Status)
	case op.Status == vps.StatusNeedsAttention:
		return vps.Errorf(vps.CodeVPSChanged, "cannot cancel operation %s: it stopped at step %s and needs an operator", id, op.Step).
			WithRemedy("cure the cause on the host, then resume the operation")
	}
	return vps.Errorf(vps.CodeVPSChanged, "cannot cancel operation %s: step %s cannot be taken back, only finished", id, op.Step).
		WithRemedy("wait for it to end")
}

// ResumeOperation takes up a parked operation again. Codes: not_found, vps_changed.
func (o *Operations) ResumeOperation(ctx context.Context, id string, actor vps.Actor) (vps.Operation, error) {
	op, err := o.Operation(ctx, id)
	if err != nil {
		return op, err
	}
	if op.Status != vps.StatusNeedsAttention {
		return op, vps.Errorf(
			vps.CodeVPSChanged, "cannot resume operation %s: it is %s and does not wait for an operator", id, op.Status,
		)
	}
	o.logger.Info("operation is resumed", "operation", id, "by", actor.Name)
	return o.runner.Resume(ctx, op, func(tx *store.Tx, op vps.Operation) error { return tx.KeepAnswer(ctx, op) })
}
