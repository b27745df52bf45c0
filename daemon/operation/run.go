package operation

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// Run is one operation being worked on. A step reads Op and speaks to the
// record through the methods; only the run's own goroutine calls them.
type Run struct {
	Op     vps.Operation
	vps    string // of Op, for others than the run
	runner *Runner
	staged []func(context.Context, *store.Tx) error
	again  bool
	held   func()        // while the host should not go down
	ended  chan struct{} // closed when nobody works on it any more

	mu        sync.Mutex
	cancel    context.CancelCauseFunc
	cancelled bool
	step      int
	steps     int
	stepBegan time.Time
	done      int64
	total     int64
	note      string
	within    bool      // in a step, or in its undo
	moved     time.Time // when it last began or ended one, or tried to record it
}

// Stage adds a write to the transaction that records the present step as done.
// The write gets that transaction's context: the step's own has ended by then.
func (r *Run) Stage(write func(context.Context, *store.Tx) error) { r.staged = append(r.staged, write) }

// Record makes a write durable now, within a step.
func (r *Run) Record(ctx context.Context, write func(*store.Tx) error) error {
	return r.runner.Store.Write(ctx, write)
}

// Again reports whether this step was begun before: by a process that is gone, or in
// an earlier try. The host then tells how far it came.
func (r *Run) Again() bool { return r.again }

// SetPlan keeps what the steps after this one need. It is recorded with the step.
func (r *Run) SetPlan(v any) error {
	plan, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot keep the plan of operation %s: %w", r.Op.ID, err)
	}
	r.Op.Plan = plan
	return nil
}

// Plan reads what SetPlan kept.
func (r *Run) Plan(v any) error { return decode(r.Op, r.Op.Plan, v) }

// Request reads what the caller asked for.
func (r *Run) Request(v any) error { return decode(r.Op, r.Op.Request, v) }

func decode(op vps.Operation, data []byte, v any) error {
	if len(data) == 0 {
		return nil
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("the record of operation %s cannot be read: %w", op.ID, err)
	}
	return nil
}

// AddResult adds a part to what the operation says of its outcome, once: a step that
// is done again says the same again.
func (r *Run) AddResult(part string) {
	parts := strings.Split(r.Op.Result, "; ")
	switch {
	case r.Op.Result == "":
		r.Op.Result = part
	case !slices.Contains(parts, part):
		r.Op.Result += "; " + part
	}
}

// Progress tells how much of the present step is done, in bytes.
func (r *Run) Progress(done, total int64) {
	r.mu.Lock()
	r.done, r.total = done, total
	r.mu.Unlock()
}

// moves notes that the run goes on: into a step (or its undo), or out of it.
func (r *Run) moves(within bool) {
	r.mu.Lock()
	r.within, r.moved = within, time.Now()
	r.mu.Unlock()
}

// after waits for the ends of other runs, which may have to wait for the host.
func (r *Run) after(others []*Run) {
	r.moves(true)
	for _, other := range others {
		<-other.ended
	}
	r.moves(false)
}

// stuck reports whether the run has made no headway between two steps for longer than limit.
func (r *Run) stuck(limit time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.within && time.Since(r.moved) > limit
}

// Note says what holds the present step up, for a human; "" when nothing does.
func (r *Run) Note(note string) {
	r.mu.Lock()
	r.note = note
	r.mu.Unlock()
}

func (r *Run) enter(step, steps int) {
	r.mu.Lock()
	r.step, r.steps, r.stepBegan, r.done, r.total, r.note = step, steps, time.Now(), 0, 0, ""
	r.mu.Unlock()
}

// interrupt ends the present step if it can be cancelled.
func (r *Run) interrupt() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cancelled = true
	if r.cancel != nil {
		r.cancel(errInterrupted)
	}
}

func (r *Run) progress() vps.Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := vps.Progress{DoneBytes: r.done, TotalBytes: r.total, Note: r.note}
	if r.steps == 0 {
		return p
	}
	part := 0.0
	if r.total > 0 {
		part = min(float64(r.done)/float64(r.total), 1)
	}
	p.Percent = int(100 * (float64(r.step) + part) / float64(r.steps))
	if part > 0 && part < 1 {
		eta := int64(time.Since(r.stepBegan).Seconds() * (1 - part) / part)
		p.ETASeconds = &eta
	}
	return p
}
