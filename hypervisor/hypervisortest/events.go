package hypervisortest

import (
	"vpssnapd/hypervisor"
)

var events = []test{
	{"Events tell of starts, stops and resumes", eventsOfPower},
	{"Events tell of definitions", eventsOfDefinition},
	{"Events tell of a guest that died", eventsOfDeath},
	{"Events tell when libvirt goes and comes back", eventsOfConnection},
	{"Close ends the events", eventsEnd},
}

// eventsOfPower: the daemon's picture follows these events. A resume has a kind of its
// own, since it can make a pivot unsafe.
func eventsOfPower(s *suite) {
	h, ctx := s.host(), s.ctx
	g := s.written("qcow2")
	for _, step := range []struct {
		kind hypervisor.EventKind
		do   func() error
	}{
		{hypervisor.EventChanged, func() error { return h.Start(ctx, g.id, false) }},
		{hypervisor.EventChanged, func() error { return h.Suspend(ctx, g.id) }},
		{hypervisor.EventResumed, func() error { return h.Resume(ctx, g.id) }},
		{hypervisor.EventChanged, func() error { return h.PowerOff(ctx, g.id) }},
	} {
		mark := s.mark()
		s.must(step.do())
		s.await(mark, step.kind, g.id)
	}
}

// eventsOfDefinition: a definition from outside must be seen at once, before the next
// boot.
func eventsOfDefinition(s *suite) {
	mark := s.mark()
	g := s.written("qcow2")
	s.await(mark, hypervisor.EventDefined, g.id)
	mark = s.mark()
	s.fixture.Redefine(s, g.id)
	s.await(mark, hypervisor.EventDefined, g.id)
	mark = s.mark()
	s.fixture.Undefine(s, g.id)
	g.gone = true
	s.await(mark, hypervisor.EventUndefined, g.id)
}

// eventsOfDeath: a guest that was killed is started again as if it had lost power; kill
// waits for the event.
func eventsOfDeath(s *suite) {
	g := s.written("qcow2")
	g.start()
	g.kill()
	g.start()
	g.check()
}

// eventsOfConnection: after libvirtd died the events of all domains come again, without
// anybody asking for them.
func eventsOfConnection(s *suite) {
	g := s.written("qcow2")
	g.start()
	s.restart()
	// The guest has lived on.
	g.inState(hypervisor.Running)
	mark := s.mark()
	s.must(s.host().Suspend(s.ctx, g.id))
	s.await(mark, hypervisor.EventChanged, g.id)
	g.check()
}

// eventsEnd: a daemon that stops must not leave a reader waiting, nor stop a guest.
func eventsEnd(s *suite) {
	g := s.written("qcow2")
	g.start()
	old := s.host()
	s.reopen()
	// It ends only when the channel is closed.
	for range old.Events() {
		continue
	}
	if _, err := old.Domain(s.ctx, g.id); err == nil {
		s.Error("a closed host still answers")
	}
	g.inState(hypervisor.Running)
	g.check()
}
