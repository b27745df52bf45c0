package inventory

import (
	"slices"
	"sync"

	"vpssnapd/hypervisor"
)

// followers deal with the events that come by the dozen in each operation: those of
// one domain in turn, in one goroutine, beside those of all others, which must not
// wait for a QEMU that hangs.
type followers struct {
	mu sync.Mutex
	// due is by domain what came and was not begun yet, each kind once: an event says
	// only that something happened. A domain with an entry has a goroutine.
	due map[string][]hypervisor.EventKind
}

func newFollowers() followers { return followers{due: map[string][]hypervisor.EventKind{}} }

// add tells whether nobody deals with that domain yet.
func (f *followers) add(e hypervisor.Event) (first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	kinds, busy := f.due[e.Domain]
	if !slices.Contains(kinds, e.Kind) {
		kinds = append(kinds, e.Kind)
	}
	f.due[e.Domain] = kinds
	return !busy
}

// next takes what came first; with nothing left, nobody deals with that domain any more.
// Under the same lock as add, so that no event falls between the last one and the end of
// the goroutine.
func (f *followers) next(id string) (kind hypervisor.EventKind, some bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	kinds := f.due[id]
	if len(kinds) == 0 {
		delete(f.due, id)
		return kind, false
	}
	f.due[id] = kinds[1:]
	return kinds[0], true
}
