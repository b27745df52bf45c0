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

func eventsOfDeath(s *suite) {
	g := s.written("qcow2")
	g.start()
	g.kill()
	g.start()
	g.check()
}

func eventsOfConnection(s *suite) {
	g := s.written("qcow2")
	g.start()
	s.restart()
	g.inState(hypervisor.Running)
	mark := s.mark()
	s.must(s.host().Suspend(s.ctx, g.id))
	s.await(mark, hypervisor.EventChanged, g.id)
	g.check()
}

func eventsEnd(s *suite) {
	g := s.written("qcow2")
	g.start()
	old := s.host()
	s.reopen()
	for range old.Events() {
		continue
	}
	if _, err := old.Domain(s.ctx, g.id); err == nil {
		s.Error("a closed host still answers")
	}
	g.inState(hypervisor.Running)
	g.check()
}
