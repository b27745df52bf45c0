package hypervisortest

import (
	"errors"
	"os"
	"slices"

	"vpssnapd/hypervisor"
)

var power = []test{
	{"Start, Suspend, Resume and PowerOff may be repeated", powerRepeats},
	{"A domain that is off cannot be suspended or resumed", offIsTold},
	{"Start ignores a managed save", startIgnoresManagedSave},
	{"RemoveManagedSave may be repeated", removeManagedSave},
	{"Start without an image fails", startWithoutImage},
	{"CheckStart tells what a start would miss", checkStart},
	{"Start is refused while another guest reads the image", startBusy},
	{"A domain that runs and is off for libvirt is told and not started", forgottenDomain},
	{"A transient domain is gone when it ends", transientEnds},
}

// powerRepeats: every step of the daemon may run twice, so that what is so already is no
// error. A start does not change the state of a guest that runs.
func powerRepeats(s *suite) {
	h, ctx := s.host(), s.ctx
	g := s.written("qcow2")
	s.must(h.PowerOff(ctx, g.id))
	for range 2 {
		s.must(h.Start(ctx, g.id, true))
		g.inState(hypervisor.Paused)
	}
	s.must(h.Start(ctx, g.id, false))
	for range 2 {
		s.must(h.Resume(ctx, g.id))
		g.inState(hypervisor.Running)
	}
	s.must(h.Start(ctx, g.id, true))
	g.inState(hypervisor.Running)
	for range 2 {
		s.must(h.Suspend(ctx, g.id))
		g.inState(hypervisor.Paused)
	}
	if d := g.domain(); d.PauseReason != hypervisor.PausedByUser {
		s.Errorf("paused by %q", d.PauseReason)
	}
	for range 2 {
		s.must(h.PowerOff(ctx, g.id))
		g.inState(hypervisor.Off)
	}
	g.check()
}

// offIsTold: ErrOff and not success, or a pivot would go on without the suspension that
// it needs.
func offIsTold(s *suite) {
	g := s.written("qcow2")
	s.is(s.host().Suspend(s.ctx, g.id), hypervisor.ErrOff)
	s.is(s.host().Resume(s.ctx, g.id), hypervisor.ErrOff)
	g.inState(hypervisor.Off)
}

// startIgnoresManagedSave: the saved memory belongs to other disks (seen on libvirt 9.0:
// it was resumed on the replaced ones).
func startIgnoresManagedSave(s *suite) {
	g := s.saved()
	g.start()
	if d := g.domain(); d.ManagedSave || d.State != hypervisor.Running {
		s.Fatalf("got %+v", d)
	}
	g.check()
}

// saved defines a domain that has a managed save.
func (s *suite) saved() *guest {
	s.Helper()
	g := s.written("qcow2")
	g.start()
	s.fixture.ManagedSave(s, g.id)
	if d := g.domain(); !d.ManagedSave || d.State != hypervisor.Off {
		s.Fatalf("got %+v", d)
	}
	return g
}

// removeManagedSave: a restore asks for it whether there is one or not.
func removeManagedSave(s *suite) {
	g := s.saved()
	for range 2 {
		s.must(s.host().RemoveManagedSave(s.ctx, g.id))
		if g.domain().ManagedSave {
			s.Fatal("the managed save is still there")
		}
	}
	g.start()
	g.check()
}

// startWithoutImage: nothing makes an empty disk in its place.
func startWithoutImage(s *suite) {
	g := s.written("qcow2")
	s.must(os.Rename(g.disk("vda").Path, g.path("away")))
	if err := s.host().Start(s.ctx, g.id, false); err == nil {
		s.Error("a domain without its image was started")
	}
	g.inState(hypervisor.Off)
}

// checkStart (FAULTS.md row 34) is asked before a guest is stopped that is to run again.
func checkStart(s *suite) {
	g := s.guest(
		DiskSpec{Target: "vda", Format: "qcow2", SizeBytes: diskSize},
		DiskSpec{Target: "sda", Device: "cdrom", Format: "raw", SizeBytes: diskSize, ReadOnly: true},
		DiskSpec{Target: "sdb", Device: "cdrom"},
	)
	delete(g.want, "sda")
	s.must(s.host().CheckStart(s.ctx, g.id))
	g.start()
	s.must(s.host().CheckStart(s.ctx, g.id))
	iso := g.disk("sda").Path
	s.must(os.Rename(iso, g.path("away")))
	s.is(s.host().CheckStart(s.ctx, g.id), hypervisor.ErrNoStart)
	g.inState(hypervisor.Running)
	g.off()
	if err := s.host().Start(s.ctx, g.id, false); err == nil {
		s.Error("it starts all the same")
	}
	s.must(os.Rename(g.path("away"), iso))
	s.must(s.host().CheckStart(s.ctx, g.id))
	g.start()
}

// startBusy: QEMU would write to what the clone reads. Its lock refuses that, whatever
// libvirt believes.
func startBusy(s *suite) {
	g, golden := s.clone()
	g.start()
	s.is(s.host().Start(s.ctx, golden.id, false), hypervisor.ErrBusy)
	golden.inState(hypervisor.Off)
	g.check()
	g.off()
	golden.start()
	golden.check()
}

// forgottenDomain (FAULTS.md row 44): it is neither off nor may be started, whether or not its
// images are locked; and it is as it was when libvirt knows it again.
func forgottenDomain(s *suite) {
	for _, remains := range []bool{true, false} {
		g := s.written("qcow2")
		g.start()
		before := g.domain()
		mark := s.mark()
		remember := s.fixture.Forget(s, g.id)
		s.await(mark, hypervisor.EventConnected, "")
		list, err := s.host().List(s.ctx)
		s.must(err)
		glance, err := s.host().Glance(s.ctx, g.id)
		s.must(err)
		for _, d := range append(list, glance, g.domain()) {
			if d.ID == g.id && (d.State != hypervisor.Unknown || d.Astray == nil || d.Astray.PID == 0 || !d.Astray.Jobless) {
				s.Errorf("it is %s, %+v", d.State, d.Astray)
			}
		}
		if astray, ok := errors.AsType[*hypervisor.AstrayError](s.host().Start(s.ctx, g.id, false)); !ok || astray.Domain.ID != g.id {
			s.Errorf("to start it is refused as %v", astray)
		}
		if !remains { // by its own shutdown, say
			s.fixture.KillGuest(s, g.id)
			g.inState(hypervisor.Off)
			g.start()
			g.check()
			continue
		}
		mark = s.mark()
		remember()
		s.await(mark, hypervisor.EventConnected, "")
		if after := g.domain(); after.State != hypervisor.Running || after.Astray != nil ||
			!slices.EqualFunc(after.Disks, before.Disks, func(a, b hypervisor.Disk) bool { return a.Path == b.Path }) {
			s.Errorf("it was %+v and is %+v", before, after)
		}
		g.check()
		g.off()
		g.inState(hypervisor.Off)
	}
}

// transientEnds: defining it would make it persistent behind its owner's back, so calls
// for the definition are refused.
func transientEnds(s *suite) {
	g := s.written("qcow2")
	g.start()
	mark := s.mark()
	s.fixture.Undefine(s, g.id)
	s.await(mark, hypervisor.EventUndefined, g.id)
	if d := g.domain(); d.Persistent || len(d.PersistentDisks) != 0 || len(d.Disks) != 1 {
		s.Fatalf("got %+v", d)
	}
	sources := []hypervisor.DiskSource{{Target: "vda", Path: g.disk("vda").Path, Format: "qcow2"}}
	s.is(s.host().PointDisks(s.ctx, g.id, sources), hypervisor.ErrPersistence)
	s.is(s.host().SyncDefinition(s.ctx, g.id), hypervisor.ErrPersistence)
	s.is(s.host().SaveDefinition(s.ctx, g.id), hypervisor.ErrPersistence)
	if g.domain().Persistent {
		s.Fatal("the transient domain became persistent")
	}
	g.off()
	g.gone = true
	_, err := s.host().Domain(s.ctx, g.id)
	s.is(err, hypervisor.ErrNotFound)
}
