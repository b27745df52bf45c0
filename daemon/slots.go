package daemon

import (
	"context"
	"sync"
)

// slots limits how many operations may merge at the same time: merging costs I/O.
type slots struct {
	mu   sync.Mutex
	held map[string]bool
	free chan struct{}
	// waiting counts who waits for a slot.
	waiting int
}

func newSlots(n int) *slots {
	s := &slots{held: map[string]bool{}, free: make(chan struct{}, max(n, 1))}
	for range cap(s.free) {
		s.free <- struct{}{}
	}
	return s
}

// acquire waits for a slot for an operation; having one already is no error.
func (s *slots) acquire(ctx context.Context, operation string) error {
	s.mu.Lock()
	held := s.held[operation]
	if !held {
		s.waiting++
	}
	s.mu.Unlock()
	if held {
		return nil
	}
	var err error
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case <-s.free:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting--
	if err == nil {
		s.held[operation] = true
	}
	return err
}

// count tells how many slots are held, how many are waited for, and how many there are.
func (s *slots) count() (held, waiting, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held), s.waiting, cap(s.free)
}

// release gives an operation's slot back, if it has one.
func (s *slots) release(operation string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[operation] {
		delete(s.held, operation)
		s.free <- struct{}{}
	}
}
