package hypervisortest

import (
	"slices"

	"vpssnapd/hypervisor"
)

var merging = []test{
	{"A merge becomes ready and is pivoted", mergeAndPivot},
	{"A merge while the guest is paused", mergePaused},
	{"A merge of a linked clone leaves the golden image alone", mergeClone},
	{"Pivot before the merge is ready", pivotTooEarly},
	{"AbortMerge leaves the overlay whole", abortMerge},
	{"A disk has one merge at a time", oneMerge},
	{"The speed of a merge is changed while it runs", mergeSpeed},
	{"A disk in a merge takes no overlay", noSwitchInMerge},
	{"A merge of other layers than the disk uses is refused", mergeOthers},
	{"No merge is no error, and none is begun on a domain that is off", noMerge},
	{"A guest killed in a merge has lost nothing", killedInMerge},
	{"A guest killed when its merge is ready has lost nothing", killedWhenReady},
	{"A merge outlives libvirtd and the daemon", mergeSurvives},
	{"A merge below the top ends by itself", mergeBelow},
}

// mergeAndPivot is a whole delete: after it the guest runs on its bases, nothing of the
// overlays is needed, and a reboot changes nothing.
func mergeAndPivot(s *suite) {
	g := s.written("qcow2", "raw")
	g.start()
	l := g.take("snap")
	for t := range l {
		g.write(t, 512*kib, 0x71, mib)
	}
	mark := s.mark()
	for t := range l {
		s.must(s.host().StartMerge(s.ctx, g.id, l[t].merge(t)))
	}
	for t := range l {
		g.ready(t)
		if d := g.disk(t); !d.Job || d.Path != l[t].overlay {
			s.Errorf("with a ready merge %s is %+v", t, d)
		}
	}
	s.await(mark, hypervisor.EventJob, g.id)
	for t := range l {
		g.write(t, 5*mib, 0x72, mib)
	}
	// Between ready and pivot writes go to both; the overlay is still the disk.
	g.check()
	g.pivot("vda", "vdb")
	for t := range l {
		g.uses(t, l[t].base, l[t].baseFormat)
		if j, err := s.host().MergeJob(s.ctx, g.id, t); err != nil || j != (hypervisor.Job{}) {
			s.Errorf("after the pivot there is a job: %+v, %v", j, err)
		}
		if d := g.disk(t); d.Job || len(d.Chain) != 0 {
			s.Errorf("after the pivot %s is %+v", t, d)
		}
		g.write(t, 0, 0x73, 64*kib)
		s.must(s.host().Remove(s.ctx, l[t].overlay, l[t].file.Inode))
	}
	g.inState(hypervisor.Running)
	g.check()
	g.off()
	g.check()
	g.start()
	g.check()
}

// mergeSpeed: the daemon slows a merge down and lets it loose again; a merge that has
// ended meanwhile is no error.
func mergeSpeed(s *suite) {
	g := s.written("qcow2")
	g.start()
	l := g.take("snap")["vda"]
	s.must(s.host().SetMergeSpeed(s.ctx, g.id, "vda", 1)) // of no merge
	g.write("vda", mib, 0x7a, 2*mib)
	slow := l.merge("vda")
	slow.BytesPerSecond = 64 * kib
	s.must(s.host().StartMerge(s.ctx, g.id, slow))
	s.must(s.host().SetMergeSpeed(s.ctx, g.id, "vda", 0))
	g.ready("vda")
	g.pivot("vda")
	g.uses("vda", l.base, "qcow2")
	g.check()
}

// mergePaused: a guest that is paused for want of space is merged too, and stays paused.
func mergePaused(s *suite) {
	g := s.written("qcow2")
	g.start()
	l := g.take("snap")["vda"]
	g.write("vda", mib, 0x74, 2*mib)
	s.must(s.host().Suspend(s.ctx, g.id))
	s.must(s.host().StartMerge(s.ctx, g.id, l.merge("vda")))
	g.ready("vda")
	s.must(s.host().Pivot(s.ctx, g.id, "vda"))
	g.inState(hypervisor.Paused)
	g.uses("vda", l.base, "qcow2")
	g.check()
}

// mergeClone: others may lie on the golden image; not a byte of it changes.
func mergeClone(s *suite) {
	g, golden := s.clone()
	g.start()
	l := g.take("snap")["vda"]
	g.write("vda", 2*mib, 0x75, 2*mib)
	s.must(s.host().StartMerge(s.ctx, g.id, l.merge("vda")))
	g.ready("vda")
	g.pivot("vda")
	g.uses("vda", l.base, "qcow2")
	below := []hypervisor.Layer{{Path: golden.disk("vda").Path, Format: "qcow2"}}
	if d := g.disk("vda"); !slices.Equal(d.Chain, below) {
		s.Errorf("the chain reads as %+v, want %+v", d.Chain, below)
	}
	g.check()
	golden.check()
}

const (
	// never is a rate at which a merge is not ready while a test looks at it.
	never = 64 * kib
	// soon is one at which it is ready after some seconds.
	soon = mib
)

// merging brings a guest into a merge of 6 MiB that has so many bytes per second. The
// rate makes the window in which the test acts: it is not met by luck.
func (s *suite) merging(rate int64) (*guest, layer) {
	s.Helper()
	g := s.written("qcow2")
	g.start()
	l := g.take("snap")["vda"]
	g.write("vda", 0, 0x76, 6*mib)
	m := l.merge("vda")
	m.BytesPerSecond = rate
	s.must(s.host().StartMerge(s.ctx, g.id, m))
	return g, l
}

// pivotTooEarly: a pivot before "ready" would lose what was not copied yet (FAULTS.md,
// row 16).
func pivotTooEarly(s *suite) {
	g, l := s.merging(never)
	s.is(s.host().Pivot(s.ctx, g.id, "vda"), hypervisor.ErrNotReady)
	if j, err := s.host().MergeJob(s.ctx, g.id, "vda"); err != nil || !j.Found {
		s.Fatalf("the merge is %+v, %v", j, err)
	}
	g.uses("vda", l.overlay, "qcow2")
	g.check()
	s.must(s.host().AbortMerge(s.ctx, g.id, "vda"))
}

// abortMerge: after it the base is neither the snapshot nor the disk; the overlay is
// (FAULTS.md, fact 1).
func abortMerge(s *suite) {
	g, l := s.merging(never)
	for range 2 {
		s.must(s.host().AbortMerge(s.ctx, g.id, "vda"))
		if j, err := s.host().MergeJob(s.ctx, g.id, "vda"); err != nil || j.Found {
			s.Fatalf("after the abort the merge is %+v, %v", j, err)
		}
	}
	g.uses("vda", l.overlay, "qcow2")
	g.check()
	g.mergeAgain(l)
}

// mergeAgain merges after a merge that did not come to its end.
func (g *guest) mergeAgain(l layer) {
	g.Helper()
	g.must(g.host().StartMerge(g.ctx, g.id, l.merge("vda")))
	g.ready("vda")
	g.must(g.host().AbortMerge(g.ctx, g.id, "vda"))
	g.check()
	g.must(g.host().StartMerge(g.ctx, g.id, l.merge("vda")))
	g.pivot("vda")
	g.uses("vda", l.base, l.baseFormat)
	g.check()
	g.off()
	g.check()
}

// oneMerge: two jobs on a disk would mix their writes (FAULTS.md, row 6).
func oneMerge(s *suite) {
	g, l := s.merging(never)
	s.is(s.host().StartMerge(s.ctx, g.id, l.merge("vda")), hypervisor.ErrBusy)
	if j, err := s.host().MergeJob(s.ctx, g.id, "vda"); err != nil || !j.Found {
		s.Fatalf("the merge is %+v, %v", j, err)
	}
	s.must(s.host().AbortMerge(s.ctx, g.id, "vda"))
	g.check()
}

// noSwitchInMerge: the overlay in the middle of a merge would get a layer above it, and
// the job another meaning.
func noSwitchInMerge(s *suite) {
	g, l := s.merging(never)
	two := g.overlays("two")
	s.is(s.host().SwitchToOverlays(s.ctx, g.id, two.switches()), hypervisor.ErrBusy)
	g.uses("vda", l.overlay, "qcow2")
	s.must(s.host().AbortMerge(s.ctx, g.id, "vda"))
	g.check()
}

// mergeOthers: a caller with an old picture of the chain must not merge another layer
// than it means.
func mergeOthers(s *suite) {
	g := s.written("qcow2")
	g.start()
	l := g.take("snap")["vda"]
	active := l.merge("vda")
	below, swapped, foreign := active, active, active
	below.Active = false
	swapped.Top, swapped.Base = l.base, l.overlay
	foreign.Base = g.path("elsewhere")
	for _, m := range []hypervisor.Merge{below, swapped, foreign} {
		s.is(s.host().StartMerge(s.ctx, g.id, m), hypervisor.ErrReplaced)
	}
	g.uses("vda", l.overlay, "qcow2")
	g.check()
}

// noMerge: what is not there is told without an error, so that recovery can ask without
// knowing.
func noMerge(s *suite) {
	g := s.written("qcow2")
	l := g.take("snap")["vda"]
	s.is(s.host().StartMerge(s.ctx, g.id, l.merge("vda")), hypervisor.ErrOff)
	for _, state := range []hypervisor.State{hypervisor.Off, hypervisor.Running} {
		g.enter(state)
		if j, err := s.host().MergeJob(s.ctx, g.id, "vda"); err != nil || j != (hypervisor.Job{}) {
			s.Errorf("%s: without a merge it reads as %+v, %v", state, j, err)
		}
		s.must(s.host().AbortMerge(s.ctx, g.id, "vda"))
		s.is(s.host().Pivot(s.ctx, g.id, "vda"), hypervisor.ErrNotReady)
		g.uses("vda", l.overlay, "qcow2")
	}
	g.check()
}

// killedInMerge: FAULTS.md, fact 1. Merging again gives the same contents.
func killedInMerge(s *suite) {
	g, l := s.merging(never)
	g.kill()
	g.uses("vda", l.overlay, "qcow2")
	g.check()
	if j, err := s.host().MergeJob(s.ctx, g.id, "vda"); err != nil || j.Found {
		s.Errorf("without a guest the merge is %+v, %v", j, err)
	}
	g.start()
	g.check()
	g.mergeAgain(l)
}

// kill kills the guest and waits until libvirt has seen it. The event comes first:
// libvirt calls a domain off only when it has seen its QEMU end.
func (g *guest) kill() {
	g.Helper()
	mark := g.mark()
	g.fixture.KillGuest(g, g.id)
	g.await(mark, hypervisor.EventChanged, g.id)
	g.poll("the killed guest to be off", func() bool { return g.domain().State == hypervisor.Off })
}

// killedWhenReady: FAULTS.md, fact 2. What the guest wrote after the merge was ready is
// in the overlay alone in 10 of 10 kills.
func killedWhenReady(s *suite) {
	g := s.written("raw")
	g.start()
	l := g.take("snap")["vda"]
	g.write("vda", mib, 0x78, 2*mib)
	s.must(s.host().StartMerge(s.ctx, g.id, l.merge("vda")))
	g.ready("vda")
	g.write("vda", 4*mib, 0x79, mib)
	g.kill()
	g.uses("vda", l.overlay, "qcow2")
	g.check()
	s.must(s.host().MergeOffline(s.ctx, hypervisor.OfflineMerge{Overlay: l.overlay, Base: l.base, BaseFormat: "raw"}, nil))
	g.checkImage(l.base, "raw", g.want["vda"])
}

// mergeSurvives: libvirt adopts its job again (FAULTS.md, row 15), and the daemon finds
// it and begins no second one.
func mergeSurvives(s *suite) {
	g, l := s.merging(soon)
	found := func(after string) {
		s.Helper()
		if j, err := s.host().MergeJob(s.ctx, g.id, "vda"); err != nil || !j.Found || j.Foreign {
			s.Fatalf("after %s the merge is %+v, %v", after, j, err)
		}
		g.inState(hypervisor.Running)
		if !g.disk("vda").Job {
			s.Errorf("after %s the disk tells no job", after)
		}
	}
	s.restart()
	found("the restart of libvirtd")
	s.reopen()
	found("the restart of the daemon")
	g.check()
	g.ready("vda")
	g.pivot("vda")
	g.uses("vda", l.base, "qcow2")
	g.check()
}

// mergeBelow is what a replace does: the layer between the new overlay and the base
// goes, and nothing that the guest or the snapshot shows changes.
func mergeBelow(s *suite) {
	g := s.written("raw")
	g.start()
	one := g.take("one")["vda"]
	g.write("vda", mib, 0x7a, 2*mib)
	taken := g.content()
	two := g.take("two")["vda"]
	g.write("vda", 2*mib, 0x7b, 2*mib)
	mark := s.mark()
	s.must(s.host().StartMerge(s.ctx, g.id, hypervisor.Merge{Target: "vda", Top: one.overlay, Base: one.base}))
	s.poll("the merge to end", func() bool {
		j, err := s.host().MergeJob(s.ctx, g.id, "vda")
		s.must(err)
		return !j.Found
	})
	s.await(mark, hypervisor.EventJob, g.id)
	g.uses("vda", two.overlay, "qcow2")
	if d := g.disk("vda"); !slices.Equal(d.Chain, []hypervisor.Layer{{Path: one.base, Format: "raw"}}) || d.Job {
		s.Errorf("after the merge vda is %+v", d)
	}
	image, err := s.host().Inspect(s.ctx, two.overlay, "qcow2")
	s.must(err)
	if image.Backing != one.base || image.BackingFormat != "raw" {
		s.Errorf("after the merge the header names %s (%s)", image.Backing, image.BackingFormat)
	}
	g.check()
	// The base now is the second snapshot.
	g.checkImage(one.base, "raw", taken["vda"])
	s.must(s.host().Remove(s.ctx, one.overlay, one.file.Inode))
	g.write("vda", 0, 0x7c, mib)
	g.off()
	g.start()
	g.check()
}
