package daemon

import (
	"context"
	"slices"
	"sync"
)

// slots limits how many operations may merge at the same time: merging costs I/O.
type slots struct {
	mu    sync.Mutex
	limit int
	held  map[string]bool
	// queue holds who waits for a slot, the first first.
	queue []waiter
}

// waiter waits for its turn, which is told by closing.
type waiter struct {
	operation string
	turn      chan struct{}
}

func newSlots(n int) *slots { return &slots{limit: max(n, 1), held: map[string]bool{}} }

// acquire gets a slot for an operation, and says whether it had to be waited for;
// having one already is no error.
func (s *slots) acquire(ctx context.Context, operation string) (waited bool, err error) {
	s.mu.Lock()
	if s.held[operation] {
		s.mu.Unlock()
		return false, nil
	}
	w := waiter{operation, make(chan struct{})}
	s.queue = append(s.queue, w)
	s.letIn()
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

// holds says whether an operation has a slot.
func (s *slots) holds(operation string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[operation]
}

// letIn gives the slots that are free to who waited longest.
func (s *slots) letIn() {
	for len(s.queue) > 0 && len(s.held) < s.limit {
		s.held[s.queue[0].operation] = true
		close(s.queue[0].turn)
		s.queue = s.queue[1:]
	}
}

// count tells how many slots are held, how many are waited for, and how many there are.
func (s *slots) count() (held, waiting, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held), len(s.queue), s.limit
}

// release gives an operation's slot back, if it has one.
func (s *slots) release(operation string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.held, operation)
	s.letIn()
}

// resize changes how many slots there are. Who has one keeps it.
func (s *slots) resize(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = max(n, 1)
	s.letIn()
}
