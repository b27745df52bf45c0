package operation_test

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

var (
	ctx         = context.Background()
	errAway     = errors.New("the host is away")
	errExpected = errors.New("expected")
)

// bench is a runner on a database of its own. Its steps write into a diary.
type bench struct {
	t      *testing.T
	path   string
	store  *store.Store
	runner *operation.Runner
	plan   operation.Plan
	onEnd  func(vps.Operation) // nil: nothing

	mu    sync.Mutex
	diary []string
}

func newBench(t *testing.T, plan ...operation.Step) *bench {
	t.Helper()
	t.Parallel()
	b := &bench{t: t, path: filepath.Join(t.TempDir(), "test.db"), plan: plan}
	b.open()
	t.Cleanup(func() { b.close() })
	return b
}

func (b *bench) open() {
	b.t.Helper()
	var err error
	if b.store, err = store.Open(ctx, b.path, nil); err != nil {
		b.t.Fatal(err)
	}
	b.runner = operation.New(operation.Config{
		Store:       b.store,
		Plan:        func(vps.Operation) (operation.Plan, error) { return b.plan, nil },
		Changed:     func(_ context.Context, _ *store.Tx, op vps.Operation) error { b.note(string(op.Status)); return nil },
		Unavailable: func(err error) bool { return errors.Is(err, errAway) },
		Explain: func(_ vps.Operation, err error) *vps.Error {
			return vps.Errorf(vps.CodeInternal, "%v", err)
		},
		Failed: func(context.Context, vps.Operation) {},
		Ended: func(op vps.Operation) {
			if b.onEnd != nil {
				b.onEnd(op)
			}
		},
		Over:   func(vps.Operation) {},
		Logger: slog.New(slog.DiscardHandler),
		Now:    time.Now,
	})
}

func (b *bench) close() {
	b.runner.Close()
	b.store.Close()
}

func (b *bench) note(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.diary = append(b.diary, what)
}

// wrote fails unless the diary holds just that, in that order.
func (b *bench) wrote(want ...string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Equal(b.diary, want) {
		b.t.Errorf("it went %v, want %v", b.diary, want)
	}
}

// accept makes an operation durable, without starting it.
func (b *bench) accept() vps.Operation {
	b.t.Helper()
	return b.acceptFor("v1", "op-1")
}

func (b *bench) acceptFor(vpsID, id string) vps.Operation {
	b.t.Helper()
	op := vps.Operation{ID: id, VPS: vpsID, Kind: vps.KindTake, Status: vps.StatusPending, CreatedAt: time.Now()}
	b.must(b.store.Write(ctx, func(tx *store.Tx) error { return tx.InsertOperation(ctx, op) }))
	return op
}

func (b *bench) stored() vps.Operation {
	b.t.Helper()
	return b.storedOf("op-1")
}

func (b *bench) storedOf(id string) vps.Operation {
	b.t.Helper()
	op, err := b.store.Operation(ctx, id)
	b.must(err)
	return op
}

// ended waits until the operation is final or parked and checks its status.
func (b *bench) ended(want vps.Status) vps.Operation {
	b.t.Helper()
	return b.endedOf("op-1", want)
}

func (b *bench) endedOf(id string, want vps.Status) vps.Operation {
	b.t.Helper()
	for end := time.After(20 * time.Second); ; {
		changed := b.runner.Changes(id)
		op := b.storedOf(id)
		if op.Status.Final() || op.Status == vps.StatusNeedsAttention {
			if op.Status != want {
				b.t.Fatalf("it ended as %s (%v), want %s", op.Status, op.Error, want)
			}
			return op
		}
		select {
		case <-changed:
		case <-end:
			b.t.Fatalf("it has not ended: %s at %s", op.Status, op.Step)
		}
	}
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// step is a step that does and undoes nothing but to say so.
func (b *bench) step(name string, irrevocable bool) operation.Step {
	return operation.Step{
		Name:        name,
		Do:          func(context.Context, *operation.Run) error { b.note(name); return nil },
		Undo:        func(context.Context, *operation.Run) error { b.note("undo " + name); return nil },
		Irrevocable: irrevocable,
	}
}

// oweThaw stages a promise: something to see in the database.
func oweThaw(r *operation.Run) {
	r.Stage(func(ctx context.Context, tx *store.Tx) error {
		return tx.Owe(ctx, store.Debt{VPS: "v1", Kind: store.DebtThaw, Since: time.Now()})
	})
}

func (b *bench) owesThaw() bool {
	b.t.Helper()
	owed, err := b.store.Owes(ctx, "v1", store.DebtThaw)
	b.must(err)
	return owed
}

func TestStepsInOrder(t *testing.T) {
	b := newBench(t)
	first := b.step("first", false)
	first.Do = func(_ context.Context, r *operation.Run) error {
		oweThaw(r)
		return r.SetPlan("kept")
	}
	second := b.step("second", true)
	second.Do = func(_ context.Context, r *operation.Run) error {
		var kept string
		if err := r.Plan(&kept); err != nil || kept != "kept" || !b.owesThaw() || r.Again() {
			t.Errorf("second step: plan %q (%v), again %v", kept, err, r.Again())
		}
		if op := b.stored(); op.Step != "second" || !op.Irrevocable {
			t.Errorf("while the second step is done the record says %s, irrevocable %v", op.Step, op.Irrevocable)
		}
		return nil
	}
	b.plan = operation.Plan{first, second}
	b.runner.Start(b.accept())
	op := b.ended(vps.StatusSucceeded)
	if op.EndedAt == nil || op.StartedAt == nil || op.Error != nil {
		t.Errorf("%+v", op)
	}
	b.wrote("running", "succeeded")
}

func TestFailedStepIsUndoneAndLeavesNoRecord(t *testing.T) {
	b := newBench(t)
	second := b.step("second", false)
	second.Do = func(_ context.Context, r *operation.Run) error {
		oweThaw(r)
		return errExpected
	}
	b.plan = operation.Plan{b.step("first", false), second}
	b.runner.Start(b.accept())
	if op := b.ended(vps.StatusFailed); op.Error == nil || !strings.Contains(op.Error.Detail, "expected") {
		t.Errorf("error %+v", op.Error)
	}
	b.wrote("running", "first", "undo second", "undo first", "failed")
	if b.owesThaw() {
		t.Error("what the failed step had staged was recorded")
	}
}

// TestCancelWhileRecording: a cancel that arrives between a step's last effect
// and its record takes back what the step had staged, too.
func TestCancelWhileRecording(t *testing.T) {
	b := newBench(t)
	first := b.step("first", false)
	first.Do = func(_ context.Context, r *operation.Run) error {
		oweThaw(r)
		return b.runner.Cancel(ctx, "op-1", nil)
	}
	b.plan = operation.Plan{first, b.step("second", true)}
	b.runner.Start(b.accept())
	b.ended(vps.StatusCancelled)
	b.wrote("running", "undo first", "cancelled")
	if b.owesThaw() {
		t.Error("what the cancelled step had staged was recorded")
	}
}

func TestCancelInterruptsAStep(t *testing.T) {
	b := newBench(t)
	first := b.step("first", false)
	begun := make(chan struct{})
	first.Do = func(ctx context.Context, _ *operation.Run) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	}
	b.plan = operation.Plan{first, b.step("second", true)}
	b.runner.Start(b.accept())
	<-begun
	b.must(b.runner.Cancel(ctx, "op-1", nil))
	if op := b.ended(vps.StatusCancelled); op.Error != nil {
		t.Errorf("a cancelled operation has the error %v", op.Error)
	}
	b.wrote("running", "undo first", "cancelled")
}

func TestCancelTooLate(t *testing.T) {
	b := newBench(t)
	last := b.step("last", true)
	last.Do = func(ctx context.Context, _ *operation.Run) error {
		if err := b.runner.Cancel(ctx, "op-1", nil); !errors.Is(err, sql.ErrNoRows) {
			t.Errorf("cancel in an irrevocable step: %v", err)
		}
		return ctx.Err()
	}
	b.plan = operation.Plan{b.step("first", false), last}
	b.runner.Start(b.accept())
	b.ended(vps.StatusSucceeded)
	if err := b.runner.Cancel(ctx, "op-1", nil); !errors.Is(err, sql.ErrNoRows) {
		t.Errorf("cancel of an operation that has ended: %v", err)
	}
}

// TestCancelIsHeardAfterARestart: the wish is durable.
func TestCancelIsHeardAfterARestart(t *testing.T) {
	b := newBench(t)
	b.plan = operation.Plan{b.step("first", false), b.step("second", true)}
	op := b.accept()
	op.Status, op.Step = vps.StatusRunning, "first"
	b.must(b.store.Write(ctx, func(tx *store.Tx) error { return tx.SaveOperation(ctx, op) }))
	b.must(b.runner.Cancel(ctx, "op-1", nil))
	b.close()
	b.open()
	b.runner.Start(b.stored())
	b.ended(vps.StatusCancelled)
	b.wrote("undo first", "cancelled")
}

// TestCancelBeforeAnIrrevocableFirstStep (FAULTS row 48): it is heard before that step, which
// could not be taken back.
func TestCancelBeforeAnIrrevocableFirstStep(t *testing.T) {
	b := newBench(t)
	b.plan = operation.Plan{
		{Name: "one", Irrevocable: true, Do: func(context.Context, *operation.Run) error { b.note("one"); return nil }},
	}
	op := b.accept()
	b.must(b.store.Write(ctx, func(tx *store.Tx) error { return tx.RequestCancel(ctx, op.ID) }))
	b.runner.Start(op)
	b.ended(vps.StatusCancelled)
	b.wrote("cancelled")
}

// TestResultDoesNotGrow (FAULTS row 48): a step that is done again says the same again.
func TestResultDoesNotGrow(t *testing.T) {
	b := newBench(t)
	tries := 0
	b.plan = operation.Plan{{Name: "one", Irrevocable: true, Do: func(_ context.Context, r *operation.Run) error {
		r.AddResult("first")
		r.AddResult("second")
		if tries++; tries < 4 {
			return errAway
		}
		return nil
	}}}
	b.runner.Start(b.accept())
	if op := b.ended(vps.StatusSucceeded); op.Result != "first; second" {
		t.Errorf("after %d tries it says %q", tries, op.Result)
	}
}

func TestIrrevocableStepIsTriedAgainThenParkedAndResumed(t *testing.T) {
	b := newBench(t)
	cured := false
	last := b.step("last", true)
	last.Do = func(_ context.Context, r *operation.Run) error {
		if !cured {
			return errExpected
		}
		if !r.Again() {
			t.Error("a resumed step is not told that it was begun before")
		}
		return nil
	}
	b.plan = operation.Plan{b.step("first", false), last}
	b.runner.Start(b.accept())
	op := b.ended(vps.StatusNeedsAttention)
	if op.Error == nil || op.EndedAt != nil || op.Step != "last" {
		t.Errorf("parked: %+v", op)
	}
	cured = true
	_, err := b.runner.Resume(ctx, op, nil)
	b.must(err)
	if op := b.ended(vps.StatusSucceeded); op.Error != nil {
		t.Errorf("it succeeded with the error %v", op.Error)
	}
	if _, err := b.runner.Resume(ctx, op, nil); err == nil {
		t.Error("an operation that has ended was resumed")
	}
}

// TestResumeAtOnce: the operator may be faster than the goroutine that parked.
func TestResumeAtOnce(t *testing.T) {
	b := newBench(t)
	times := 0
	only := b.step("only", true)
	only.Do = func(context.Context, *operation.Run) error {
		if times++; times < 50 {
			return operation.Park(errExpected)
		}
		return nil
	}
	b.plan = operation.Plan{only}
	b.runner.Start(b.accept())
	for range 49 {
		_, err := b.runner.Resume(ctx, b.ended(vps.StatusNeedsAttention), nil)
		b.must(err)
	}
	b.ended(vps.StatusSucceeded)
}

// TestNextWaitsForTheEnd: what an operation holds is given back by its VPS, after it is
// final; the next operation of that VPS may hold the same by then. Others do not wait.
func TestNextWaitsForTheEnd(t *testing.T) {
	b := newBench(t)
	b.plan = operation.Plan{b.step("work", false)}
	giveBack := make(chan struct{})
	b.onEnd = func(op vps.Operation) {
		if op.ID == "op-1" {
			<-giveBack
			b.note("given back")
		}
	}
	b.runner.Start(b.accept())
	b.ended(vps.StatusSucceeded)
	b.runner.Start(b.acceptFor("v1", "op-2"))
	b.runner.Start(b.acceptFor("v2", "op-3"))
	b.endedOf("op-3", vps.StatusSucceeded)
	close(giveBack)
	b.endedOf("op-2", vps.StatusSucceeded)
	b.wrote("running", "work", "succeeded", "running", "work", "succeeded", "given back", "running", "work", "succeeded")
}

func TestWaitsForTheHost(t *testing.T) {
	b := newBench(t)
	tries := 0
	first := b.step("first", false)
	first.Do = func(context.Context, *operation.Run) error {
		if tries++; tries < 4 {
			return errAway
		}
		return nil
	}
	b.plan = operation.Plan{first}
	b.runner.Start(b.accept())
	b.ended(vps.StatusSucceeded)
}

func TestFailLeavesEverythingAsItIs(t *testing.T) {
	b := newBench(t)
	last := b.step("last", true)
	last.Do = func(_ context.Context, r *operation.Run) error {
		oweThaw(r)
		return operation.Fail(errExpected)
	}
	b.plan = operation.Plan{b.step("first", false), last}
	b.runner.Start(b.accept())
	b.ended(vps.StatusFailed)
	b.wrote("running", "first", "failed")
	if b.owesThaw() {
		t.Error("what the failed step had staged was recorded")
	}
}

func TestBack(t *testing.T) {
	b := newBench(t)
	times := 0
	second := b.step("second", true)
	second.Do = func(context.Context, *operation.Run) error {
		b.note("second")
		if times++; times < 3 {
			return operation.Back("first", errExpected)
		}
		return nil
	}
	b.plan = operation.Plan{b.step("first", true), second}
	b.runner.Start(b.accept())
	b.ended(vps.StatusSucceeded)
	b.wrote("running", "first", "second", "first", "second", "first", "second", "succeeded")
}

// TestBackForEver: two steps that always send the operation back and forth end
// at an operator.
func TestBackForEver(t *testing.T) {
	b := newBench(t)
	second := b.step("second", true)
	second.Do = func(context.Context, *operation.Run) error { return operation.Back("first", errExpected) }
	b.plan = operation.Plan{b.step("first", true), second}
	b.runner.Start(b.accept())
	if op := b.ended(vps.StatusNeedsAttention); op.Error == nil {
		t.Error("parked without a reason")
	}
}

func TestBackToNowhereIsParked(t *testing.T) {
	b := newBench(t)
	first := b.step("first", true)
	first.Do = func(context.Context, *operation.Run) error { return operation.Back("second", errExpected) }
	b.plan = operation.Plan{first, b.step("second", true)}
	b.runner.Start(b.accept())
	b.ended(vps.StatusNeedsAttention)
}

func TestUnknownStepIsParked(t *testing.T) {
	b := newBench(t)
	b.plan = operation.Plan{b.step("first", false)}
	op := b.accept()
	op.Status, op.Step = vps.StatusRunning, "from the future"
	b.must(b.store.Write(ctx, func(tx *store.Tx) error { return tx.SaveOperation(ctx, op) }))
	b.runner.Start(op)
	b.ended(vps.StatusNeedsAttention)
	b.wrote("needs_attention")
}

// TestStoppedRunnerLeavesWorkResumable: a step that was interrupted by the stop is
// neither failed nor undone, and the next runner takes it up.
func TestStoppedRunnerLeavesWorkResumable(t *testing.T) {
	b := newBench(t)
	begun := make(chan struct{}, 2)
	stopped := false
	first := b.step("first", false)
	first.Do = func(ctx context.Context, r *operation.Run) error {
		begun <- struct{}{}
		if !stopped {
			<-ctx.Done()
			return ctx.Err()
		}
		if !r.Again() {
			t.Error("the step is not told that it was begun before")
		}
		return nil
	}
	b.plan = operation.Plan{first}
	b.runner.Start(b.accept())
	<-begun
	b.close()
	stopped = true
	b.open()
	if op := b.stored(); op.Status != vps.StatusRunning || op.Step != "first" {
		t.Fatalf("after the stop it is %s at %s", op.Status, op.Step)
	}
	b.runner.Start(b.stored())
	b.ended(vps.StatusSucceeded)
}

// TestUndoGoesOnAfterARestart: that an operation is undone is durable before the first undo.
func TestUndoGoesOnAfterARestart(t *testing.T) {
	b := newBench(t)
	undoing := make(chan struct{})
	restarted := false
	first := b.step("first", false)
	first.Undo = func(ctx context.Context, _ *operation.Run) error {
		if !restarted {
			close(undoing)
			<-ctx.Done()
			return ctx.Err()
		}
		b.note("undo first")
		return nil
	}
	second := b.step("second", true)
	second.Do = func(context.Context, *operation.Run) error { return operation.RollBack(errExpected) }
	b.plan = operation.Plan{first, second}
	b.runner.Start(b.accept())
	<-undoing
	b.close()
	restarted = true
	b.open()
	b.runner.Start(b.stored())
	if op := b.ended(vps.StatusFailed); op.Error == nil || !strings.Contains(op.Error.Detail, "expected") {
		t.Errorf("error %+v", op.Error)
	}
	b.wrote("running", "first", "undo second", "undo second", "undo first", "failed")
}
