package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/cmd/internal/site"
)

// settleWithin is how long an operation may take to end after the last kill.
const settleWithin = 30 * time.Second

// retryEvery is the pause between two questions to a daemon that does not answer.
const retryEvery = 10 * time.Millisecond

// unsettled is an error when the last kill is too long ago for what is not done yet.
func (c *campaign) unsettled(began time.Time) error {
	if _, last := c.striker.struck(); time.Since(last) > settleWithin && time.Since(began) > settleWithin {
		return fmt.Errorf("not settled %s after the last kill", settleWithin)
	}
	return nil
}

// insist does something until the daemon has heard it.
func (c *campaign) insist(ctx context.Context, do func() error) error {
	for began := time.Now(); ; {
		err := do()
		var unreachable *client.UnreachableError
		if err == nil || !errors.As(err, &unreachable) && client.CodeOf(err) != api.CodeHypervisorUnavailable {
			return err
		}
		if late := c.unsettled(began); late != nil {
			return errors.Join(late, err)
		}
		if err := pause(ctx, retryEvery); err != nil {
			return err
		}
	}
}

// activate orders an option that has not been there before.
func (c *campaign) activate(ctx context.Context, v *victim) error {
	v.orders++
	order := api.OptionOrder{State: "active", OrderRef: fmt.Sprintf("%s-%d", v.name, v.orders)}
	return c.insist(ctx, func() error {
		_, err := c.site.Client.PutOption(ctx, v.name, order)
		if client.CodeOf(err) == api.CodeNotFound { // the daemon has not seen the new VPS yet
			return &client.UnreachableError{Err: err}
		}
		return err
	})
}

// begin asks for the operation until the daemon has heard it.
func (c *campaign) begin(ctx context.Context, w *work) error {
	w.began = time.Now()
	asked := false
	err := c.insist(ctx, func() error {
		// It may have been heard just before the daemon died.
		if heard, err := c.heard(ctx, w); asked && (err != nil || heard) {
			return err
		}
		asked = true
		return c.ask(ctx, w)
	})
	if err != nil && w.kind == undoRestore && !time.Now().Before(w.victim.undoUntil.Add(-time.Second)) {
		w.late, err = true, nil
	}
	if err != nil {
		return fmt.Errorf("%s of %s was refused: %w", w.kind, w.victim.name, err)
	}
	return nil
}

func (c *campaign) ask(ctx context.Context, w *work) (err error) {
	name := w.victim.name
	switch w.kind {
	case take, replace:
		w.op, err = c.site.Client.Take(ctx, name, api.TakeRequest{Replace: w.kind == replace})
	case undoRestore:
		w.op, err = c.site.Client.UndoRestore(ctx, name)
	case remove:
		w.op, err = c.site.Client.Delete(ctx, name)
	case restore:
		var s api.Snapshot
		if s, err = c.site.Client.Snapshot(ctx, name); err == nil {
			w.op, err = c.site.Client.Restore(ctx, name, api.RestoreRequest{Confirm: s.ID})
		}
	case endOption:
		_, err = c.site.Client.CancelOption(ctx, name, true)
	case lapse:
		err = c.lapse(ctx, name)
	}
	return err
}

// lapse lets the option end in a moment. On a busy machine that moment may have
// passed before the daemon reads of it.
func (c *campaign) lapse(ctx context.Context, name string) error {
	for in := 100 * time.Millisecond; ; in *= 2 {
		end := time.Now().Add(in)
		_, err := c.site.Client.PutOption(ctx, name, api.OptionOrder{State: "active", EndsAt: &end})
		if client.CodeOf(err) != api.CodeInvalid || in > settleWithin {
			return err
		}
	}
}

// heard looks for the operation of a request whose answer was lost.
func (c *campaign) heard(ctx context.Context, w *work) (bool, error) {
	if w.kind == endOption || w.kind == lapse {
		return false, nil // asking again does no harm
	}
	list, err := c.site.Client.Operations(ctx, api.ListOperationsParams{VPS: &w.victim.name})
	if err != nil || len(list.Operations) == 0 || list.Operations[0].CreatedAt.Before(w.began.Add(-time.Millisecond)) {
		return false, err
	}
	w.op = list.Operations[0]
	return true, nil
}

// settle waits until the operation has ended.
func (c *campaign) settle(ctx context.Context, w *work) error {
	var err error
	switch {
	case w.late:
		w.op.Status = "refused"
	case w.kind == endOption || w.kind == lapse:
		err = c.settleOption(ctx, w)
	default:
		err = c.settleOperation(ctx, w)
	}
	if err != nil {
		return fmt.Errorf("%s of %s (%s at %s): %w", w.kind, w.victim.name, w.op.Status, w.op.Step, err)
	}
	outcome := w.kind + " " + string(w.op.Status)
	if w.op.Error != nil {
		outcome += " as " + string(w.op.Error.Code)
	}
	c.note(outcome)
	return nil
}

func (c *campaign) settleOperation(ctx context.Context, w *work) error {
	began := time.Now()
	for !client.Ended(w.op) {
		if w.turn.cancel && time.Since(w.began) >= w.turn.cancelAfter {
			// Too late for most; who is heard in time stops the operation.
			_, _ = c.site.Client.CancelOperation(ctx, w.op.ID)
		}
		wait := time.Second
		if w.turn.cancel {
			wait = 20 * time.Millisecond
		}
		op, err := c.site.Client.WaitOperation(ctx, w.op.ID, wait)
		if err == nil {
			w.op = op
			err = fmt.Errorf("it is %s", op.Status)
		}
		if client.Ended(w.op) {
			if !c.attend(ctx, w) {
				break
			}
			began = time.Now()
		}
		if late := c.unsettled(began); late != nil {
			return errors.Join(late, err)
		}
		if err := pause(ctx, retryEvery); err != nil {
			return err
		}
	}
	switch {
	case w.op.Status == "succeeded" || w.op.Status == "failed":
		return nil
	case w.op.Status == "cancelled" && w.turn.cancel:
		return nil
	}
	return fmt.Errorf("it ended with %+v", w.op.Error)
}

// attend does what the remedy of a parked operation says where libvirtd had died within a
// call, and nobody but an operator may help: it restarts libvirtd with a note put right, or
// powers a customer's VPS off. It is false for everything else.
func (c *campaign) attend(ctx context.Context, w *work) bool {
	if site.IsAstray(w.op) {
		if err := c.insist(ctx, func() error { return c.site.CureAstray(ctx, w.victim.name) }); err != nil {
			c.note("(the cure of a VPS that libvirt lost: " + err.Error() + ")")
			return false
		}
		return c.resume(ctx, w)
	}
	if w.op.Status != "needs_attention" || w.operation() != take || w.op.Step != "switch" ||
		w.op.Error.Code != api.CodeVPSChanged {
		return false
	}
	if _, err := c.site.Lab.Virsh(ctx, "destroy", w.victim.name); err != nil {
		return false
	}
	w.killed = true
	return c.resume(ctx, w)
}

// resume has a parked operation go on.
func (c *campaign) resume(ctx context.Context, w *work) bool {
	err := c.insist(ctx, func() (err error) {
		w.op, err = c.site.Client.ResumeOperation(ctx, w.op.ID)
		return err
	})
	c.note("(parked, and resumed as its remedy says)")
	return err == nil
}

// settleOption waits until the option is released and orders a new one. A
// deletion that failed is begun again by the order system, as the daemon itself
// would only after minutes.
func (c *campaign) settleOption(ctx context.Context, w *work) error {
	name := w.victim.name
	again := time.Now().Add(2 * time.Second)
	for began := time.Now(); ; {
		_, err := c.site.Client.Option(ctx, name)
		if client.CodeOf(err) == api.CodeNotFound {
			break
		}
		if late := c.unsettled(began); late != nil {
			return errors.Join(late, err)
		}
		if err == nil && time.Now().After(again) {
			_, _ = c.site.Client.CancelOption(ctx, name, true)
			again = time.Now().Add(2 * time.Second)
		}
		if err := pause(ctx, retryEvery); err != nil {
			return err
		}
	}
	w.op.Status = "succeeded"
	return c.activate(ctx, w.victim)
}
