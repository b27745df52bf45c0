package hypervisortest

import (
	"encoding/xml"
	"errors"
	"io"
	"reflect"
	"strings"

	"vpssnapd/hypervisor"
)

var definition = []test{
	{"Metadata is set, read, and removed", metadata},
	{"Metadata outlives libvirtd and the daemon", metadataSurvives},
	{"A redefinition takes metadata and overlays away, and PointDisks puts them right", redefinition},
	{"PointDisks changes the next boot only", pointDisks},
	{"PointDisks changes only the named disks", pointOneDisk},
}

const (
	// With what XML must escape, and with an attribute that looks like markup.
	element = `<snapshot id="s1"><disk target="vda" base="/a&amp;b"/></snapshot>`
	other   = `<snapshot id="s2"/>`
)

// reads checks the metadata, whatever white space and name space prefixes were added.
func (g *guest) reads(want string) {
	g.Helper()
	got := g.domain().Metadata
	if !reflect.DeepEqual(g.tokens(got), g.tokens(want)) {
		g.Fatalf("the metadata reads as %q, want %q", got, want)
	}
}

// tokens takes the XML apart, so that what libvirt may change on the way is not
// compared.
func (g *guest) tokens(text string) []string {
	g.Helper()
	var all []string
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return all
		}
		g.must(err)
		switch token := token.(type) {
		case xml.StartElement:
			all = append(all, "<"+token.Name.Local)
			for _, a := range token.Attr {
				if a.Name.Space != "xmlns" && a.Name.Local != "xmlns" {
					all = append(all, a.Name.Local+"="+a.Value)
				}
			}
		case xml.EndElement:
			all = append(all, ">")
		case xml.CharData:
			if words := strings.TrimSpace(string(token)); words != "" {
				all = append(all, words)
			}
		}
	}
}

// metadata: it is set live and in the persistent definition, so that it is there after a
// power-off and travels with a migration.
func metadata(s *suite) {
	for _, state := range []hypervisor.State{hypervisor.Off, hypervisor.Running} {
		g := s.written("qcow2")
		g.enter(state)
		g.reads("")
		s.must(s.host().SetMetadata(s.ctx, g.id, ""))
		for _, text := range []string{element, other, ""} {
			s.must(s.host().SetMetadata(s.ctx, g.id, text))
			g.reads(text)
		}
		s.must(s.host().SetMetadata(s.ctx, g.id, element))
		g.off()
		g.reads(element)
	}
}

// metadataSurvives: the copy of the record must be found by whoever rebuilds a lost
// database, whatever was restarted since.
func metadataSurvives(s *suite) {
	g := s.written("qcow2")
	g.start()
	s.must(s.host().SetMetadata(s.ctx, g.id, element))
	l := g.take("snap")["vda"]
	s.restart()
	g.reads(element)
	s.reopen()
	g.reads(element)
	g.uses("vda", l.overlay, "qcow2")
	g.inState(hypervisor.Running)
	g.check()
}

// redefinition is what panels do before each start (seen on libvirt 9.0): the metadata
// is gone and the next boot would write to the base. The daemon must be able to put both
// right while the guest runs.
func redefinition(s *suite) {
	g := s.written("qcow2")
	base := g.disk("vda").Path
	g.start()
	l := g.take("snap")["vda"]
	s.must(s.host().SetMetadata(s.ctx, g.id, element))
	mark := s.mark()
	s.fixture.Redefine(s, g.id)
	s.await(mark, hypervisor.EventDefined, g.id)
	g.reads("")
	if live, next := g.disk("vda"), g.next("vda"); live.Path != l.overlay || next.Path != base {
		s.Fatalf("after a redefinition vda is %s, and %s after the next boot", live.Path, next.Path)
	}
	s.must(s.host().PointDisks(s.ctx, g.id, []hypervisor.DiskSource{{Target: "vda", Path: l.overlay, Format: "qcow2"}}))
	s.must(s.host().SetMetadata(s.ctx, g.id, element))
	g.uses("vda", l.overlay, "qcow2")
	// The guest ran on its overlay all along: nothing that it wrote may be missing after
	// the next boot.
	g.write("vda", 0, 0x77, mib)
	g.off()
	g.start()
	g.check()
	g.reads(element)
}

// pointDisks: the running guest goes on with what it has open; only what libvirt will
// start from changes.
func pointDisks(s *suite) {
	g := s.written("raw")
	base := g.disk("vda")
	s.must(s.host().SetMetadata(s.ctx, g.id, element))
	g.start()
	overlay := g.path("snap")
	s.overlay(overlay, base.Path, "raw", diskSize)
	point := func(path, format string) {
		s.Helper()
		s.must(s.host().PointDisks(s.ctx, g.id, []hypervisor.DiskSource{{Target: "vda", Path: path, Format: format}}))
	}
	point(overlay, "qcow2")
	if live, next := g.disk("vda"), g.next("vda"); live.Path != base.Path || next.Path != overlay || next.Format != "qcow2" {
		s.Fatalf("vda is %+v, and %+v after the next boot", live, next)
	}
	g.off()
	g.uses("vda", overlay, "qcow2")
	g.start()
	g.write("vda", 2*mib, 0x55, mib)
	g.check()
	g.off()
	before := g.content()
	// Twice, as a step that is resumed does.
	point(base.Path, "raw")
	point(base.Path, "raw")
	g.uses("vda", base.Path, "raw")
	// The base has nothing of what was written to the overlay.
	clear(g.want["vda"][2*mib : 3*mib])
	g.start()
	g.check()
	g.off()
	point(overlay, "qcow2")
	g.want = before
	g.check()
	g.reads(element)
}

// pointOneDisk: the definition of every other disk stays as it was, element for element.
func pointOneDisk(s *suite) {
	g := s.written("qcow2", "raw")
	before := g.next("vdb")
	l := g.overlays("snap")["vda"]
	s.must(s.host().PointDisks(s.ctx, g.id, []hypervisor.DiskSource{{Target: "vda", Path: l.overlay, Format: "qcow2"}}))
	if after := g.next("vdb"); !reflect.DeepEqual(after, before) {
		s.Fatalf("the other disk was %+v, is %+v", before, after)
	}
	g.start()
	g.check()
}

// restart lets libvirtd die and come back, and waits for the connection. The events
// prove that the connection was really lost; without them the test could pass on the old
// one.
func (s *suite) restart() {
	s.Helper()
	mark := s.mark()
	s.fixture.RestartHypervisor(s)
	s.await(mark, hypervisor.EventDisconnected, "")
	s.await(mark, hypervisor.EventConnected, "")
}

// reopen starts the daemon's side again. Nothing of the old Host is used again, as after
// a kill of the daemon.
func (s *suite) reopen() {
	s.Helper()
	mark := s.mark()
	s.fixture.Reopen(s)
	s.watch()
	s.await(mark, hypervisor.EventConnected, "")
}
