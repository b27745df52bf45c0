// Package operation runs long work durably: every operation is a row, its step
// is recorded before the step touches the host, and a step's result is
// committed together with the next step's name. It knows no step's meaning.
//
// A runner that stops, politely or not, leaves its operations where they are;
// the next one takes them up at the step that is recorded.
package operation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// Config is what a Runner needs.
type Config struct {
	Store *store.Store
	// Plan returns the steps of an operation. An unknown kind is an error; the
	// operation is then parked.
	Plan func(op vps.Operation) (Plan, error)
	// Changed is called within the transaction that changes an operation's
	// status, to write the journal.
	Changed func(ctx context.Context, tx *store.Tx, op vps.Operation) error
	// Unavailable reports whether an error means the host does not answer now:
	// wait and try again, however long it takes.
	Unavailable func(error) bool
	// Explain turns an error into what a caller may read.
	Explain func(op vps.Operation, err error) *vps.Error
	// Failed is called when a step failed or cannot be recorded, before that is
	// tried again, for whatever must not wait so long.
	Failed func(ctx context.Context, op vps.Operation)
	// Hold is called before steps that should not be cut by a shutdown of the host,
	// and what it returns after them; nil: nobody is.
	Hold func(ctx context.Context, op vps.Operation) (release func())
	// Ended is called when a run is over, for whatever it still holds. The next
	// operation of the VPS is not begun before it returns.
	Ended func(op vps.Operation)
	// Over is called after that, for what need hold nobody up.
	Over   func(op vps.Operation)
	Logger *slog.Logger
	Now    func() time.Time
}

// Runner works on operations, each on a goroutine of its own.
type Runner struct {
	Config
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	live    map[string]*Run
	waiting map[string][]chan struct{} // by operation id, closed at each change
}

// New makes a Runner.
func New(c Config) *Runner {
	ctx, stop := context.WithCancel(context.Background())
	return &Runner{Config: c, ctx: ctx, stop: stop, live: map[string]*Run{}, waiting: map[string][]chan struct{}{}}
}

// Close stops all work where it is and waits until it has stopped.
func (r *Runner) Close() {
	r.mu.Lock() // not within a Start, which looks at ctx and then adds to wg
	r.stop()
	r.mu.Unlock()
	r.wg.Wait()
}

// Start begins or takes up an operation that is durable as pending or running.
func (r *Runner) Start(op vps.Operation) {
	run := &Run{
		runner: r,
		Op:     op,
		vps:    op.VPS,
		again:  op.Status == vps.StatusRunning,
		ended:  make(chan struct{}),
		moved:  time.Now(),
	}
	r.mu.Lock()
	if r.live[op.ID] != nil || r.ctx.Err() != nil {
		r.mu.Unlock()
		return
	}
	before := r.liveOfLocked(op.VPS)
	r.live[op.ID] = run
	r.wg.Add(1)
	r.mu.Unlock()
	go func() {
		defer r.wg.Done()
		run.after(before)
		run.work(r.ctx)
		run.moves(true) // it may wait for the host
		r.Ended(run.Op)
		r.mu.Lock()
		delete(r.live, op.ID)
		r.mu.Unlock()
		close(run.ended)
		r.wake(op.ID)
		r.Over(run.Op)
	}()
}

// liveOfLocked lists the runs of a VPS that are not over: an operation is final, and
// the next one may be asked for, before its run has given back what it holds.
func (r *Runner) liveOfLocked(vpsID string) (runs []*Run) {
	for _, run := range r.live {
		if run.vps == vpsID {
			runs = append(runs, run)
		}
	}
	return runs
}

// Cancel asks an operation to stop. also is done in the same transaction; nil:
// nothing. sql.ErrNoRows (wrapped) when it is too late.
func (r *Runner) Cancel(ctx context.Context, id string, also func(*store.Tx) error) error {
	err := r.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.RequestCancel(ctx, id); err != nil || also == nil {
			return err
		}
		return also(tx)
	})
	if err == nil {
		r.Interrupt(id)
	}
	return err
}

// Interrupt ends the present step of an operation that was asked to stop, if it is
// being worked on and the step can be ended.
func (r *Runner) Interrupt(id string) {
	r.mu.Lock()
	run := r.live[id]
	r.mu.Unlock()
	if run != nil {
		run.interrupt()
	}
}

// Resume takes up a parked operation at its step. also is done in the same
// transaction; nil: nothing.
func (r *Runner) Resume(
	ctx context.Context, op vps.Operation, also func(*store.Tx, vps.Operation) error,
) (vps.Operation, error) {
	return r.unpark(ctx, op, func(tx *store.Tx, op vps.Operation) error {
		if op.Irrevocable {
			op.Error = nil
		}
		if err := tx.SaveOperation(ctx, op); err != nil || also == nil {
			return err
		}
		return also(tx, op)
	})
}

// TakeBack undoes a parked operation. also is done in the same transaction.
func (r *Runner) TakeBack(
	ctx context.Context, op vps.Operation, also func(*store.Tx, vps.Operation) error,
) (vps.Operation, error) {
	return r.unpark(ctx, op, func(tx *store.Tx, op vps.Operation) error {
		op.Irrevocable, op.Error, op.CancelRequested = false, nil, true
		return errors.Join(tx.SaveOperation(ctx, op), tx.RequestCancel(ctx, op.ID), also(tx, op))
	})
}

// unpark has a parked operation worked on again, as save leaves it.
func (r *Runner) unpark(
	ctx context.Context, op vps.Operation, save func(*store.Tx, vps.Operation) error,
) (vps.Operation, error) {
	if err := r.awaitEnd(ctx, op.ID); err != nil {
		return op, err
	}
	err := r.Store.Write(ctx, func(tx *store.Tx) error {
		current, err := tx.Operation(ctx, op.ID)
		if err != nil {
			return err
		}
		if err := move(&current, vps.StatusRunning); err != nil {
			return err
		}
		if err := save(tx, current); err != nil {
			return err
		}
		op, err = tx.Operation(ctx, op.ID)
		return err
	})
	if err != nil {
		return op, err
	}
	// Somebody else's resuming may have come between, and been parked again.
	if r.awaitEnd(r.ctx, op.ID) == nil {
		r.Start(op)
	}
	return op, nil
}

// Park leaves an operation that nobody has begun to work on to an operator,
// within a transaction.
func (r *Runner) Park(ctx context.Context, tx *store.Tx, op vps.Operation, cause *vps.Error) error {
	if err := move(&op, vps.StatusNeedsAttention); err != nil {
		return err
	}
	op.Error = cause
	return errors.Join(tx.SaveOperation(ctx, op), r.Changed(ctx, tx, op))
}

// Abandon ends a parked operation as failed, in one transaction with also: what it
// worked on is gone, and nobody will take it up again.
func (r *Runner) Abandon(ctx context.Context, id string, cause *vps.Error, also func(*store.Tx) error) error {
	if err := r.awaitEnd(ctx, id); err != nil {
		return err
	}
	err := r.Store.Write(ctx, func(tx *store.Tx) error {
		op, err := tx.Operation(ctx, id)
		if err != nil {
			return err
		}
		if op.Status != vps.StatusNeedsAttention {
			return vps.Errorf(
				vps.CodeOperationInProgress, "operation %s is %s and does not wait for an operator", id, op.Status,
			)
		}
		if err := move(&op, vps.StatusFailed); err != nil {
			return err
		}
		now := r.Now()
		op.Error, op.EndedAt = cause, &now
		if err := errors.Join(tx.SaveOperation(ctx, op), r.Changed(ctx, tx, op)); err != nil {
			return err
		}
		return also(tx)
	})
	r.wake(id)
	return err
}

// awaitEnd returns when nobody works on an operation that was seen parked: the
// run that parked it may still be giving back what it held.
func (r *Runner) awaitEnd(ctx context.Context, id string) error {
	r.mu.Lock()
	run := r.live[id]
	r.mu.Unlock()
	if run == nil {
		return nil
	}
	select {
	case <-run.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stuck names an operation that makes no headway for longer than limit although it waits
// for no step; nil when there is none.
func (r *Runner) Stuck(limit time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, run := range r.live {
		if run.stuck(limit) {
			return fmt.Errorf("operation %s has stood still between two steps for more than %s", id, limit)
		}
	}
	return nil
}

// Live adds to an operation what only the memory knows: its progress.
func (r *Runner) Live(op vps.Operation) vps.Operation {
	r.mu.Lock()
	run := r.live[op.ID]
	r.mu.Unlock()
	if run != nil {
		op.Progress = run.progress()
	}
	if op.Status == vps.StatusSucceeded {
		op.Progress.Percent = 100
	}
	return op
}

// Changes returns a channel that is closed at the operation's next change.
func (r *Runner) Changes(id string) <-chan struct{} {
	ch := make(chan struct{})
	r.mu.Lock()
	r.waiting[id] = append(r.waiting[id], ch)
	r.mu.Unlock()
	return ch
}

// Forget gives up a channel from Changes that nobody waits for any more.
func (r *Runner) Forget(id string, ch <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := r.waiting[id][:0]
	for _, c := range r.waiting[id] {
		if c != ch {
			kept = append(kept, c)
		}
	}
	if r.waiting[id] = kept; len(kept) == 0 {
		delete(r.waiting, id)
	}
}

func (r *Runner) wake(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ch := range r.waiting[id] {
		close(ch)
	}
	delete(r.waiting, id)
}

// pause waits before another try; it is over early when ctx is.
func pause(ctx context.Context, try int) error {
	wait := min(100*time.Millisecond<<min(try, 5), 2*time.Second)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(wait):
		return nil
	}
}

var errInterrupted = errors.New("cancelled on request")

// maxTries is how often a step that may not be undone is tried, and how often
// an operation may go back, before an operator is asked.
const maxTries = 6

// work runs the operation to its end, to an operator, or to the runner's stop.
func (r *Run) work(ctx context.Context) {
	ctx = failpoint.Within(ctx, string(r.Op.Kind), "run")
	plan, err := r.runner.Plan(r.Op)
	if err != nil {
		r.finish(ctx, vps.StatusNeedsAttention, err)
		return
	}
	if r.Op.Status == vps.StatusPending && !r.begin(ctx, plan) {
		return
	}
	at := plan.index(r.Op.Step)
	if at < 0 {
		r.finish(ctx, vps.StatusNeedsAttention, fmt.Errorf("the recorded step %q is unknown to this version", r.Op.Step))
		return
	}
	if !r.Op.Irrevocable && (r.Op.Error != nil || r.Op.CancelRequested) {
		r.rollBack(ctx, plan, at, nil)
		return
	}
	r.forward(ctx, plan, at)
}

// begin records that the first step is about to be done.
func (r *Run) begin(ctx context.Context, plan Plan) bool {
	now, op := r.runner.Now(), r.Op
	op.StartedAt = &now
	op.Step, op.Irrevocable = plan[0].Name, plan[0].Irrevocable
	if err := move(&op, vps.StatusRunning); err != nil {
		r.runner.Logger.Error("operation not begun", op.LogAttr(), "error", err)
		return false
	}
	var unless func(*store.Tx) error
	if op.Irrevocable {
		unless = r.cancelAsked(ctx) // the last moment at which it can be heard
	}
	err := r.saveUnless(ctx, op, true, unless)
	if errors.Is(err, errInterrupted) {
		r.finish(ctx, vps.StatusCancelled, nil)
	}
	return err == nil
}

// cancelAsked fails when somebody has asked the operation to stop.
func (r *Run) cancelAsked(ctx context.Context) func(*store.Tx) error {
	return func(tx *store.Tx) error {
		stored, err := tx.Operation(ctx, r.Op.ID)
		if err == nil && stored.CancelRequested {
			return RollBack(errInterrupted)
		}
		return err
	}
}

// tries counts, in one run, how often the present step failed and how often the
// operation went back.
type tries struct{ step, back int }

// forward does the steps from at on.
func (r *Run) forward(ctx context.Context, plan Plan, at int) {
	var t tries
	defer r.letGo()
	for at < len(plan) {
		r.hold(ctx, plan[at].Uncut)
		r.enter(at, len(plan))
		err := r.do(ctx, plan[at])
		if err == nil {
			err = r.advance(failpoint.Within(ctx, string(r.Op.Kind), plan[at].Name), plan, at)
		}
		if ctx.Err() != nil {
			return // left resumable
		}
		if err == nil {
			at, t.step, r.again = at+1, 0, false
			continue
		}
		r.staged, r.again = nil, true // of a step that is not done nothing is recorded
		r.tellFailed(ctx)
		if at = r.failed(ctx, plan, at, err, &t); at < 0 || pause(ctx, max(t.step, t.back)) != nil {
			return
		}
		t.step++
	}
}

// tellFailed lets who has to do something at once do it; that may wait for the host.
func (r *Run) tellFailed(ctx context.Context) {
	r.moves(true)
	defer r.moves(false)
	r.runner.Failed(ctx, r.Op)
}

// hold has the host stay up from the first of some steps that should not be cut until
// after the last.
func (r *Run) hold(ctx context.Context, uncut bool) {
	switch {
	case !uncut:
		r.letGo()
	case r.held == nil && r.runner.Hold != nil:
		r.moves(true)
		r.held = r.runner.Hold(ctx, r.Op)
		r.moves(false)
	}
}

func (r *Run) letGo() {
	if r.held != nil {
		r.held()
		r.held = nil
	}
}

// failed decides what becomes of an operation whose step failed. It returns the
// step to be tried next, or -1 when this run is over.
func (r *Run) failed(ctx context.Context, plan Plan, at int, err error, t *tries) int {
	verdict, back := verdictOf(err)
	switch {
	case verdict == verdictFail:
		r.finish(ctx, vps.StatusFailed, err)
		return -1
	case verdict == verdictRollBack, verdict == "" && !r.Op.Irrevocable && !r.runner.Unavailable(err):
		r.rollBack(ctx, plan, at, err)
		return -1
	case verdict == verdictPark, verdict == verdictBack && t.back >= maxTries,
		verdict == "" && t.step >= maxTries && !r.runner.Unavailable(err):
		r.finish(ctx, vps.StatusNeedsAttention, err)
		return -1
	}
	r.runner.Logger.Warn("step is tried again", r.Op.LogAttr(), "step", plan[at].Name, "error", err)
	if verdict == verdictBack {
		t.back++
		return r.goBack(ctx, plan, at, back)
	}
	return at
}

// do runs one step. A step that can be cancelled is interrupted by a cancel.
func (r *Run) do(ctx context.Context, s Step) error {
	r.moves(true)
	defer r.moves(false)
	ctx = failpoint.Within(ctx, string(r.Op.Kind), s.Name)
	if s.Irrevocable || r.Op.Irrevocable {
		return s.Do(ctx, r)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.mu.Lock()
	if r.cancel = cancel; s.Uncut {
		r.cancel = nil
	}
	cancelled := r.cancelled
	r.mu.Unlock()
	if cancelled {
		return RollBack(errInterrupted)
	}
	err := s.Do(ctx, r)
	if err != nil && errors.Is(context.Cause(ctx), errInterrupted) {
		return RollBack(errInterrupted)
	}
	return err
}

// advance commits the step's result together with the next step's name, or
// with the end. A cancel that came before is honoured here, and only here can
// the operation become irrevocable, so that a cancel is never half heard.
func (r *Run) advance(ctx context.Context, plan Plan, at int) error {
	op := r.Op
	last := at+1 == len(plan)
	if last {
		now := r.runner.Now()
		op.EndedAt = &now
		if err := move(&op, vps.StatusSucceeded); err != nil {
			return err
		}
	} else {
		op.Step = plan[at+1].Name
		op.Irrevocable = op.Irrevocable || plan[at+1].Irrevocable
	}
	var unless func(*store.Tx) error
	if !r.Op.Irrevocable && !last {
		unless = r.cancelAsked(ctx)
	}
	if err := r.commit(ctx, op, last, unless); err != nil {
		return fmt.Errorf("cannot record step %s: %w", plan[at].Name, err)
	}
	return nil
}

// goBack records an earlier step as the present one.
func (r *Run) goBack(ctx context.Context, plan Plan, at int, step string) int {
	to := plan.index(step)
	if to < 0 || to > at {
		r.finish(ctx, vps.StatusNeedsAttention, fmt.Errorf("step %s cannot go back to %q", plan[at].Name, step))
		return -1
	}
	r.Op.Step = step
	if !r.save(ctx, false) {
		return -1
	}
	return to
}

// rollBack undoes the steps from at downwards and ends the operation.
func (r *Run) rollBack(ctx context.Context, plan Plan, at int, cause error) {
	if r.Op.Error == nil && cause != nil && !errors.Is(cause, errInterrupted) {
		// Recorded first: after a restart the operation goes on undoing.
		r.Op.Error = r.runner.Explain(r.Op, cause)
		r.runner.Logger.Warn("operation is undone", r.Op.LogAttr(), "step", r.Op.Step, "error", cause)
	}
	r.Op.Irrevocable = false
	if !r.save(ctx, false) {
		return
	}
	for try := 0; at >= 0; {
		if undo := plan[at].Undo; undo != nil {
			r.moves(true)
			err := undo(failpoint.Within(ctx, string(r.Op.Kind), "undo_"+plan[at].Name), r)
			r.moves(false)
			if err != nil {
				if ctx.Err() != nil {
					return
				}
				if v, _ := verdictOf(err); v == verdictForward {
					r.Op.Irrevocable = true
					r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.DropCancel(ctx, r.Op.ID) })
					r.finish(ctx, vps.StatusNeedsAttention, err)
					return
				}
				r.runner.Logger.Warn("undo is tried again", r.Op.LogAttr(), "step", plan[at].Name, "error", err)
				if try++; try > maxTries && !r.runner.Unavailable(err) {
					r.finish(ctx, vps.StatusNeedsAttention, fmt.Errorf("step %s cannot be undone: %w", plan[at].Name, err))
					return
				}
				if pause(ctx, try) != nil {
					return
				}
				continue
			}
		}
		at, try = at-1, 0
	}
	if r.Op.Error == nil {
		r.finish(ctx, vps.StatusCancelled, nil)
		return
	}
	r.finish(ctx, vps.StatusFailed, nil)
}

// finish ends or parks the operation; cause is its error unless it has one.
func (r *Run) finish(ctx context.Context, to vps.Status, cause error) {
	if cause != nil && (r.Op.Error == nil || to == vps.StatusNeedsAttention) {
		r.Op.Error = r.runner.Explain(r.Op, cause)
		r.runner.Logger.Error("operation stopped", r.Op.LogAttr(), "step", r.Op.Step, "status", to, "error", cause)
	}
	if err := move(&r.Op, to); err != nil {
		r.runner.Logger.Error("operation not ended", r.Op.LogAttr(), "error", err)
		return
	}
	if to.Final() {
		now := r.runner.Now()
		r.Op.EndedAt = &now
	}
	r.save(ctx, true)
}

// save makes the operation and what is staged durable, trying until it works
// or the runner stops: without the record nothing further may be done.
func (r *Run) save(ctx context.Context, statusChanged bool) bool {
	return r.saveUnless(ctx, r.Op, statusChanged, nil) == nil
}

// saveUnless does so for op, which r is then, unless that is refused with errInterrupted.
func (r *Run) saveUnless(ctx context.Context, op vps.Operation, statusChanged bool, unless func(*store.Tx) error) error {
	for try := 0; ; try++ {
		r.moves(false)
		err := r.commit(ctx, op, statusChanged, unless)
		if err == nil || errors.Is(err, errInterrupted) {
			return err
		}
		r.runner.Logger.Error("operation cannot be recorded", r.Op.LogAttr(), "error", err)
		r.tellFailed(ctx)
		if err := pause(ctx, try); err != nil {
			return err
		}
	}
}

// commit writes op, with the staged changes, in one transaction.
func (r *Run) commit(ctx context.Context, op vps.Operation, statusChanged bool, first func(*store.Tx) error) error {
	err := r.runner.Store.Write(ctx, func(tx *store.Tx) error {
		if first != nil {
			if err := first(tx); err != nil {
				return err
			}
		}
		for _, write := range r.staged {
			if err := write(ctx, tx); err != nil {
				return err
			}
		}
		if err := tx.SaveOperation(ctx, op); err != nil {
			return err
		}
		if statusChanged {
			return r.runner.Changed(ctx, tx, op)
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.Op, r.staged = op, nil
	r.runner.wake(op.ID)
	return nil
}
