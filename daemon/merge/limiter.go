package merge

import (
	"context"
	"slices"
	"sync"
)

// limiter limits how many operations may merge at the same time: merging costs I/O.
type limiter struct {
	mu    sync.Mutex
	limit int
	held  map[string]bool
	// queue holds the waiters for a slot, the first first.
	queue []waiter
}

// waiter waits for its turn, which is told by closing.
type waiter struct {
	operation string
	turn      chan struct{}
}

func newLimiter(n int) *limiter { return &limiter{limit: max(n, 1), held: map[string]bool{}} }

// acquire gets a slot for an operation, and reports whether it had to be waited for;
// having one already is no error.
func (s *limiter) acquire(ctx context.Context, operation string) (waited bool, err error) {
	s.mu.Lock()
	if s.held[operation] {
		s.mu.Unlock()
		return false, nil
	}
	w := waiter{operation, make(chan struct{})}
	s.queue = append(s.queue, w)
	s.admit()
	waited = !s.held[operation]
	s.mu.Unlock()
	select {
	case <-w.turn:
		return waited, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-w.turn: // at the same moment: release gives it back
	default:
		s.queue = slices.DeleteFunc(s.queue, func(other waiter) bool { return other.turn == w.turn })
	}
	return waited, ctx.Err()
}

// holds reports whether an operation has a slot.
func (s *limiter) holds(operation string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[operation]
}

// admit gives the limiter that are free to who waited longest.
func (s *limiter) admit() {
	for len(s.queue) > 0 && len(s.held) < s.limit {
		s.held[s.queue[0].operation] = true
		close(s.queue[0].turn)
		s.queue = s.queue[1:]
	}
}

// count tells how many limiter are held, how many are waited for, and how many there are.
func (s *limiter) count() (held, waiting, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held), len(s.queue), s.limit
}

// release gives an operation's slot back, if it has one.
func (s *limiter) release(operation string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.held, operation)
	s.admit()
}

// resize changes how many limiter there are. Who has one keeps it.
func (s *limiter) resize(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = max(n, 1)
	s.admit()
}
