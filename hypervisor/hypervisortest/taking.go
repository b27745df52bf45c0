package hypervisortest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"vpssnapd/hypervisor"
)

var taking = []test{
	{"SwitchToOverlays freezes what the disks held", switchFreezes},
	{"SwitchToOverlays leaves other disks alone", switchLeavesOthers},
	{"SwitchToOverlays may be done again, on the overlays", switchTwice},
	{"SwitchToOverlays of a linked clone", switchClone},
	{"SwitchToOverlays switches no disk when one cannot be", switchAllOrNone},
}

// switchFreezes: for each state of the guest and for one to three disks of both formats,
// since the running and the off-line path of libvirt have nothing in common.
func switchFreezes(s *suite) {
	for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Paused, hypervisor.Off} {
		for _, formats := range [][]string{{"raw"}, {"qcow2", "raw"}, {"qcow2", "qcow2", "raw"}} {
			s.Run(fmt.Sprintf("%s with %s", state, strings.Join(formats, ",")), func(s *suite) {
				switchOnce(s, state, formats)
			})
		}
	}
}

// Run runs a part of a test.
func (s *suite) Run(name string, run func(s *suite)) {
	s.T.Run(name, func(t *testing.T) { run(newSuite(t, s.bench)) })
}

// The state stays as it was, the bases hold the moment of the call to the byte, and no
// snapshot object is left behind, which would forbid migration.
func switchOnce(s *suite, state hypervisor.State, formats []string) {
	g := s.written(formats...)
	g.enter(state)
	taken := g.content()
	all := g.take("snap")
	g.inState(state)
	for t, l := range all {
		g.uses(t, l.overlay, "qcow2")
		below := hypervisor.Layer{Path: l.base, Format: l.baseFormat}
		if d := g.disk(t); state != hypervisor.Off && (!d.ChainKnown || !slices.Equal(d.Chain, []hypervisor.Layer{below})) {
			s.Errorf("%s is %+v, want it on %v", t, d, below)
		}
	}
	if n := g.domain().ForeignSnapshots; n != 0 {
		s.Errorf("%d snapshot objects were left behind", n)
	}
	if state == hypervisor.Paused {
		s.must(s.host().Resume(s.ctx, g.id))
	}
	for t := range all {
		g.write(t, 512*kib, 0x99, mib)
	}
	g.check()
	for t, l := range all {
		g.checkImage(l.base, l.baseFormat, taken[t])
	}
	g.off()
	g.check()
	g.start()
	g.check()
}

// switchLeavesOthers: libvirt makes an overlay of its own for a disk that is not listed;
// none may appear.
func switchLeavesOthers(s *suite) {
	for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Off} {
		g := s.guest(
			DiskSpec{Target: "vda", SizeBytes: diskSize},
			DiskSpec{Target: "vdb", Format: "raw", SizeBytes: diskSize},
			DiskSpec{Target: "sda", Format: "raw", Device: "cdrom"},
		)
		g.enter(state)
		before := g.disk("vdb")
		l := g.overlays("snap")
		delete(l, "vdb")
		s.must(s.host().SwitchToOverlays(s.ctx, g.id, l.switches()))
		g.uses("vda", l["vda"].overlay, "qcow2")
		g.uses("vdb", before.Path, "raw")
		if d := g.disk("sda"); d.Path != "" {
			s.Errorf("the empty drive got %s", d.Path)
		}
		g.check()
	}
}

// switchTwice is the take of a replace: the first overlay becomes the second snapshot's
// data.
func switchTwice(s *suite) {
	for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Off} {
		g := s.written("raw")
		g.enter(state)
		one := g.take("one")["vda"]
		g.write("vda", 2*mib, 0x31, mib)
		second := g.content()
		two := g.take("two")["vda"]
		g.write("vda", 2*mib, 0x32, mib)
		g.uses("vda", two.overlay, "qcow2")
		g.check()
		g.checkImage(one.overlay, "qcow2", second["vda"])
		g.off()
		g.start()
		below := []hypervisor.Layer{{Path: one.overlay, Format: "qcow2"}, {Path: one.base, Format: "raw"}}
		if d := g.disk("vda"); !d.ChainKnown || !slices.Equal(d.Chain, below) {
			s.Errorf("the chain reads as %+v, want %+v", d.Chain, below)
		}
		g.check()
	}
}

// clone defines a guest whose disk is an overlay on a golden image. The golden image
// stays off: QEMU would not let two guests have it.
func (s *suite) clone() (g *guest, golden *guest) {
	s.Helper()
	golden = s.written("qcow2")
	base := golden.disk("vda").Path
	g = s.guest(DiskSpec{Target: "vda", SizeBytes: diskSize, Backing: base, BackingFormat: "qcow2"})
	g.want = golden.content()
	g.write("vda", 3*mib, 0x66, mib)
	return g, golden
}

// switchClone: the new layer comes on top, the golden image stays at the bottom.
func switchClone(s *suite) {
	g, golden := s.clone()
	g.start()
	taken := g.content()
	l := g.take("snap")["vda"]
	g.write("vda", 3*mib, 0x67, 2*mib)
	below := []hypervisor.Layer{{Path: l.base, Format: "qcow2"}, {Path: golden.disk("vda").Path, Format: "qcow2"}}
	if d := g.disk("vda"); !slices.Equal(d.Chain, below) {
		s.Errorf("the chain reads as %+v, want %+v", d.Chain, below)
	}
	g.check()
	g.checkImage(l.base, "qcow2", taken["vda"])
	golden.check()
}

// switchAllOrNone: FAULTS.md, row 21. Another overlay must work afterwards; the failed
// one may still be open in QEMU and is never used again.
func switchAllOrNone(s *suite) {
	missing := func(path string) { s.must(os.Remove(path)) }
	garbage := func(path string) { s.must(os.WriteFile(path, make([]byte, 64*kib), 0o600)) }
	for _, c := range []struct {
		name  string
		state hypervisor.State
		spoil func(path string)
	}{
		{"running, the file is missing", hypervisor.Running, missing},
		{"running, the file is no overlay", hypervisor.Running, garbage},
		{"off, the file is missing", hypervisor.Off, missing},
	} {
		s.Run(c.name, func(s *suite) {
			g := s.written("qcow2", "raw")
			g.enter(c.state)
			l := g.overlays("bad")
			c.spoil(l["vdb"].overlay)
			if err := s.host().SwitchToOverlays(s.ctx, g.id, l.switches()); err == nil {
				s.Fatal("the switch went well")
			}
			for t := range l {
				g.uses(t, l[t].base, l[t].baseFormat)
			}
			g.inState(c.state)
			g.write("vda", 0, 0x51, mib)
			g.check()
			// With new names: QEMU keeps the node of a failed overlay.
			good := g.take("good")
			for t := range good {
				g.uses(t, good[t].overlay, "qcow2")
			}
			g.check()
		})
	}
}
