package hypervisortest

import (
	"vpssnapd/hypervisor"
)

var restoring = []test{
	{"A restore exchanges the overlays, and can be undone", restore},
	{"A restore of a guest that was off at the take", restoreOff},
}

// restore: on the real host the guest writes to whatever file lies under the overlay's
// name at its start; the definition is not touched.
func restore(s *suite) {
	g := s.written("qcow2", "raw")
	g.start()
	restoreAndUndo(g)
}

// restoreOff: the take of a domain that is off leaves the chain to the headers.
func restoreOff(s *suite) {
	restoreAndUndo(s.written("raw"))
}

// restoreAndUndo exchanges the overlays twice: the second time is the undo. Both files
// lie on the same base.
func restoreAndUndo(g *guest) {
	taken := g.content()
	all := g.take("snap")
	g.enter(g.domain().State)
	for t := range all {
		g.write(t, mib, 0x91, 4*mib)
	}
	// Off at the exchange: a running QEMU keeps the old file open.
	g.off()
	written := g.content()
	old := map[string]uint64{}
	for t, l := range all {
		old[t] = l.file.Inode
		fresh := g.overlay(l.overlay+".fresh", l.base, l.baseFormat, diskSize)
		g.must(g.host().Exchange(g.ctx, l.overlay, l.overlay+".fresh"))
		if g.inode(l.overlay) != fresh.Inode || g.inode(l.overlay+".fresh") != old[t] {
			g.Fatalf("the overlays of %s were not exchanged", t)
		}
		g.uses(t, l.overlay, "qcow2")
	}
	g.want = taken
	g.check()
	g.start()
	g.check()
	g.inState(hypervisor.Running)
	for t, l := range all {
		g.checkImage(l.overlay+".fresh", "qcow2", written[t])
	}
	g.off()
	for _, l := range all {
		g.must(g.host().Exchange(g.ctx, l.overlay, l.overlay+".fresh"))
	}
	g.want = written
	g.start()
	g.check()
	for t, l := range all {
		if g.inode(l.overlay) != old[t] {
			g.Errorf("after the undo %s uses another file", t)
		}
	}
}
