package daemon_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vpssnapd/daemon"
	"vpssnapd/daemon/hook"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// spellings are other names of the file real/NAME below a directory, made for it.
var spellings = map[string]func(t *testing.T, dir, name string) string{
	"itself":            func(_ *testing.T, dir, name string) string { return filepath.Join(dir, "real", name) },
	"two slashes":       func(_ *testing.T, dir, name string) string { return dir + "//real//" + name },
	"a dot":             func(_ *testing.T, dir, name string) string { return dir + "/./real/./" + name },
	"there and back":    func(_ *testing.T, dir, name string) string { return dir + "/real/../real/" + name },
	"linked directory":  func(_ *testing.T, dir, name string) string { return dir + "/link/" + name },
	"linked twice":      func(_ *testing.T, dir, name string) string { return dir + "/link2/" + name },
	"back over a link":  func(_ *testing.T, dir, name string) string { return dir + "/deep/../../real/" + name },
	"linked image":      func(t *testing.T, dir, name string) string { return linked(t, os.Symlink, dir, name) },
	"hard link":         func(t *testing.T, dir, name string) string { return linked(t, os.Link, dir, name) },
	"bound directory":   func(t *testing.T, dir, name string) string { return bound(t, dir, name) },
	"bound single file": boundFile,
}

func linked(t *testing.T, link func(string, string) error, dir, name string) string {
	t.Helper()
	twin := filepath.Join(dir, "twin-"+name)
	if err := link(filepath.Join(dir, "real", name), twin); err != nil {
		t.Fatal(err)
	}
	return twin
}

func bound(t *testing.T, dir, name string) string {
	t.Helper()
	at := filepath.Join(dir, "bound")
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	bind(t, filepath.Join(dir, "real"), at)
	return filepath.Join(at, name)
}

func boundFile(t *testing.T, dir, name string) string {
	at := filepath.Join(dir, "bound-"+name)
	if err := os.WriteFile(at, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	bind(t, filepath.Join(dir, "real", name), at)
	return at
}

func bind(t *testing.T, what, at string) {
	t.Helper()
	if err := unix.Mount(what, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
}

// spelled prepares the directories that the spellings lead through.
func (w *world) spelled() (dir string) {
	w.t.Helper()
	dir = w.t.TempDir()
	w.must(os.MkdirAll(filepath.Join(dir, "real"), 0o700))
	w.must(os.MkdirAll(filepath.Join(dir, "else/where"), 0o700))
	for name, to := range map[string]string{"link": "real", "link2": "link", "deep": "else/where"} {
		w.must(os.Symlink(to, filepath.Join(dir, name)))
	}
	return dir
}

// placed makes an image of 8 MiB at a path, on a backing file where one is named.
func (w *world) placed(path, backing string) {
	w.t.Helper()
	disk := hypervisor.Disk{Target: "vda", SizeBytes: 8 * mib}
	if backing != "" {
		disk.Chain = []hypervisor.Layer{{Path: backing, Format: "qcow2"}}
	}
	id, err := w.host.Define("maker", disk)
	w.must(err)
	w.must(os.Rename(w.image("maker"), path))
	w.must(w.host.Undefine(id))
	w.eventually("the maker is forgotten", func() bool {
		_, err := w.daemon.Overview.ShowVPS(ctx, id)
		return vps.CodeOf(err) == vps.CodeNotFound
	})
}

// TestBaseUnderAnotherName (FAULTS row 33): a panel defines the VPS with the frozen base
// of its snapshot, by another of its names. The hook refuses the start, the definition is
// put right, and doctor calls nothing an orphan.
func TestBaseUnderAnotherName(t *testing.T) {
	for what, spell := range spellings {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, nil)
			dir := w.spelled()
			base := filepath.Join(dir, "real", "a")
			w.placed(base, "")
			id := w.vps("web1", hypervisor.Off, hypervisor.Disk{Target: "vda", Path: base, SizeBytes: 8 * mib})
			w.take(id, vps.TakeRequest{})
			overlay := w.disk(id).Overlay
			name := spell(t, dir, "a")
			w.refuses(vps.CodeVPSChanged, hook.BeforeStart(ctx, w.stateDir, id, "web1", []string{name}))
			w.must(hook.BeforeStart(ctx, w.stateDir, id, "web1", []string{overlay}))
			w.close()
			w.open()
			w.must(w.host.Edit(id, func(d *hypervisor.Domain) { d.PersistentDisks[0].Path, d.Metadata = name, "" }))
			w.close()
			w.open() // when the daemon comes, every definition is looked at
			w.eventually("the definition names the overlay", func() bool {
				return w.domain(id).PersistentDisks[0].Path == overlay && w.domain(id).Metadata != ""
			})
			w.awaits(id, vps.SnapshotAvailable)
			w.finds()
			w.restore(id)
			w.delete(id)
		})
	}
}

// TestMovedBase (FAULTS row 33): its directory was renamed. The hook knows the base by what
// it is, and doctor prints no removal for what a record names by its inode.
func TestMovedBase(t *testing.T) {
	w := newWorld(t, nil)
	dir := w.spelled()
	base := filepath.Join(dir, "real", "a")
	w.placed(base, "")
	id := w.vps("web1", hypervisor.Off, hypervisor.Disk{Target: "vda", Path: base, SizeBytes: 8 * mib})
	w.take(id, vps.TakeRequest{})
	w.must(os.Rename(filepath.Join(dir, "real"), filepath.Join(dir, "moved")))
	moved := filepath.Join(dir, "moved", "a")
	w.refuses(vps.CodeVPSChanged, hook.BeforeStart(ctx, w.stateDir, id, "web1", []string{moved}))
	// Another VPS has its disk there, so that the directory is looked through.
	w.placed(filepath.Join(dir, "moved", "b"), "")
	w.vps("web2", hypervisor.Off, hypervisor.Disk{
		Target: "vda", Path: filepath.Join(dir, "moved", "b"), SizeBytes: 8 * mib,
	})
	w.noRemoval()
}

// noRemoval fails if doctor prints a command that removes a file.
func (w *world) noRemoval() {
	w.t.Helper()
	r, err := w.daemon.Doctor.Checks(ctx)
	w.must(err)
	for _, f := range r.Findings {
		for _, remedy := range f.Remedies {
			for _, command := range remedy.Commands {
				if command[0] == "rm" {
					w.t.Errorf("%s: %s: %q", f.Code, f.Detail, command)
				}
			}
		}
	}
}

// TestDiskByAnotherName (FAULTS row 33): a VPS whose disk is named in any way has the life
// of every other, on and off, and what show says is what take does.
func TestDiskByAnotherName(t *testing.T) {
	for what, spell := range spellings {
		for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Off} {
			t.Run(what+" "+string(state), func(t *testing.T) {
				w := newWorld(t, nil)
				dir := w.spelled()
				w.placed(filepath.Join(dir, "real", "a"), "")
				w.placed(filepath.Join(dir, "real", "other"), "")
				name := spell(t, dir, "a")
				id := w.vps("web1", state, hypervisor.Disk{Target: "vda", Path: name, SizeBytes: 8 * mib})
				w.vps("web2", hypervisor.Off, hypervisor.Disk{
					Target: "vda", Path: filepath.Join(dir, "real", "other"), SizeBytes: 8 * mib,
				})
				if v, err := w.daemon.Overview.ShowVPS(ctx, id); err != nil || !v.Actions.Take.Allowed {
					t.Fatalf("show refuses the take: %+v, %v", v.Actions.Take, err)
				}
				w.write(id, "vda", 0, 'a')
				w.take(id, vps.TakeRequest{})
				w.write(id, "vda", 0, 'b')
				w.finds() // the directory of web2 holds the overlay, by another name
				w.restore(id)
				w.sees(id, "vda", 0, 'a')
				w.done(w.daemon.Snapshots.UndoRestore(ctx, id, operator))
				w.sees(id, "vda", 0, 'b')
				w.take(id, vps.TakeRequest{Replace: true})
				w.write(id, "vda", 0, 'c')
				w.delete(id)
				w.sees(id, "vda", 0, 'c')
				w.finds()
			})
		}
	}
}

// TestNoFile (FAULTS row 41): a disk of type file is refused by what lies there, without
// being opened, by show and take alike, also at the start of the daemon.
func TestNoFile(t *testing.T) {
	dir := t.TempDir()
	pipe, device, socket := filepath.Join(dir, "pipe"), filepath.Join(dir, "loop"), filepath.Join(dir, "socket")
	for _, err := range []error{
		unix.Mkfifo(pipe, 0o600), os.Symlink("pipe", filepath.Join(dir, "link")),
		unix.Mknod(device, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 200))),
		unix.Mknod(socket, unix.S_IFSOCK|0o600, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		pipe: "a named pipe", filepath.Join(dir, "link"): "a named pipe", device: "a block device",
		socket: "a socket", dir: "a directory", "/dev/null": "a character device",
	} {
		t.Run(strings.ReplaceAll(want, " ", "-")+filepath.Base(path), func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps("web1", hypervisor.Off, hypervisor.Disk{Target: "vda", Path: path, SizeBytes: mib},
				hypervisor.Disk{Target: "vdb", SizeBytes: 8 * mib})
			w.close()
			w.open()
			_, err := w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
			w.refuses(vps.CodeUnsupportedDisk, err)
			v, err2 := w.daemon.Overview.ShowVPS(ctx, id)
			if said := vps.Readable(err).Detail; err2 != nil || !strings.Contains(said, want) ||
				v.Actions.Take.Allowed || !strings.Contains(v.Actions.Take.Reason.String(), want) {
				t.Errorf("take says %q, show %q (%v)", said, v.Actions.Take.Reason, err2)
			}
		})
	}
}

// TestBackingFiles: what a disk may lie on, decided by what its headers say, with the VPS
// on and off, by show and take alike.
func TestBackingFiles(t *testing.T) {
	type lab struct {
		*world
		dir string // elsewhere
	}
	template := func(w lab, dir string) string {
		path := filepath.Join(dir, "template")
		w.placed(path, "")
		return path
	}
	const elsewhere, another = "directory for templates", "belongs to another VPS"
	cases := map[string]struct {
		backing func(w lab) string
		want    string // "" is accepted
	}{
		"beside the disk": {func(w lab) string { return template(w, w.host.ImageDir()) }, ""},
		"in a pool": {func(w lab) string {
			w.must(w.host.AddPool(w.dir))
			return template(w, w.dir)
		}, ""},
		"below a pool": {func(w lab) string {
			w.must(w.host.AddPool(w.dir))
			below := filepath.Join(w.dir, "sub")
			w.must(os.Mkdir(below, 0o700))
			return template(w, below)
		}, elsewhere},
		"elsewhere": {func(w lab) string { return template(w, w.dir) }, elsewhere},
		"a link that leads out": {func(w lab) string {
			link := filepath.Join(w.host.ImageDir(), "link")
			w.must(os.Symlink(template(w, w.dir), link))
			return link
		}, elsewhere},
		"back and out": {func(w lab) string {
			return w.host.ImageDir() + "/../images/../.." + strings.TrimPrefix(template(w, w.dir), filepath.Dir(w.hostDir))
		}, elsewhere},
		"on a template that lies elsewhere": {func(w lab) string {
			path := filepath.Join(w.host.ImageDir(), "middle")
			w.placed(path, template(w, w.dir))
			return path
		}, elsewhere},
		"on a template beside it": {func(w lab) string {
			path := filepath.Join(w.host.ImageDir(), "middle")
			w.placed(path, template(w, w.host.ImageDir()))
			return path
		}, ""},
		"another VPS's disk": {func(w lab) string {
			w.vps("web2", hypervisor.Off)
			return w.image("web2")
		}, another},
		"another VPS's disk by a hard link": {func(w lab) string {
			w.vps("web2", hypervisor.Off)
			link := filepath.Join(w.host.ImageDir(), "hard")
			w.must(os.Link(w.image("web2"), link))
			return link
		}, another},
		"the base of another VPS's snapshot": {func(w lab) string {
			id := w.vps("web2", hypervisor.Off)
			w.take(id, vps.TakeRequest{})
			return w.disk(id).Base
		}, another},
		"above another VPS's disk": {func(w lab) string {
			w.vps("web2", hypervisor.Off)
			path := filepath.Join(w.host.ImageDir(), "middle")
			w.placed(path, w.image("web2"))
			return path
		}, another},
		"a template that another clone lies on": {func(w lab) string {
			path := template(w, w.host.ImageDir())
			id := w.vps("web2", hypervisor.Off, hypervisor.Disk{
				Target: "vda", SizeBytes: 8 * mib, Chain: []hypervisor.Layer{{Path: path, Format: "qcow2"}},
			})
			w.take(id, vps.TakeRequest{})
			return path
		}, ""},
	}
	for what, c := range cases {
		for _, state := range []hypervisor.State{hypervisor.Off, hypervisor.Running} {
			t.Run(what+" "+string(state), func(t *testing.T) {
				w := lab{newWorld(t, nil), t.TempDir()}
				backing := c.backing(w)
				id := w.vps("clone", hypervisor.Off, hypervisor.Disk{
					Target: "vda", SizeBytes: 8 * mib, Chain: []hypervisor.Layer{{Path: backing, Format: "qcow2"}},
				})
				if state == hypervisor.Running {
					w.must(w.host.Start(ctx, id, false))
				}
				v, err := w.daemon.Overview.ShowVPS(ctx, id)
				w.must(err)
				if c.want == "" {
					if !v.Actions.Take.Allowed {
						t.Errorf("show refuses: %s", v.Actions.Take.Reason)
					}
					w.take(id, vps.TakeRequest{})
					w.restore(id)
					w.all(w.download(w.link(id, vps.FormatRaw).Link), 0)
					w.take(id, vps.TakeRequest{Replace: true})
					w.delete(id)
					return
				}
				if v.Actions.Take.Allowed || !strings.Contains(v.Actions.Take.Reason.String(), c.want) {
					t.Errorf("show says %+v", v.Actions.Take)
				}
				_, err = w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
				w.refuses(vps.CodeUnsupportedDisk, err)
				told := vps.Readable(err)
				if !strings.Contains(told.Detail, c.want) || told.Remedy == "" || strings.Contains(told.Detail, backing) {
					t.Errorf("the take is refused with %q and %q", told.Detail, told.Remedy)
				}
			})
		}
	}
}

// TestTemplatesSetting: where [images] templates names directories, only those count, with
// all below them.
func TestTemplatesSetting(t *testing.T) {
	dir := t.TempDir()
	below := filepath.Join(dir, "debian", "13")
	if err := os.MkdirAll(below, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "templates")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(c *daemon.Config) { c.Settings.Images.Templates = []string{link} })
	beside := filepath.Join(w.host.ImageDir(), "template")
	w.placed(filepath.Join(below, "template"), "")
	w.placed(beside, "")
	clone := func(name, backing string) string {
		return w.vps(name, hypervisor.Off, hypervisor.Disk{
			Target: "vda", SizeBytes: 8 * mib, Chain: []hypervisor.Layer{{Path: backing, Format: "qcow2"}},
		})
	}
	good, bad := clone("good", filepath.Join(below, "template")), clone("bad", beside)
	w.take(good, vps.TakeRequest{})
	w.take(good, vps.TakeRequest{Replace: true})
	w.restore(good)
	_, err := w.daemon.Snapshots.Take(ctx, bad, vps.TakeRequest{}, operator)
	w.refuses(vps.CodeUnsupportedDisk, err)
}

// TestBackingFileChecked: what a snapshot lies on is judged again at a restore, when a link
// is made, when it is opened, and when a record is made of what is there.
func TestBackingFileChecked(t *testing.T) {
	w := newWorld(t, nil)
	template := filepath.Join(w.host.ImageDir(), "template")
	w.placed(template, "")
	id := w.vps("web1", hypervisor.Off, hypervisor.Disk{
		Target: "vda", SizeBytes: 8 * mib, Chain: []hypervisor.Layer{{Path: template, Format: "qcow2"}},
	})
	w.take(id, vps.TakeRequest{})
	link := w.link(id, vps.FormatRaw).Link
	w.all(w.download(link), 0)

	secret := filepath.Join(t.TempDir(), "secret")
	w.must(os.Rename(template, secret))
	w.must(os.Symlink(secret, template))
	_, _, err := w.daemon.Downloads.OpenDownload(ctx, link)
	w.refuses(vps.CodeVPSChanged, err)
	_, err = w.daemon.Downloads.MakeDownload(ctx, id, vps.DownloadRequest{Format: vps.FormatQcow2}, operator)
	w.refuses(vps.CodeVPSChanged, err)
	_, err = w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
	w.refuses(vps.CodeVPSChanged, err)

	w.close()
	w.loseRecord()
	w.open()
	if _, err := w.daemon.Doctor.Repair(ctx, operator); err != nil {
		t.Fatal(err)
	}
	if s := w.snapshot(id); s.State != vps.SnapshotBroken || !strings.Contains(s.Reason, "directory for templates") {
		t.Errorf("the record that was made is %s: %s", s.State, s.Reason)
	}
}

// TestOverlayCutShort: somebody truncates the overlay. The snapshot is broken and says why,
// and neither restore nor delete ends as an internal error.
func TestOverlayCutShort(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off)
	w.take(id, vps.TakeRequest{})
	w.must(os.Truncate(w.disk(id).Overlay, 0))
	op := w.ended(w.daemon.Snapshots.Delete(ctx, id, operator))
	if op.Status != vps.StatusFailed || op.Error.Code != vps.CodeVPSChanged || !strings.Contains(op.Error.Detail, "truncated") {
		t.Errorf("the deletion is %s: %+v", op.Status, op.Error)
	}
	_, err := w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
	w.refuses(vps.CodeVPSChanged, err)
	w.close()
	w.open()
	if reason := w.awaits(id, vps.SnapshotBroken); !strings.Contains(reason, "truncated") {
		t.Errorf("it is broken because %s", reason)
	}
	if r, err := w.daemon.Doctor.Checks(ctx); err != nil || !slices.ContainsFunc(r.Findings, func(f vps.Finding) bool {
		return strings.Contains(f.Detail, "truncated")
	}) {
		t.Errorf("doctor says %+v, %v", r, err)
	}
}
