package hypervisortest

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vpssnapd/hypervisor"
)

var reading = []test{
	{"Info tells versions", infoTellsVersions},
	{"Domain reads states and disks", domainReadsStates},
	{"Domain tells disks that cannot have a snapshot", domainTellsKinds},
	{"Domain reads the chain of a linked clone", domainReadsChain},
	{"List names every domain", listNamesAll},
	{"A name leads to the domain that has it", namedFindsOne},
	{"An unknown domain or disk is not found", unknownIsNotFound},
	{"A guest without an agent says so", noAgent},
	{"Domain tells what is no file, and opens nothing", tellsNoFile},
	{"Pools are the directories of the storage pools", pools},
}

// tellsNoFile: the open of a named pipe would hold libvirt up for ever (FAULTS row 41).
func tellsNoFile(s *suite) {
	dir := s.TempDir()
	pipe := filepath.Join(dir, "pipe")
	s.must(syscall.Mkfifo(pipe, 0o600))
	for path, want := range map[string]string{pipe: "named pipe", dir: "directory", "/dev/null": "character device"} {
		g := s.guest(DiskSpec{Target: "vda", Path: path, Format: "raw"})
		list, err := s.host().List(s.ctx)
		s.must(err)
		for _, d := range append(list, g.domain()) {
			if d.ID == g.id && (d.Disks[0].NotFile != want || d.PersistentDisks[0].NotFile != want) {
				s.Errorf("%s is told as %q", path, d.Disks[0].NotFile)
			}
		}
		_, err = s.host().Inspect(s.ctx, path, "raw")
		s.is(err, hypervisor.ErrUnsupported)
		s.is(s.host().Unused(s.ctx, path, "raw"), hypervisor.ErrUnsupported)
	}
	if g := s.written("qcow2"); g.disk("vda").NotFile != "" {
		s.Errorf("a file is told as %q", g.disk("vda").NotFile)
	}
}

func pools(s *suite) {
	before, err := s.host().Pools(s.ctx)
	s.must(err)
	dir := s.TempDir()
	s.fixture.AddPool(s, dir)
	if now, err := s.host().Pools(s.ctx); err != nil || !slices.Equal(now, append(before, dir)) {
		s.Errorf("got %q, %v; before %q", now, err, before)
	}
}

// infoTellsVersions: operators are shown them; doctor's advice depends on them.
func infoTellsVersions(s *suite) {
	info, err := s.host().Info(s.ctx)
	s.must(err)
	if info.Hostname == "" || strings.Count(info.LibvirtVersion, ".") != 2 ||
		strings.Count(info.HypervisorVersion, ".") != 2 {
		s.Fatalf("got %+v", info)
	}
}

// domainReadsStates: a start in paused state is no I/O error, for which the daemon would
// resume the guest by itself.
func domainReadsStates(s *suite) {
	g := s.guest(
		DiskSpec{Target: "vda", SizeBytes: diskSize},
		DiskSpec{Target: "vdb", Format: "raw", SizeBytes: 4 * mib},
	)
	for _, state := range []hypervisor.State{hypervisor.Off, hypervisor.Running, hypervisor.Paused} {
		g.off()
		g.enter(state)
		d := g.domain()
		if d.ID != g.id || d.ID != strings.ToLower(d.ID) || d.Name != g.name || !d.Persistent || d.Autostart ||
			d.ManagedSave {
			s.Fatalf("got %+v", d)
		}
		if state == hypervisor.Paused && d.PauseReason == hypervisor.PausedByIO {
			s.Fatalf("a start in paused state reads as %q", d.PauseReason)
		}
		if len(d.Disks) != 2 || len(d.PersistentDisks) != 2 {
			s.Fatalf("got disks %+v and %+v", d.Disks, d.PersistentDisks)
		}
		plainDisk(g, "vda", "qcow2", diskSize)
		plainDisk(g, "vdb", "raw", 4*mib)
	}
}

// plainDisk checks a disk without backing file.
func plainDisk(g *guest, target, format string, size int64) {
	g.Helper()
	d := g.disk(target)
	if d.Type != "file" || d.Device != "disk" || d.Format != format || d.Path == "" || d.SizeBytes != size {
		g.Fatalf("got disk %+v", d)
	}
	if d.ReadOnly || d.Shareable || d.Transient || d.Encrypted || d.Slice || d.Job || len(d.Chain) != 0 {
		g.Fatalf("got disk %+v", d)
	}
	glance, err := g.host().Glance(g.ctx, g.id)
	g.must(err)
	for _, seen := range glance.Disks {
		if d.SizeBytes = 0; seen.Target == target && !reflect.DeepEqual(seen, d) {
			g.Fatalf("a glance at the disk shows %+v", seen)
		}
	}
	g.uses(target, d.Path, format)
}

// domainTellsKinds: by these the daemon refuses a take or leaves a disk out. None of it
// is guessed from names.
func domainTellsKinds(s *suite) {
	g := s.guest(
		DiskSpec{Target: "vda", SizeBytes: diskSize},
		DiskSpec{Target: "vdb", Format: "raw", SizeBytes: diskSize, ReadOnly: true},
		DiskSpec{Target: "vdc", Format: "raw", SizeBytes: diskSize, Shareable: true},
		DiskSpec{Target: "vdd", Format: "raw", Type: "network"},
		DiskSpec{Target: "sda", Format: "raw", Device: "cdrom"},
	)
	if d := g.disk("vdb"); !d.ReadOnly || d.Shareable {
		s.Errorf("the read-only disk is %+v", d)
	}
	if d := g.disk("vdc"); !d.Shareable || d.ReadOnly {
		s.Errorf("the shareable disk is %+v", d)
	}
	if d := g.disk("vdd"); d.Type != "network" || d.Path != "" {
		s.Errorf("the network disk is %+v", d)
	}
	if d := g.disk("sda"); d.Device != "cdrom" || d.Path != "" {
		s.Errorf("the empty drive is %+v", d)
	}
}

// domainReadsChain: of a running guest libvirt knows the whole chain; the take checks
// the headers against it.
func domainReadsChain(s *suite) {
	golden := s.guest(DiskSpec{Target: "vda", Format: "raw", SizeBytes: diskSize})
	base := golden.disk("vda").Path
	g := s.guest(DiskSpec{Target: "vda", SizeBytes: diskSize, Backing: base, BackingFormat: "raw"})
	g.start()
	d := g.disk("vda")
	if !d.ChainKnown || !slices.Equal(d.Chain, []hypervisor.Layer{{Path: base, Format: "raw"}}) {
		s.Fatalf("got disk %+v", d)
	}
}

// listNamesAll: a list of hundreds leaves out the sizes, and nothing else.
func listNamesAll(s *suite) {
	a, b := s.written("qcow2"), s.written("raw")
	b.start()
	list, err := s.host().List(s.ctx)
	s.must(err)
	for _, g := range []*guest{a, b} {
		want := g.domain()
		i := slices.IndexFunc(list, func(d hypervisor.Domain) bool { return d.ID == g.id })
		if i < 0 {
			s.Fatalf("%s is not listed", g.name)
		}
		got := list[i]
		if got.Name != want.Name || got.State != want.State || len(got.Disks) != 1 ||
			got.Disks[0].Path != want.Disks[0].Path {
			s.Errorf("listed as %+v, want %+v", got, want)
		}
	}
}

func namedFindsOne(s *suite) {
	g := s.written("qcow2")
	id, err := s.host().Named(s.ctx, g.name)
	s.must(err)
	if id != g.id {
		s.Errorf("%s leads to %s instead of %s", g.name, id, g.id)
	}
	for _, none := range []string{"", g.name + "x", g.name + "\x00", g.name + "\x00x", g.id, strings.ToUpper(g.name), "../" + g.name} {
		_, err := s.host().Named(s.ctx, none)
		s.is(err, hypervisor.ErrNotFound)
	}
}

// unknownIsNotFound: the same error for a UUID that nobody has and for what is none,
// without a path or a query made of it.
func unknownIsNotFound(s *suite) {
	h, ctx := s.host(), s.ctx
	sources := []hypervisor.DiskSource{{Target: "vda", Path: "/nowhere", Format: "raw"}}
	calls := map[string]func(id string) error{
		"Domain":            func(id string) error { _, err := h.Domain(ctx, id); return err },
		"Glance":            func(id string) error { _, err := h.Glance(ctx, id); return err },
		"Freeze":            func(id string) error { return h.Freeze(ctx, id, time.Second) },
		"Thaw":              func(id string) error { return h.Thaw(ctx, id, time.Second) },
		"PingAgent":         func(id string) error { return h.PingAgent(ctx, id, time.Second) },
		"SwitchToOverlays":  func(id string) error { return h.SwitchToOverlays(ctx, id, []hypervisor.DiskSwitch{{Target: "vda"}}) },
		"AllowMerge":        func(id string) error { return h.AllowMerge(ctx, id, []string{"/b"}) },
		"StartMerge":        func(id string) error { return h.StartMerge(ctx, id, hypervisor.Merge{Target: "vda"}) },
		"MergeJob":          func(id string) error { _, err := h.MergeJob(ctx, id, "vda"); return err },
		"Pivot":             func(id string) error { return h.Pivot(ctx, id, "vda") },
		"AbortMerge":        func(id string) error { return h.AbortMerge(ctx, id, "vda") },
		"PointDisks":        func(id string) error { return h.PointDisks(ctx, id, sources) },
		"SyncDefinition":    func(id string) error { return h.SyncDefinition(ctx, id) },
		"SetMetadata":       func(id string) error { return h.SetMetadata(ctx, id, "") },
		"Suspend":           func(id string) error { return h.Suspend(ctx, id) },
		"Resume":            func(id string) error { return h.Resume(ctx, id) },
		"PowerOff":          func(id string) error { return h.PowerOff(ctx, id) },
		"Start":             func(id string) error { return h.Start(ctx, id, false) },
		"RemoveManagedSave": func(id string) error { return h.RemoveManagedSave(ctx, id) },
	}
	for name, call := range calls {
		for _, id := range []string{"5d3c8d1c-3f6b-4f0e-9d0a-6f4f1c2b7a10", "not-a-uuid", "", "../../etc/passwd"} {
			s.T.Run(name+" "+id, func(t *testing.T) { (&suite{T: t}).is(call(id), hypervisor.ErrNotFound) })
		}
	}
	g := s.written("qcow2")
	g.start()
	s.is(
		h.SwitchToOverlays(ctx, g.id, []hypervisor.DiskSwitch{{Target: "vdz", Overlay: g.path("none")}}),
		hypervisor.ErrNotFound,
	)
	s.is(
		h.StartMerge(ctx, g.id, hypervisor.Merge{Target: "vdz", Top: "/a", Base: "/b", Active: true}),
		hypervisor.ErrNotFound,
	)
	_, err := h.MergeJob(ctx, g.id, "vdz")
	s.is(err, hypervisor.ErrNotFound)
	s.is(h.Pivot(ctx, g.id, "vdz"), hypervisor.ErrNotFound)
	s.is(h.AbortMerge(ctx, g.id, "vdz"), hypervisor.ErrNotFound)
	sources[0].Target = "vdz"
	s.is(h.PointDisks(ctx, g.id, sources), hypervisor.ErrNotFound)
	g.check()
}

// noAgent: without an agent an answer comes at once; nobody may wait for libvirt's own
// time-out, which is infinite by default.
func noAgent(s *suite) {
	g := s.written("qcow2")
	g.start()
	begun := time.Now()
	s.is(s.host().PingAgent(s.ctx, g.id, time.Second), hypervisor.ErrAgent)
	s.is(s.host().Freeze(s.ctx, g.id, time.Second), hypervisor.ErrAgent)
	s.is(s.host().Thaw(s.ctx, g.id, time.Second), hypervisor.ErrAgent)
	if took := time.Since(begun); took > time.Minute {
		s.Errorf("three calls with a limit of 1s took %v", took)
	}
	if d := g.domain(); d.Agent != hypervisor.AgentNone {
		s.Errorf("the agent reads as %q", d.Agent)
	}
}
