package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"vpssnapd/api"
	"vpssnapd/cmd/internal/site"
)

// campaign is the whole: the host, its VPSes, and who kills.
type campaign struct {
	seed    uint64
	site    *site.Site
	striker *striker
	victims []*victim
	os      *osGuest // nil until its first round
	rounds  int
	took    time.Duration
	spent   map[string]time.Duration // by what a round consists of

	mu       sync.Mutex              // the works of a round are done side by side
	outcomes map[string]int          // of operations
	violated context.CancelCauseFunc // stops everything, with the reason
}

// The seed draws everything that is drawn, so that a violation can be tried again.
func newCampaign(dir string, seed uint64) (*campaign, error) {
	s, err := newStriker(dir)
	if err != nil {
		return nil, err
	}
	c := &campaign{seed: seed, striker: s, outcomes: map[string]int{}, spent: map[string]time.Duration{}}
	s.campaign = c
	return c, nil
}

// run does rounds until the time is over, kills are enough, or something is wrong.
func (c *campaign) run(parent context.Context, limit time.Duration, kills int) error {
	ctx, violated := context.WithCancelCause(parent)
	c.violated = violated
	var helpers sync.WaitGroup
	helpers.Go(func() { c.striker.serve(ctx) })
	helpers.Go(func() { c.keep(ctx) })
	err := c.populate(ctx)
	began := time.Now()
	for err == nil && parent.Err() == nil && time.Since(began) < limit {
		if n, _ := c.striker.struck(); kills > 0 && n >= kills {
			break
		}
		// From seed and number, whatever the rounds before have come to.
		p := draw(c.seed, c.rounds+1, len(c.victims))
		round, started := c.round, time.Now()
		if c.rounds%osEvery == osFirst {
			round = c.osRound
		}
		err = round(ctx, p)
		if c.rounds%osEvery == osFirst {
			c.spent["the guest with an operating system"] += time.Since(started)
		}
		if err != nil {
			err = c.explain(ctx, p, err)
			break
		}
		c.rounds++
	}
	c.took = time.Since(began)
	// It ends the helpers too.
	violated(nil)
	c.striker.close()
	helpers.Wait()
	c.report()
	if parent.Err() != nil {
		return nil // told to stop
	}
	return err
}

// keep starts the daemon again whenever it has died, until ctx is over.
func (c *campaign) keep(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.site.DaemonEnded():
		}
		// A crash of its own is what the campaign looks for.
		if !c.site.DaemonKilled() {
			c.violated(errors.New("the daemon has ended by itself"))
			return
		}
		if err := c.site.StartDaemon(ctx); err != nil && ctx.Err() == nil {
			select {
			case <-c.site.DaemonEnded(): // killed again, in its recovery
			default:
				c.violated(err)
				return
			}
		}
	}
}

// work is one operation of a round.
type work struct {
	turn   turn
	victim *victim
	kind   string
	op     api.Operation
	began  time.Time
	acked  uint32 // what the guest had acknowledged before
	killed bool   // its QEMU was
	late   bool   // it was refused because the time for it had just ended
}

// operation is the kind of operation that the daemon makes of it.
func (w *work) operation() string {
	switch w.kind {
	case replace:
		return take
	case endOption, lapse:
		return remove
	}
	return w.kind
}

// round does one operation on some VPSes side by side, kills meanwhile, waits
// until all is settled, and checks everything.
func (c *campaign) round(ctx context.Context, p plan) error {
	var works []*work
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"letting the guests write", func() (err error) { works, err = c.prepare(ctx, p); return err }},
		{"operations and kills", func() error { return c.perform(ctx, p, works) }},
		{"checking", func() error { return c.checkAll(ctx, works) }},
	} {
		began := time.Now()
		if err := step.do(); err != nil {
			return err
		}
		c.spent[step.name] += time.Since(began)
	}
	return nil
}

// prepare chooses the operations, and lets each VPS have something new.
func (c *campaign) prepare(ctx context.Context, p plan) ([]*work, error) {
	works := make([]*work, len(p.turns))
	err := each(works, func(i int) error {
		v := c.victims[p.turns[i].victim]
		if err := c.stir(ctx, v); err != nil {
			return fmt.Errorf("%s before the round: %w", v.name, err)
		}
		// From here on every boot is to be explained by the round.
		v.console.boots = nil
		works[i] = &work{turn: p.turns[i], victim: v, kind: p.turns[i].kind(v), acked: v.console.acked}
		return nil
	})
	return works, err
}

// checkAll waits for no clock: each check gives the daemon its own moment.
func (c *campaign) checkAll(ctx context.Context, works []*work) error {
	err := each(works, func(i int) error {
		w := works[i]
		if err := c.check(ctx, w); err != nil {
			return fmt.Errorf("%s after %s (%s at %s): %w", w.victim.name, w.kind, w.op.Status, w.op.Step, err)
		}
		return nil
	})
	return errors.Join(err, c.wholeHost(ctx))
}

// each does something for all works side by side.
func each(works []*work, do func(i int) error) error {
	errs := make([]error, len(works))
	var all sync.WaitGroup
	for i := range works {
		all.Go(func() { errs[i] = do(i) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// perform has everything done and struck, and returns when it is settled.
func (c *campaign) perform(ctx context.Context, p plan, works []*work) error {
	// Before the operations, since the first failpoint may be in their acceptance.
	c.striker.begin(allowed(p.strikes, works), works)
	defer c.striker.end()
	var sudden sync.WaitGroup
	defer sudden.Wait()
	if p.sudden != nil {
		sudden.Go(func() {
			if pause(ctx, p.moment) == nil {
				c.striker.suddenly(ctx, *p.sudden)
			}
		})
	}
	return each(works, func(i int) error {
		if err := c.begin(ctx, works[i]); err != nil {
			return err
		}
		return c.settle(ctx, works[i])
	})
}

// note counts what became of an operation.
func (c *campaign) note(outcome string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outcomes[outcome]++
}

// pause waits, or ends with the campaign and its reason.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
