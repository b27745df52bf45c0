package fake

import (
	"slices"
	"sync"

	"vpssnapd/hypervisor"
)

// open lists the Hosts of this process by their directory, to share events.
var open = struct {
	sync.Mutex
	hosts map[string][]*Host
}{hosts: map[string][]*Host{}}

func join(h *Host) {
	open.Lock()
	defer open.Unlock()
	open.hosts[h.dir] = append(open.hosts[h.dir], h)
}

func leave(h *Host) {
	open.Lock()
	defer open.Unlock()
	rest := slices.DeleteFunc(open.hosts[h.dir], func(o *Host) bool { return o == h })
	if len(rest) == 0 {
		delete(open.hosts, h.dir)
		return
	}
	open.hosts[h.dir] = rest
}

// emit tells every connected Host of this directory.
func (h *Host) emit(events []hypervisor.Event) {
	open.Lock()
	defer open.Unlock()
	for _, o := range open.hosts[h.dir] {
		if !o.connected() {
			continue
		}
		for _, e := range events {
			o.queue.put(e)
		}
	}
}

// Events delivers what happens on the host.
func (h *Host) Events() <-chan hypervisor.Event { return h.queue.out }

// queue holds events for a slow consumer. Of events alike one waits, at its
// place; one about the connection at the end, so that the last word is true.
type queue struct {
	out  chan hypervisor.Event
	done chan struct{}
	more chan struct{}

	mu      sync.Mutex
	pending []hypervisor.Event
}

func newQueue() *queue {
	q := &queue{
		out:  make(chan hypervisor.Event),
		done: make(chan struct{}),
		more: make(chan struct{}, 1),
	}
	go q.deliver()
	return q
}

func (q *queue) put(e hypervisor.Event) {
	alike := func(p hypervisor.Event) bool { return p.Kind == e.Kind && p.Domain == e.Domain }
	q.mu.Lock()
	if e.Domain == "" {
		q.pending = slices.DeleteFunc(q.pending, alike)
	}
	if !slices.ContainsFunc(q.pending, alike) {
		q.pending = append(q.pending, e)
	}
	q.mu.Unlock()
	select {
	case q.more <- struct{}{}:
	default:
	}
}

func (q *queue) take() (hypervisor.Event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pending) == 0 {
		return hypervisor.Event{}, false
	}
	e := q.pending[0]
	q.pending = q.pending[1:]
	return e, true
}

func (q *queue) deliver() {
	defer close(q.out)
	for {
		e, ok := q.take()
		if !ok {
			select {
			case <-q.more:
				continue
			case <-q.done:
				return
			}
		}
		select {
		case q.out <- e:
		case <-q.done:
			return
		}
	}
}

func (q *queue) close() { close(q.done) }
