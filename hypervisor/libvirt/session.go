package libvirt

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
)

const (
	// keepAliveEvery and keepAliveCount notice a libvirtd that hangs after
	// some 8 seconds and free the calls it holds. One that died is noticed at once.
	keepAliveEvery = 2 // seconds
	keepAliveCount = 3

	// connectWithin is how long one attempt to connect may take. The client
	// library waits for ever for a libvirtd that accepts and then says nothing.
	connectWithin = 10 * time.Second

	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second
)

// line is one of a session's two connections.
type line int

const (
	// ordinary serves everything that may have to wait its turn.
	ordinary line = iota
	// emergency serves only what ends a guest's standstill (thaw, resume) or
	// begins one on purpose: libvirtd works on only five calls of a connection
	// at a time, and the ordinary ones may all be stuck.
	emergency
)

// session is what lives from one connection to its loss. Never reused.
type session struct {
	lines [2]*libvirt.Connect
	lost  chan struct{} // gets a word from either connection's close callback
	over  chan struct{} // closed when the session is given up
	undo  []func() error
	calls sync.WaitGroup
}

var loop struct {
	once sync.Once
	err  error
}

// startLoop starts the one event loop of this process. It has no end: libvirt
// offers no way to take a registered implementation back.
func startLoop() error {
	loop.once.Do(func() {
		if loop.err = libvirt.EventRegisterDefaultImpl(); loop.err != nil {
			return
		}
		go func() {
			for {
				// It fails only for an event that went away meanwhile; the next run is unaffected.
				_ = libvirt.EventRunDefaultImpl()
			}
		}()
	})
	return loop.err
}

// keepConnected connects, waits for the loss, and connects again, until ctx
// ends. It closes tried after the first attempt.
func (h *Host) keepConnected(ctx context.Context, tried chan<- struct{}) {
	delay := retryFirst
	for first := true; ctx.Err() == nil; first = false {
		s, err := h.connect(ctx)
		if err == nil {
			delay = retryFirst
			h.adopt(s)
		}
		if first {
			close(tried)
		}
		if err == nil {
			h.log.Info("connected to libvirt", "uri", h.uri)
			h.serve(ctx, s)
			continue
		}
		h.log.Warn("libvirt does not answer; trying again", "uri", h.uri, "error", err)
		wait := time.NewTimer(delay/2 + rand.N(delay/2))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
		}
		delay = min(2*delay, retryMost)
	}
}

// adopt makes a session the present one and tells of it.
func (h *Host) adopt(s *session) {
	h.mu.Lock()
	h.session = s
	h.mu.Unlock()
	h.events.put(hypervisor.Event{Kind: hypervisor.EventConnected})
}

// serve waits until the session is lost or ctx ends and gives it up.
func (h *Host) serve(ctx context.Context, s *session) {
	select {
	case <-s.lost:
		h.log.Warn("lost the connection to libvirt", "uri", h.uri)
		h.events.put(hypervisor.Event{Kind: hypervisor.EventDisconnected})
	case <-ctx.Done():
	}
	h.mu.Lock()
	h.session = nil
	h.mu.Unlock()
	close(s.over)
	h.ended.Go(s.end)
}

// connect makes a new session. When libvirtd accepts and then says nothing, the
// attempt cannot be called off; it is then left to end by itself.
func (h *Host) connect(ctx context.Context) (*session, error) {
	type outcome struct {
		session *session
		err     error
	}
	done := make(chan outcome, 1)
	go func() {
		s, err := h.dial()
		done <- outcome{s, err}
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, connectWithin, errors.New("no answer in time"))
	defer cancel()
	select {
	case o := <-done:
		return o.session, o.err
	case <-ctx.Done():
		go func() {
			if o := <-done; o.err == nil {
				o.session.end()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

func (h *Host) dial() (*session, error) {
	s := &session{lost: make(chan struct{}, 1), over: make(chan struct{})}
	for i := range s.lines {
		if err := s.open(h.uri, line(i)); err != nil {
			s.end()
			return nil, err
		}
	}
	if err := s.register(h.events); err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

// open makes one connection and watches over it.
func (s *session) open(uri string, which line) error {
	c, err := libvirt.NewConnect(uri)
	if err != nil {
		return err
	}
	s.lines[which] = c
	if err := c.SetKeepAlive(keepAliveEvery, keepAliveCount); err != nil {
		return err
	}
	err = c.RegisterCloseCallback(func(*libvirt.Connect, libvirt.ConnectCloseReason) {
		select {
		case s.lost <- struct{}{}:
		default:
		}
	})
	if err == nil {
		s.undo = append(s.undo, c.UnregisterCloseCallback)
	}
	return err
}

// end waits for the calls still under way and gives the connections up. Of a
// lost connection nothing can be taken back any more, which is no loss.
func (s *session) end() {
	s.calls.Wait()
	for _, undo := range s.undo {
		_ = undo()
	}
	for _, c := range s.lines {
		if c != nil {
			_, _ = c.Close()
		}
	}
}

// enter takes part in the present session; the caller must say Done to its calls.
func (h *Host) enter() (*session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return nil, fmt.Errorf("%w: the host was closed", hypervisor.ErrUnavailable)
	case h.session == nil:
		return nil, fmt.Errorf("%w: not connected to libvirt", hypervisor.ErrUnavailable)
	}
	h.session.calls.Add(1)
	return h.session, nil
}

// call runs f on one of the connections. A call of libvirt cannot be called off:
// when ctx ends, the caller goes on and f ends by itself, its outcome unknown.
// The same when the session is over: of several calls under way when libvirtd
// hangs, libvirt 9.0 frees only one.
func call[T any](ctx context.Context, h *Host, which line, f func(*libvirt.Connect) (T, error)) (T, error) {
	type outcome struct {
		value T
		err   error
	}
	var none T
	if ctx.Err() != nil {
		return none, fmt.Errorf("%w: %w", hypervisor.ErrUnavailable, context.Cause(ctx))
	}
	s, err := h.enter()
	if err != nil {
		return none, err
	}
	done := make(chan outcome, 1)
	go func() {
		defer s.calls.Done()
		value, err := f(s.lines[which])
		done <- outcome{value, classify(s.lines[which], err)}
	}()
	select {
	case o := <-done:
		return o.value, o.err
	case <-s.over:
		return none, fmt.Errorf("%w: the connection to libvirt was lost", hypervisor.ErrUnavailable)
	case <-ctx.Done():
		return none, fmt.Errorf("%w: %w", hypervisor.ErrUnavailable, context.Cause(ctx))
	}
}

// on runs f on a domain.
func on[T any](ctx context.Context, h *Host, which line, id string, f func(*libvirt.Domain) (T, error)) (T, error) {
	if !isUUID(id) {
		var none T
		return none, fmt.Errorf("%w: %q is no UUID", hypervisor.ErrNotFound, id)
	}
	return call(ctx, h, which, func(c *libvirt.Connect) (T, error) {
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
	_, err := on(ctx, h, which, id, func(d *libvirt.Domain) (struct{}, error) { return struct{}{}, f(d) })
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

// isUUID says whether id has the form of a lower-case UUID. libvirt itself
// would take other spellings for the same domain.
func isUUID(id string) bool {
	if len(id) != 36 {
		return false
	}
	for i, c := range id {
		switch dash := i == 8 || i == 13 || i == 18 || i == 23; {
		case dash && c != '-':
			return false
		case !dash && !('0' <= c && c <= '9' || 'a' <= c && c <= 'f'):
			return false
		}
	}
	return true
}

// hasCode says whether err is libvirt's error with one of these codes.
func hasCode(err error, codes ...libvirt.ErrorNumber) bool {
	var e libvirt.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, code := range codes {
		if e.Code == code {
			return true
		}
	}
	return false
}
