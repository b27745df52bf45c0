// Package feed stands between a source of events that must never wait, such as libvirt's
// event loop, and a consumer that may.
package feed

import (
	"context"
	"slices"
	"sync"

	"vpssnapd/hypervisor"
)

// Feed holds the events that the consumer has not taken yet. Of each kind at most one
// per domain waits, so it is as large as the host has domains, whatever the consumer does.
type Feed struct {
	out  chan hypervisor.Event
	more chan struct{}

	mu      sync.Mutex
	pending []hypervisor.Event
	waiting map[key]bool
}

// key is what makes two events the same.
type key struct {
	kind   hypervisor.EventKind
	domain string
}

func keyOf(e hypervisor.Event) key { return key{e.Kind, e.Domain} }

// New makes a Feed, which delivers nothing before Deliver.
func New() *Feed {
	return &Feed{out: make(chan hypervisor.Event), more: make(chan struct{}, 1), waiting: map[key]bool{}}
}

// Events is what the consumer reads. It is closed when Deliver has returned.
func (f *Feed) Events() <-chan hypervisor.Event { return f.out }

// Put adds an event, and never waits. One about the connection goes to the end even if
// its like waits already, so that the last word is the true one; one about a domain says
// only "read it again" and keeps its place, lest it wait for ever.
func (f *Feed) Put(e hypervisor.Event) {
	f.mu.Lock()
	again := f.waiting[keyOf(e)]
	if again && e.Domain == "" {
		f.pending = slices.DeleteFunc(f.pending, func(p hypervisor.Event) bool { return keyOf(p) == keyOf(e) })
		again = false
	}
	if !again {
		f.waiting[keyOf(e)] = true
		f.pending = append(f.pending, e)
	}
	f.mu.Unlock()
	select {
	case f.more <- struct{}{}:
	default:
	}
}

func (f *Feed) take() (hypervisor.Event, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.pending) == 0 {
		return hypervisor.Event{}, false
	}
	e := f.pending[0]
	f.pending = f.pending[1:]
	delete(f.waiting, keyOf(e))
	return e, true
}

// Deliver hands events to the consumer until ctx ends.
func (f *Feed) Deliver(ctx context.Context) {
	defer close(f.out)
	for {
		e, some := f.take()
		if !some {
			select {
			case <-f.more:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case f.out <- e:
		case <-ctx.Done():
			return
		}
	}
}
