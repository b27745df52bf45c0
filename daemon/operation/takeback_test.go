package operation_test

import (
	"context"
	"strings"
	"testing"

	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

func nothingAlso(*store.Tx, vps.Operation) error { return nil }

// parked has an operation park at the last of three steps, the last two irrevocable.
func parked(t *testing.T, undo func(context.Context, *operation.Run) error) (*bench, vps.Operation) {
	b := newBench(t)
	first, second, last := b.step("first", false), b.step("second", true), b.step("last", true)
	second.Undo = nil
	tries := 0
	last.Do = func(context.Context, *operation.Run) error {
		if tries++; tries == 1 {
			return operation.Park(errExpected)
		}
		return nil
	}
	last.Undo = undo
	b.plan = operation.Plan{first, second, last}
	b.runner.Start(b.accept())
	return b, b.ended(vps.StatusNeedsAttention)
}

// TestTakeBack (FAULTS.md row 34): a parked operation is undone from where it stopped, also
// past a step that had nothing to take back, and across a restart.
func TestTakeBack(t *testing.T) {
	for name, restarted := range map[string]bool{"at once": false, "after a restart": true} {
		t.Run(name, func(t *testing.T) { takeBack(t, restarted) })
	}
}

func takeBack(t *testing.T, restarted bool) {
	var b *bench
	reached := make(chan struct{}, 2)
	cut := restarted
	b, op := parked(t, func(ctx context.Context, _ *operation.Run) error {
		reached <- struct{}{}
		if cut {
			<-ctx.Done()
			return ctx.Err()
		}
		b.note("undo last")
		return nil
	})
	taken, err := b.runner.TakeBack(ctx, op, nothingAlso)
	b.must(err)
	if taken.Status != vps.StatusRunning || taken.Irrevocable || !taken.CancelRequested || taken.Error != nil {
		t.Errorf("taken back it is %+v", taken)
	}
	if <-reached; restarted {
		b.close()
		cut = false
		b.open()
		b.runner.Start(b.stored())
	}
	if op := b.ended(vps.StatusCancelled); op.Error != nil || op.EndedAt == nil {
		t.Errorf("cancelled: %+v", op)
	}
	b.wrote("running", "first", "second", "needs_attention", "undo last", "undo first", "cancelled")
}

// TestTakeBackTooLate: what cannot be taken back is parked again with the reason, and can be
// finished, or asked to be taken back again.
func TestTakeBackTooLate(t *testing.T) {
	b, op := parked(t, func(context.Context, *operation.Run) error { return operation.Forward(errExpected) })
	for range 2 {
		_, err := b.runner.TakeBack(ctx, op, nothingAlso)
		b.must(err)
		op = b.ended(vps.StatusNeedsAttention)
		if !op.Irrevocable || op.CancelRequested || op.Step != "last" || op.Error == nil ||
			!strings.Contains(op.Error.Detail, "expected") {
			t.Errorf("parked again: %+v", op)
		}
	}
	_, err := b.runner.Resume(ctx, op, nil)
	b.must(err)
	b.ended(vps.StatusSucceeded)
}

// TestCancelDoesNotCut: a step that is not to be cut is done to its end, and then undone.
func TestCancelDoesNotCut(t *testing.T) {
	b := newBench(t)
	begun, cancelled := make(chan struct{}), make(chan struct{})
	first := b.step("first", false)
	first.Uncut = true
	first.Do = func(ctx context.Context, _ *operation.Run) error {
		close(begun)
		<-cancelled
		if ctx.Err() != nil {
			t.Error("it was cut")
		}
		b.note("first")
		return nil
	}
	b.plan = operation.Plan{first, b.step("second", true)}
	b.runner.Start(b.accept())
	<-begun
	b.must(b.runner.Cancel(ctx, "op-1", nil))
	close(cancelled)
	b.ended(vps.StatusCancelled)
	b.wrote("running", "first", "undo first", "cancelled")
}
