package hypervisortest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"vpssnapd/hypervisor"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20

	// diskSize is small, so that whole disks can be compared after every step.
	diskSize = 8 * mib
	// deadline ends every waiting: far above what the slowest host needs. Only a hang
	// reaches it.
	deadline = time.Minute
	// pollEvery is how often is asked what no event tells.
	pollEvery = 20 * time.Millisecond
)

// bench is what all tests of one Run share: the host and what happened on it. Events are
// kept from the beginning, so that none is missed between an act and the wait for it.
type bench struct {
	fixture Fixture
	count   int

	mu   sync.Mutex
	seen []hypervisor.Event
	news chan struct{}
}

// watch collects the events of the present Host until it is closed. Closing news wakes
// all waiters.
func (b *bench) watch() {
	go func(in <-chan hypervisor.Event) {
		for e := range in {
			b.mu.Lock()
			b.seen = append(b.seen, e)
			close(b.news)
			b.news = make(chan struct{})
			b.mu.Unlock()
		}
	}(b.fixture.Host().Events())
}

// suite is one test at work.
type suite struct {
	*testing.T
	*bench
	ctx context.Context
}

// Its context ends even a call that hangs, well before go test's own limit.
func newSuite(t *testing.T, b *bench) *suite {
	ctx, cancel := context.WithTimeout(t.Context(), 5*deadline)
	t.Cleanup(cancel)
	return &suite{T: t, bench: b, ctx: ctx}
}

func (s *suite) host() hypervisor.Host { return s.fixture.Host() }

// must ends the test when something that should work did not. With the line of the
// caller (Helper), as all helpers of the suite.
func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("%v", err)
	}
}

// is ends the test unless err says want. By errors.Is: the text is the host's own.
func (s *suite) is(err, want error) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Fatalf("got error %v, want %v", err, want)
	}
}

// mark remembers how many events were seen so far, for await. It is taken before the
// act: the event may come before the call returns.
func (s *suite) mark() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

// await waits for an event after mark. It waits for the event and never for a time; the
// deadline is for hosts that are broken.
func (s *suite) await(mark int, kind hypervisor.EventKind, id string) {
	s.Helper()
	late := time.After(deadline)
	for {
		s.mu.Lock()
		seen, news := s.seen[mark:], s.news
		s.mu.Unlock()
		if slices.ContainsFunc(seen, func(e hypervisor.Event) bool { return e.Kind == kind && e.Domain == id }) {
			return
		}
		select {
		case <-news:
		case <-late:
			s.Fatalf("no event %q of %q came; seen: %v", kind, id, seen)
		}
	}
}

// poll asks until done. For what no event tells, as the progress of a job.
func (s *suite) poll(what string, done func() bool) {
	s.Helper()
	late := time.After(deadline)
	again := time.NewTicker(pollEvery)
	defer again.Stop()
	for !done() {
		select {
		case <-again.C:
		case <-late:
			s.Fatalf("waited in vain: %s", what)
		}
	}
}

// guest is a domain of one test and what its disks should hold. want is kept beside the
// host: what the guest reads is compared with what was written, not with what the host
// says of itself.
type guest struct {
	*suite
	id   string
	name string
	spec Spec
	want map[string][]byte
	gone bool
}

// guest defines a domain, which ends with the test. The number in its name keeps domains
// of one run apart.
func (s *suite) guest(disks ...DiskSpec) *guest {
	s.Helper()
	s.count++
	g := &guest{suite: s, name: fmt.Sprintf("contract%d", s.count), want: map[string][]byte{}}
	g.spec = Spec{Name: g.name, Disks: disks}
	g.id = s.fixture.Define(s, g.spec)
	for _, d := range disks {
		if d.SizeBytes > 0 && d.Backing == "" {
			g.want[d.Target] = make([]byte, d.SizeBytes)
		}
	}
	// Also after a failure: the next test shares the host.
	s.Cleanup(func() {
		if g.gone {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		if err := s.host().PowerOff(ctx, g.id); err != nil {
			s.Errorf("cannot end %s: %v", g.name, err)
		}
		s.fixture.Undefine(s, g.id)
	})
	return g
}

// written defines a domain whose disks hold something. At the beginning and at the very
// end: an image that is cut short is seen.
func (s *suite) written(formats ...string) *guest {
	s.Helper()
	var disks []DiskSpec
	for i, format := range formats {
		disks = append(disks, DiskSpec{Target: target(i), Format: format, SizeBytes: diskSize})
	}
	g := s.guest(disks...)
	for i := range formats {
		g.write(target(i), 64*kib, byte(0x11+i), mib)
		g.write(target(i), diskSize-8*kib, byte(0x21+i), 8*kib)
	}
	return g
}

func target(i int) string { return "vd" + string(rune('a'+i)) }

func (g *guest) start() {
	g.Helper()
	g.must(g.host().Start(g.ctx, g.id, false))
}

func (g *guest) off() {
	g.Helper()
	g.must(g.host().PowerOff(g.ctx, g.id))
}

// enter brings a domain that is off into a state.
func (g *guest) enter(state hypervisor.State) {
	g.Helper()
	if state != hypervisor.Off {
		g.must(g.host().Start(g.ctx, g.id, state == hypervisor.Paused))
	}
	g.inState(state)
}

func (g *guest) inState(state hypervisor.State) {
	g.Helper()
	if d := g.domain(); d.State != state {
		g.Fatalf("%s is %s, want %s", g.name, d.State, state)
	}
}

func (g *guest) domain() hypervisor.Domain {
	g.Helper()
	d, err := g.host().Domain(g.ctx, g.id)
	g.must(err)
	return d
}

// disk returns a disk as the domain uses it now.
func (g *guest) disk(target string) hypervisor.Disk {
	g.Helper()
	return g.find(g.domain().Disks, target)
}

// next returns a disk as the next boot will use it.
func (g *guest) next(target string) hypervisor.Disk {
	g.Helper()
	return g.find(g.domain().PersistentDisks, target)
}

// A copy, as of the moment of the call.
func (g *guest) find(disks []hypervisor.Disk, target string) hypervisor.Disk {
	g.Helper()
	for _, d := range disks {
		if d.Target == target {
			return d
		}
	}
	g.Fatalf("%s has no disk %s: %v", g.name, target, disks)
	return hypervisor.Disk{}
}

// uses checks which image a disk uses now and after the next boot. Both must agree, or a
// reboot would change the disk.
func (g *guest) uses(target, path, format string) {
	g.Helper()
	for which, d := range map[string]hypervisor.Disk{"": g.disk(target), " after the next boot": g.next(target)} {
		if d.Path != path || d.Format != format {
			g.Fatalf("%s of %s uses %s (%s)%s, want %s (%s)", target, g.name, d.Path, d.Format, which, path, format)
		}
	}
}

// write writes as the guest, and remembers it.
func (g *guest) write(target string, offset int64, pattern byte, length int64) {
	g.Helper()
	g.fixture.Write(g, g.id, target, offset, pattern, length)
	copy(g.want[target][offset:], bytes.Repeat([]byte{pattern}, int(length)))
}

// content is what the disks should hold, to go back to. A deep copy, because write
// changes want in place.
func (g *guest) content() map[string][]byte {
	c := maps.Clone(g.want)
	for t := range c {
		c[t] = slices.Clone(c[t])
	}
	return c
}

// check compares all disks, whole, with what the guest wrote. The whole disk: a byte in
// the wrong place is what these tests are for.
func (g *guest) check() {
	g.Helper()
	for _, t := range slices.Sorted(maps.Keys(g.want)) {
		g.equal("disk "+t+" of "+g.name, g.fixture.Read(g, g.id, t, 0, int64(len(g.want[t]))), g.want[t])
	}
}

// checkImage compares an image, whole, with what it should hold. By the image alone,
// without the guest: so a base is seen as a restore would see it.
func (g *guest) checkImage(path, format string, want []byte) {
	g.Helper()
	g.equal("image "+filepath.Base(path), g.fixture.ReadImage(g, path, format, 0, int64(len(want))), want)
}

// It names the first byte that differs; a dump of 8 MiB helps nobody.
func (s *suite) equal(what string, got, want []byte) {
	s.Helper()
	if len(got) != len(want) {
		s.Fatalf("%s: read %d bytes, want %d", what, len(got), len(want))
	}
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if got[i] != want[i] {
			s.Fatalf("%s: byte %d is %#x, want %#x", what, i, got[i], want[i])
		}
	}
}

// layers is one overlay on each disk of a guest, with what lies below.
type layers map[string]layer

type layer struct {
	base, baseFormat string
	overlay          string
	file             hypervisor.File // of the overlay
}

// overlays makes an overlay on each disk that the guest uses. As large as the disk is:
// libvirt accepts any size and the guest's disk would shrink (seen).
func (g *guest) overlays(tag string) layers {
	g.Helper()
	made := layers{}
	for t := range g.want {
		d := g.disk(t)
		l := layer{base: d.Path, baseFormat: d.Format, overlay: g.path(t + "-" + tag)}
		l.file = g.overlay(l.overlay, d.Path, d.Format, int64(len(g.want[t])))
		made[t] = l
	}
	return made
}

// path is a file name in the image directory that only this guest uses.
func (g *guest) path(suffix string) string {
	return filepath.Join(g.fixture.ImageDir(), g.name+"-"+suffix)
}

func (s *suite) overlay(path, base, format string, size int64) hypervisor.File {
	s.Helper()
	f, err := s.host().CreateOverlay(s.ctx, hypervisor.Overlay{Path: path, Base: base, BaseFormat: format, SizeBytes: size})
	s.must(err)
	return f
}

// switches is the argument that makes the guest use the overlays.
func (l layers) switches() []hypervisor.DiskSwitch {
	var s []hypervisor.DiskSwitch
	for _, t := range slices.Sorted(maps.Keys(l)) {
		s = append(s, hypervisor.DiskSwitch{Target: t, Overlay: l[t].overlay})
	}
	return s
}

// take puts an overlay on each disk. In one call, since several disks must switch at one
// moment.
func (g *guest) take(tag string) layers {
	g.Helper()
	l := g.overlays(tag)
	g.must(g.host().SwitchToOverlays(g.ctx, g.id, l.switches()))
	return l
}

// merge is the merge of an overlay that the guest writes to.
func (l layer) merge(target string) hypervisor.Merge {
	return hypervisor.Merge{Target: target, Top: l.overlay, Base: l.base, Active: true}
}

// ready waits until a merge can be pivoted. It fails at once when the job has gone,
// instead of at the deadline.
func (g *guest) ready(target string) {
	g.Helper()
	g.poll("the merge of "+target+" to become ready", func() bool {
		j, err := g.host().MergeJob(g.ctx, g.id, target)
		g.must(err)
		if !j.Found || j.Foreign || j.Done > j.Total {
			g.Fatalf("the merge of %s is %+v", target, j)
		}
		return j.Ready
	})
}

// pivot ends the ready merges as the daemon does: the guest is paused meanwhile. Then
// the definition is made durable, and only after that does the guest run on.
func (g *guest) pivot(targets ...string) {
	g.Helper()
	g.must(g.host().Suspend(g.ctx, g.id))
	for _, t := range targets {
		g.ready(t)
		g.must(g.host().Pivot(g.ctx, g.id, t))
	}
	g.must(g.host().SyncDefinition(g.ctx, g.id))
	g.must(g.host().Resume(g.ctx, g.id))
}
