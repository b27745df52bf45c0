package libvirt

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
)

// A call into a QEMU that hangs lasts until that QEMU answers or ends. So that
// it holds nobody else up, a call has its connection for itself: while one call
// hangs, libvirt 9.0 lets every other of the same connection wait for multiples
// of the keepalive's interval, and works on five at most. And so that hanging
// calls do not use up libvirtd's workers (20 by default), a domain has at most
// one call that its QEMU must answer under way, and the places are bounded.

// line is what a call queues for.
type line int

const (
	// ordinary serves everything about one domain that may wait its turn.
	ordinary line = iota
	// agent serves what waits for a guest's agent and is no emergency.
	agent
	// thawing and processors serve only what ends a guest's standstill, or begins
	// one on purpose: they find a place whatever hangs in other domains.
	thawing
	processors
	// reading serves what libvirtd answers by itself, without asking a QEMU.
	reading
)

// places is how many calls of each line may be under way.
var places = [...]int{ordinary: 8, agent: 3, thawing: 4, processors: 4, reading: 2}

// callLimit is how long a call is waited for when the caller sets no limit of
// its own, and how long it may queue before. libvirt itself waits up to 30 s for
// another call to the same domain.
const callLimit = 40 * time.Second

var errLate = errors.New("no answer in time")

// pool lends the connections of one line.
type pool struct {
	room chan struct{} // holds one word for each call under way

	mu   sync.Mutex
	idle []*libvirt.Connect
}

func newPool(places int) *pool { return &pool{room: make(chan struct{}, places)} }

// take returns a connection that nobody else uses; the caller has a place already.
func (p *pool) take(uri string) (*libvirt.Connect, error) {
	p.mu.Lock()
	if last := len(p.idle) - 1; last >= 0 {
		c := p.idle[last]
		p.idle = p.idle[:last]
		p.mu.Unlock()
		return c, nil
	}
	p.mu.Unlock()
	// Outside the lock: to connect can take as long as libvirtd likes.
	return open(uri)
}

// give takes a connection back, unless it was lost.
func (p *pool) give(c *libvirt.Connect) {
	if alive, err := c.IsAlive(); err != nil || !alive {
		_, _ = c.Close()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, c)
}

// close hangs up the connections that nobody uses at present.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.idle {
		_, _ = c.Close()
	}
	p.idle = nil
}

// gates let one call through to each domain at a time. A call that is
// no longer waited for keeps its gate until it has ended: what is read of a
// domain afterwards is what came of it.
type gates struct {
	mu   sync.Mutex
	busy map[gate]chan struct{} // closed when it opens
}

type gate struct {
	which line
	id    string
}

// gateOf is one for all that the domain's QEMU must answer: where one call
// hangs, so does the next. The guest's agent is asked beside it.
func gateOf(which line, id string) gate {
	if which == processors {
		which = ordinary
	}
	return gate{which, id}
}

// pass waits until the gate is open and closes it behind the caller. Who waits in vain
// while others came through has met a queue, and no call that hangs.
func (g *gates) pass(ctx context.Context, at gate) error {
	for others := 0; ; others++ {
		g.mu.Lock()
		opens, busy := g.busy[at]
		if !busy {
			if g.busy == nil {
				g.busy = map[gate]chan struct{}{}
			}
			g.busy[at] = make(chan struct{})
			g.mu.Unlock()
			return nil
		}
		g.mu.Unlock()
		// Whoever is woken first closes the gate; the others wait for the next opening.
		select {
		case <-opens:
		case <-ctx.Done():
			if others > 0 {
				return fmt.Errorf("%w for the domain: %w", hypervisor.ErrQueued, context.Cause(ctx))
			}
			return fmt.Errorf("an earlier call to the domain hangs in libvirt: %w", context.Cause(ctx))
		}
	}
}

// open lets the next call of the same kind for that domain pass.
func (g *gates) open(at gate) {
	// Closing wakes all waiters; each looks again, and one of them passes.
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.busy[at])
	delete(g.busy, at)
}

// call is callWithin with the limit of calls that have none of their own.
func call[T any](ctx context.Context, h *Host, which line, id string, f func(*libvirt.Connect) (T, error)) (T, error) {
	// Bounded in any case: a call into a QEMU that hangs has no end of its own.
	return callWithin(ctx, h, which, id, callLimit, f)
}

// callWithin runs f on a connection of its own. A call of libvirt cannot be called
// off: when ctx ends, or the session, the caller goes on and f ends by itself,
// its outcome unknown. With an id it waits for the domain's gate first. The limit is
// for f: it begins when f has its place, however long that took.
func callWithin[T any](
	ctx context.Context, h *Host, which line, id string, limit time.Duration, f func(*libvirt.Connect) (T, error),
) (T, error) {
	s, err := h.enter()
	if err != nil {
		var none T
		return none, err
	}
	ctx, over := s.within(ctx)
	defer over()
	leave, err := s.admit(ctx, which, id)
	if err != nil {
		s.calls.Done()
		var none T
		return none, fmt.Errorf("%w: %w", hypervisor.ErrUnavailable, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errLate)
	defer cancel()
	// The place and the gate go back when f has ended, not when the caller has stopped
	// waiting.
	return await(ctx, func() (T, error) {
		defer s.calls.Done()
		defer leave()
		c, err := s.lines[which].take(s.uri)
		if err != nil {
			var none T
			return none, fmt.Errorf("%w: %w", hypervisor.ErrUnavailable, err)
		}
		defer s.lines[which].give(c)
		value, err := f(c)
		return value, told(classify(c, err))
	})
}

// await returns what f does, or ErrUnavailable when ctx ends before.
func await[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type outcome struct {
		value T
		err   error
	}
	// Room for the outcome, so that f can end with nobody waiting for it.
	done := make(chan outcome, 1)
	go func() {
		value, err := f()
		done <- outcome{value, err}
	}()
	select {
	case o := <-done:
		return o.value, o.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("%w: %w", hypervisor.ErrUnavailable, context.Cause(ctx))
	}
}

var errLost = errors.New("the connection to libvirt was lost")

// within returns a context that ends with the session too.
func (s *session) within(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(errLost) })
	return ctx, func() { stop(); cancel(nil) }
}

// admit waits for the domain's gate and for a place on the line, in this order:
// waiters for a domain that hangs take up no place.
func (s *session) admit(ctx context.Context, which line, id string) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	shut := func() {}
	if id != "" {
		at := gateOf(which, id)
		if err := s.gates.pass(ctx, at); err != nil {
			return nil, err
		}
		shut = func() { s.gates.open(at) }
	}
	room := s.lines[which].room
	select {
	case room <- struct{}{}:
		// The gate is opened last: its next caller finds a place.
		return func() { <-room; shut() }, nil
	case <-ctx.Done():
		shut()
		return nil, fmt.Errorf("%w, since so many hang: %w", hypervisor.ErrQueued, context.Cause(ctx))
	}
}

// on runs f on a domain.
func on[T any](ctx context.Context, h *Host, which line, id string, f func(*libvirt.Domain) (T, error)) (T, error) {
	return onWithin(ctx, h, which, id, callLimit, f)
}

// onWithin is on with a limit of its own for f.
func onWithin[T any](
	ctx context.Context, h *Host, which line, id string, limit time.Duration, f func(*libvirt.Domain) (T, error),
) (T, error) {
	// Anything else could be a name, and names are given away.
	if !isUUID(id) {
		var none T
		return none, fmt.Errorf("%w: %q is no UUID", hypervisor.ErrNotFound, id)
	}
	return callWithin(ctx, h, which, id, limit, func(c *libvirt.Connect) (T, error) {
		d, err := c.LookupDomainByUUIDString(id)
		if err != nil {
			var none T
			return none, err
		}
		defer d.Free()
		value, err := f(d)
		return value, whenOff(d, err)
	})
}

// do is on without a value, and says what failed.
func do(ctx context.Context, h *Host, which line, what, id string, f func(*libvirt.Domain) error) error {
	return doWithin(ctx, h, which, what, id, callLimit, f)
}

// doWithin is do with a limit of its own for f.
func doWithin(
	ctx context.Context, h *Host, which line, what, id string, limit time.Duration, f func(*libvirt.Domain) error,
) error {
	run := func(d *libvirt.Domain) (struct{}, error) { return struct{}{}, f(d) }
	_, err := onWithin(ctx, h, which, id, limit, run)
	if err != nil {
		return fmt.Errorf("cannot %s domain %s: %w", what, id, err)
	}
	return nil
}

// whenOff tells a call that only an active domain can serve from other invalid
// calls; libvirt has one code for both.
func whenOff(d *libvirt.Domain, err error) error {
	if !hasCode(err, libvirt.ERR_OPERATION_INVALID) {
		return err
	}
	if active, e := d.IsActive(); e == nil && !active {
		return fmt.Errorf("%w: %w", hypervisor.ErrOff, err)
	}
	return err
}
