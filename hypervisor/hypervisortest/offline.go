package hypervisortest

import (
	"vpssnapd/hypervisor"
)

var offline = []test{
	{"MergeOffline brings the overlay into the base, as often as asked", mergeOffline},
	{"MergeOffline refuses images in use", mergeOfflineBusy},
	{"MergeOffline below the top, and Rebase", mergeOfflineBelow},
	{"MergeOffline into a smaller base", mergeOfflineGrown},
	{"SameAsBase tells a base that holds all from one that does not", sameAsBase},
}

// offline is the same merge for a domain that is off.
func (l layer) offline() hypervisor.OfflineMerge {
	return hypervisor.OfflineMerge{Overlay: l.overlay, Base: l.base, BaseFormat: l.baseFormat}
}

// mergeOffline: a delete that was killed merges again. The overlay is left as it is,
// because it stays the disk until the definition names the base.
func mergeOffline(s *suite) {
	g := s.written("qcow2", "raw")
	all := g.take("snap")
	var sources []hypervisor.DiskSource
	for t, l := range all {
		g.write(t, 512*kib, 0x81, 2*mib)
		before, err := s.host().Stat(s.ctx, l.overlay)
		s.must(err)
		// Progress never runs back, or people would think that it begins again.
		var done, total int64
		for range 2 {
			s.must(s.host().MergeOffline(s.ctx, l.offline(), func(d, n int64) {
				if d < done || d > n {
					s.Errorf("progress went from %d to %d of %d", done, d, n)
				}
				done, total = d, n
			}))
			if done != total {
				s.Errorf("the last progress was %d of %d", done, total)
			}
			done = 0
			g.checkImage(l.base, l.baseFormat, g.want[t])
			g.checkImage(l.overlay, "qcow2", g.want[t])
		}
		after, err := s.host().Stat(s.ctx, l.overlay)
		s.must(err)
		if after.Inode != before.Inode || after.Allocated != before.Allocated {
			s.Errorf("the overlay was %+v, is %+v", before, after)
		}
		g.uses(t, l.overlay, "qcow2")
		sources = append(sources, hypervisor.DiskSource{Target: t, Path: l.base, Format: l.baseFormat})
	}
	s.must(s.host().PointDisks(s.ctx, g.id, sources))
	for t, l := range all {
		g.uses(t, l.base, l.baseFormat)
		s.must(s.host().Remove(s.ctx, l.overlay, l.file.Inode))
	}
	g.start()
	g.check()
}

// mergeOfflineBusy: QEMU's lock is on every image that a guest has open, also on those
// it only reads; qemu-img respects it.
func mergeOfflineBusy(s *suite) {
	g, golden := s.clone()
	base := golden.disk("vda").Path
	g.start()
	l := g.take("snap")["vda"]
	s.is(s.host().MergeOffline(s.ctx, l.offline(), nil), hypervisor.ErrBusy)
	s.is(
		s.host().MergeOffline(s.ctx, hypervisor.OfflineMerge{Overlay: l.base, Base: base, BaseFormat: "qcow2"}, nil),
		hypervisor.ErrBusy,
	)
	// Another's overlay, whose base this guest reads.
	foreign := golden.path("foreign")
	s.overlay(foreign, base, "qcow2", diskSize)
	s.is(
		s.host().MergeOffline(s.ctx, hypervisor.OfflineMerge{Overlay: foreign, Base: base, BaseFormat: "qcow2"}, nil),
		hypervisor.ErrBusy,
	)
	g.check()
	g.write("vda", 0, 0x82, mib)
	g.off()
	s.must(s.host().MergeOffline(s.ctx, l.offline(), nil))
	g.checkImage(l.base, "qcow2", g.want["vda"])
	golden.check()
}

// mergeOfflineBelow: as mergeBelow, off. The header of the new overlay is changed by
// Rebase, and only then is the old one of no use.
func mergeOfflineBelow(s *suite) {
	g := s.written("raw")
	g.start()
	one := g.take("one")["vda"]
	g.write("vda", mib, 0x83, 2*mib)
	taken := g.content()
	two := g.take("two")["vda"]
	g.write("vda", 2*mib, 0x84, 2*mib)
	g.off()
	s.must(s.host().MergeOffline(s.ctx, one.offline(), nil))
	g.check()
	for range 2 {
		s.must(s.host().Rebase(s.ctx, two.overlay, one.base, "raw"))
	}
	// The definition may state the old chain still; PointDisks drops it.
	s.must(s.host().PointDisks(s.ctx, g.id, []hypervisor.DiskSource{{Target: "vda", Path: two.overlay, Format: "qcow2"}}))
	s.must(s.host().Remove(s.ctx, one.overlay, one.file.Inode))
	g.checkImage(one.base, "raw", taken["vda"])
	g.check()
	g.start()
	g.check()
	if d := g.disk("vda"); len(d.Chain) != 1 || d.Chain[0].Path != one.base {
		s.Errorf("the chain reads as %+v", d.Chain)
	}
}

// mergeOfflineGrown: a disk that was resized after the take is larger than its base,
// which grows in the merge.
func mergeOfflineGrown(s *suite) {
	g := s.written("qcow2", "raw")
	for t := range g.want {
		base := g.disk(t)
		l := layer{base: base.Path, baseFormat: base.Format, overlay: g.path(t + "-grown")}
		s.overlay(l.overlay, base.Path, base.Format, diskSize+mib)
		s.must(s.host().SwitchToOverlays(s.ctx, g.id, []hypervisor.DiskSwitch{{Target: t, Overlay: l.overlay}}))
		g.want[t] = append(g.want[t], make([]byte, mib)...)
		g.write(t, diskSize, 0x85, mib)
		s.must(s.host().MergeOffline(s.ctx, l.offline(), nil))
		g.checkImage(l.base, l.baseFormat, g.want[t])
	}
}

// sameAsBase: it settles which of two files counts after a guest ran at a wrong moment,
// so it must not be fooled by what is allocated.
func sameAsBase(s *suite) {
	g := s.written("qcow2", "raw")
	is := func(l layer, want bool, when string) {
		s.Helper()
		if same, err := s.host().SameAsBase(s.ctx, l.offline()); err != nil || same != want {
			s.Errorf("%s overlay and base are the same: %v, %v, want %v", when, same, err, want)
		}
	}
	for t, l := range g.take("snap") {
		is(l, true, "before a write")
		g.write(t, 3*mib, 0x86, 64*kib)
		is(l, false, "after a write")
		s.must(s.host().MergeOffline(s.ctx, l.offline(), nil))
		is(l, true, "after the merge")
		g.write(t, 3*mib+5*kib, 0x87, kib)
		is(l, false, "after one more write")
		g.start()
		_, err := s.host().SameAsBase(s.ctx, l.offline())
		s.is(err, hypervisor.ErrBusy)
		g.off()
		// A caller that has mixed up its files is told, and not answered.
		l.base = l.overlay
		_, err = s.host().SameAsBase(s.ctx, l.offline())
		s.is(err, hypervisor.ErrReplaced)
	}
}
