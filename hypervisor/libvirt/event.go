package libvirt

import (
	"context"
	"slices"
	"sync"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
)

// queue stands between libvirt's event loop, which must never wait, and a
// consumer that may. Of each kind at most one event per domain waits.
type queue struct {
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

func newQueue() *queue {
	return &queue{out: make(chan hypervisor.Event), more: make(chan struct{}, 1), waiting: map[key]bool{}}
}

// put adds an event. One about the connection goes to the end even if its like
// waits already, so that the last word is the true one; one about a domain says
// only "read it anew" and keeps its place, lest it wait for ever.
func (q *queue) put(e hypervisor.Event) {
	q.mu.Lock()
	again := q.waiting[keyOf(e)]
	if again && e.Domain == "" {
		q.pending = slices.DeleteFunc(q.pending, func(p hypervisor.Event) bool { return keyOf(p) == keyOf(e) })
		again = false
	}
	if !again {
		q.waiting[keyOf(e)] = true
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
	delete(q.waiting, keyOf(e))
	return e, true
}

// deliver hands events to the consumer until ctx ends.
func (q *queue) deliver(ctx context.Context) {
	defer close(q.out)
	for {
		e, some := q.take()
		if !some {
			select {
			case <-q.more:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case q.out <- e:
		case <-ctx.Done():
			return
		}
	}
}

// register asks for the events of all domains. The callbacks run in libvirt's
// event loop on borrowed arguments: they copy name and UUID, and neither free
// anything nor call libvirtd.
func (s *session) register(q *queue) error {
	c := s.events
	tell := func(d *libvirt.Domain, kinds ...hypervisor.EventKind) {
		name, err := d.GetName()
		if err != nil {
			return
		}
		id, err := d.GetUUIDString()
		if err != nil {
			return
		}
		for _, kind := range kinds {
			q.put(hypervisor.Event{Kind: kind, Domain: id, Name: name})
		}
	}
	changed := func(d *libvirt.Domain) { tell(d, hypervisor.EventChanged) }
	for _, register := range []func() (int, error){
		func() (int, error) {
			return c.DomainEventLifecycleRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventLifecycle) {
				tell(d, lifecycleKinds(e)...)
			})
		},
		func() (int, error) {
			return c.DomainEventBlockJob2Register(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventBlockJob) {
				tell(d, hypervisor.EventJob)
			})
		},
		func() (int, error) {
			return c.DomainEventDeviceAddedRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventDeviceAdded) { changed(d) })
		},
		func() (int, error) {
			return c.DomainEventDeviceRemovedRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventDeviceRemoved) { changed(d) })
		},
		func() (int, error) {
			return c.DomainEventAgentLifecycleRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventAgentLifecycle) { changed(d) })
		},
	} {
		number, err := register()
		if err != nil {
			return err
		}
		s.undo = append(s.undo, func() error { return c.DomainEventDeregister(number) })
	}
	return nil
}

// lifecycleKinds is what a lifecycle event means to the daemon.
func lifecycleKinds(e *libvirt.DomainEventLifecycle) []hypervisor.EventKind {
	switch {
	case e.Event == libvirt.DOMAIN_EVENT_DEFINED:
		return []hypervisor.EventKind{hypervisor.EventDefined}
	case e.Event == libvirt.DOMAIN_EVENT_UNDEFINED:
		return []hypervisor.EventKind{hypervisor.EventUndefined}
	case e.Event == libvirt.DOMAIN_EVENT_RESUMED:
		return []hypervisor.EventKind{hypervisor.EventResumed, hypervisor.EventChanged}
	case e.Event == libvirt.DOMAIN_EVENT_STOPPED && libvirt.DomainEventStoppedDetailType(e.Detail) == libvirt.DOMAIN_EVENT_STOPPED_MIGRATED:
		return []hypervisor.EventKind{hypervisor.EventDeparted, hypervisor.EventChanged}
	}
	return []hypervisor.EventKind{hypervisor.EventChanged}
}
