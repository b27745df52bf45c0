package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
)

// drain lets every request in whose connection was accepted. http.Server.Shutdown
// drops a request that it reads after it has begun, although its caller has done
// nothing wrong: with sockets that outlive the process that is the only loss in a
// restart.
type drain struct {
	serving sync.WaitGroup // Serves that may still accept

	mu        sync.Mutex
	ending    bool
	listeners []net.Listener
	busy      map[net.Conn]bool // a request is awaited or answered
	changed   chan struct{}     // closed at the next change of busy
}

func newDrain() *drain { return &drain{busy: map[net.Conn]bool{}, changed: make(chan struct{})} }

// serve is h.Serve until the drain begins; then it returns nil. It refuses a listener
// that comes after the drain has begun.
func (d *drain) serve(h *http.Server, l net.Listener) error {
	d.mu.Lock()
	if d.ending {
		d.mu.Unlock()
		return l.Close()
	}
	d.listeners = append(d.listeners, l)
	d.serving.Add(1)
	d.mu.Unlock()
	defer d.serving.Done()
	err := h.Serve(l)
	if errors.Is(err, http.ErrServerClosed) || d.begun() && errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// begun reports whether the drain has.
func (d *drain) begun() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ending
}

// note is an http.Server's ConnState. A connection counts from its first byte, or from
// its acceptance: a request may be on its way.
func (d *drain) note(c net.Conn, state http.ConnState) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if state == http.StateNew || state == http.StateActive {
		d.busy[c] = true
		return
	}
	delete(d.busy, c)
	close(d.changed)
	d.changed = make(chan struct{})
}

// stopAccepting closes the listeners; what they have accepted is known when it returns.
func (d *drain) stopAccepting() error {
	d.mu.Lock()
	d.ending = true
	listeners := d.listeners
	d.mu.Unlock()
	var errs []error
	for _, l := range listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	d.serving.Wait()
	return errors.Join(errs...)
}

// wait returns when nobody is owed an answer any more, or ctx ends.
func (d *drain) wait(ctx context.Context) {
	for {
		d.mu.Lock()
		// Both under one lock, so that no change is missed between them.
		left, changed := len(d.busy), d.changed
		d.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}
