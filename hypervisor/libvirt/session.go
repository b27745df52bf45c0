package libvirt

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/feed"
)

const (
	// keepAliveEvery and keepAliveCount notice a libvirtd that hangs after
	// some 8 seconds and free the calls it holds. One that died is noticed at once.
	keepAliveEvery = 2 // seconds
	keepAliveCount = 3

	// connectWithin is how long one attempt to connect may take before the log
	// says so. The client library waits for ever for a libvirtd that accepts and
	// then says nothing.
	connectWithin = 10 * time.Second

	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second
)

// session is what lives from one connection to its loss. Never reused.
type session struct {
	uri string
	// events carries nothing but events. Its loss is the session's.
	events *libvirt.Connect
	lost   chan struct{}   // gets a word from its close callback
	ctx    context.Context // ends when the session is given up
	giveUp context.CancelFunc
	undo   []func() error
	calls  sync.WaitGroup
	lines  [len(places)]*pool
	gates  gates
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
		// Spread: everybody on this host who lost libvirtd connects again now.
		wait := time.NewTimer(delay/2 + rand.N(delay/2)) //nolint:gosec // it spreads attempts, it keeps no secret
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
	h.events.Put(hypervisor.Event{Kind: hypervisor.EventConnected})
}

// serve waits until the session is lost or ctx ends and gives it up.
func (h *Host) serve(ctx context.Context, s *session) {
	select {
	case <-s.lost:
		h.log.Warn("lost the connection to libvirt", "uri", h.uri)
		h.events.Put(hypervisor.Event{Kind: hypervisor.EventDisconnected})
	case <-ctx.Done():
	}
	// First no new calls, then the end of those under way: they are told by the
	// session's context.
	h.mu.Lock()
	h.session = nil
	h.mu.Unlock()
	h.ended.Go(s.end)
}

// connect makes a new session. While libvirtd accepts and then says nothing, the
// attempt cannot be called off, and there is no second one beside it.
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
	silent := time.AfterFunc(connectWithin, func() {
		h.log.Warn("libvirt accepts connections and says nothing; waiting for it", "uri", h.uri)
	})
	defer silent.Stop()
	select {
	case o := <-done:
		return o.session, o.err
	case <-ctx.Done():
		// A connection that still comes about is not left open.
		go func() {
			if o := <-done; o.err == nil {
				o.session.end()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

// dial makes the connections of a session; when one fails, none is left open.
func (h *Host) dial() (*session, error) {
	s := &session{uri: h.uri, lost: make(chan struct{}, 1)}
	s.ctx, s.giveUp = context.WithCancel(context.Background())
	for which := range s.lines {
		s.lines[which] = newPool(places[which])
	}
	if err := s.listen(h.events); err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

// listen makes the connection for the events and watches over it.
func (s *session) listen(events *feed.Feed) (err error) {
	// Events come on a connection without calls: one that hangs would hold them up.
	if s.events, err = open(s.uri); err != nil {
		return err
	}
	err = s.events.RegisterCloseCallback(func(*libvirt.Connect, libvirt.ConnectCloseReason) {
		select {
		// The callback must not wait: it runs in the event loop of all connections.
		case s.lost <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return err
	}
	s.undo = append(s.undo, s.events.UnregisterCloseCallback)
	return s.register(events)
}

// open makes one connection.
func open(uri string) (*libvirt.Connect, error) {
	c, err := libvirt.NewConnect(uri)
	if err != nil {
		return nil, err
	}
	if err := c.SetKeepAlive(keepAliveEvery, keepAliveCount); err != nil {
		_, _ = c.Close()
		return nil, err
	}
	return c, nil
}

// end waits for the calls still under way and gives the connections up. Of a
// lost connection nothing can be taken back any more, which is no loss.
func (s *session) end() {
	s.giveUp()
	s.calls.Wait()
	for _, undo := range s.undo {
		_ = undo()
	}
	if s.events != nil {
		_, _ = s.events.Close()
	}
	for _, p := range s.lines {
		p.close()
	}
}

// enter takes part in the present session; the caller must say Done to its calls.
func (h *Host) enter() (*session, error) {
	// Under the lock, so that end cannot have begun to wait for calls already.
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

// isUUID reports whether id has the form of a lower-case UUID. libvirt itself
// would take other spellings for the same domain.
func isUUID(id string) bool {
	if len(id) != 36 {
		return false
	}
	for i, c := range id {
		switch dash := i == 8 || i == 13 || i == 18 || i == 23; {
		case dash && c != '-':
			return false
		case !dash && !strings.ContainsRune("0123456789abcdef", c):
			return false
		}
	}
	return true
}

// hasCode reports whether err is libvirt's error with one of these codes.
func hasCode(err error, codes ...libvirt.ErrorNumber) bool {
	var e libvirt.Error
	if !errors.As(err, &e) {
		return false
	}
	return slices.Contains(codes, e.Code)
}
