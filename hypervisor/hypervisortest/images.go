package hypervisortest

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"vpssnapd/hypervisor"
)

var images = []test{
	{"CreateOverlay makes what was asked", createOverlay},
	{"CreateOverlay and Copy give who may use the image the same rights", sameRights},
	{"CreateOverlay never touches what exists", createOverlayExclusive},
	{"CreateOverlay without a base leaves nothing", createOverlayNoBase},
	{"Inspect reads a header and trusts no other format", inspect},
	{"Unused tells an image that a guest writes to", unused},
	{"Export shows a frozen disk while the guest writes", export},
	{"Export shows a linked clone whole", exportClone},
	{"Export and writing exclude each other", exportAlone},
	{"Copy copies once", copyFile},
	{"Exchange swaps two files", exchange},
	{"TryExchange tries and leaves nothing", tryExchange},
	{"Remove removes only the file that was meant", remove},
	{"Stat tells what an image holds", statGrows},
	{"Files lists what lies in a directory", files},
	{"Space tells the room", space},
	{"A missing file is told", missing},
	{"Images are read by any of their names", otherNames},
	{"CutShort tells an overlay that was truncated", cutShort},
	{"A directory that does not answer is told and named", hanging},
}

// otherNames: a definition or a header names an image with detours (FAULTS row 33).
func otherNames(s *suite) {
	g := s.written("qcow2")
	path := g.disk("vda").Path
	dir, name := filepath.Split(path)
	link := filepath.Join(s.TempDir(), "link")
	s.must(os.Symlink(dir, link))
	for _, other := range []string{
		dir + "/" + name, dir + "./" + name, dir + "../" + filepath.Base(filepath.Clean(dir)) + "/" + name,
		filepath.Join(link, name), link + "/../" + filepath.Base(filepath.Clean(dir)) + "/" + name,
	} {
		image, err := s.host().Inspect(s.ctx, other, "qcow2")
		if err != nil || image.VirtualSize != diskSize {
			s.Errorf("%s: %+v, %v", other, image, err)
		}
		mine, err1 := s.host().Stat(s.ctx, path)
		its, err2 := s.host().Stat(s.ctx, other)
		if err1 != nil || err2 != nil || mine.Inode != its.Inode {
			s.Errorf("%s is another file: %v, %v", other, err1, err2)
		}
		s.must(s.host().Unused(s.ctx, other, "qcow2"))
		export, err := s.host().Export(s.ctx, other, "qcow2")
		s.must(err)
		s.must(export.Close())
	}
}

func cutShort(s *suite) {
	g := s.written("raw")
	base, path := g.disk("vda"), g.path("over")
	s.overlay(path, base.Path, base.Format, diskSize)
	check := func(want bool) {
		s.Helper()
		if cut, err := s.host().CutShort(s.ctx, path); err != nil || cut != want {
			s.Errorf("cut short: %v, %v; want %v", cut, err, want)
		}
	}
	check(false)
	s.must(s.host().SwitchToOverlays(s.ctx, g.id, []hypervisor.DiskSwitch{{Target: "vda", Overlay: path}}))
	g.write("vda", 0, 0x31, mib)
	check(false)
	g.start()
	g.write("vda", mib, 0x32, mib)
	check(false)
	g.off()
	s.must(os.Truncate(path, 0))
	check(true)
}

// createOverlay: 0600 and the owner of the base (libvirt 9.0 leaves what it makes
// readable by everybody, CVE-2025-13193), of exactly the size that was asked for, and
// with both formats stated.
func createOverlay(s *suite) {
	g := s.written("qcow2", "raw")
	for _, t := range []string{"vda", "vdb"} {
		base := g.disk(t)
		// Root may give files away, and so sees that the overlay follows its base.
		if os.Getuid() == 0 {
			s.must(os.Chown(base.Path, 4711, 4712))
		}
		path := g.path(t + "-over")
		f := s.overlay(path, base.Path, base.Format, diskSize+mib)
		info, err := os.Stat(path)
		s.must(err)
		owner, ok := info.Sys().(*syscall.Stat_t)
		if info.Mode() != 0o600 || !ok || os.Getuid() == 0 && (owner.Uid != 4711 || owner.Gid != 4712) {
			s.Errorf("the overlay has mode %v, owner %d:%d", info.Mode(), owner.Uid, owner.Gid)
		}
		if stat, err := s.host().Stat(s.ctx, path); err != nil || stat.Inode != f.Inode || f.Inode == 0 {
			s.Errorf("made inode %d, found %d, %v", f.Inode, stat.Inode, err)
		}
		image, err := s.host().Inspect(s.ctx, path, "qcow2")
		s.must(err)
		want := hypervisor.Image{
			Path: path, Format: "qcow2", VirtualSize: diskSize + mib,
			AllocatedSize: image.AllocatedSize, Backing: base.Path, BackingFormat: base.Format,
		}
		if image != want {
			s.Errorf("the header says %+v, want %+v", image, want)
		}
		g.checkImage(path, "qcow2", append(g.want[t], make([]byte, mib)...))
	}
}

// createOverlayExclusive: nothing that is there is opened or followed, as a link could
// lead to any file of the host.
func createOverlayExclusive(s *suite) {
	g := s.written("qcow2")
	base := g.disk("vda").Path
	taken := g.path("taken")
	s.must(os.WriteFile(taken, []byte("keep me"), 0o600))
	link, victim := g.path("link"), g.path("victim")
	s.must(os.Symlink(victim, link))
	for _, path := range []string{taken, link, base, filepath.Base(taken)} {
		_, err := s.host().
			CreateOverlay(s.ctx, hypervisor.Overlay{Path: path, Base: base, BaseFormat: "qcow2", SizeBytes: diskSize})
		if err == nil {
			s.Errorf("an overlay was made at %s", path)
		}
	}
	if data, err := os.ReadFile(taken); err != nil || string(data) != "keep me" {
		s.Errorf("the file in the way holds %q, %v", data, err)
	}
	s.absent(victim)
	g.check()
}

// absent does not follow links.
func (s *suite) absent(path string) {
	s.Helper()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		s.Errorf("%s is there (%v)", path, err)
	}
}

// createOverlayNoBase: a failure leaves nothing behind that a later step would take for
// an overlay.
func createOverlayNoBase(s *suite) {
	g := s.written("qcow2")
	path := g.path("over")
	_, err := s.host().
		CreateOverlay(s.ctx, hypervisor.Overlay{Path: path, Base: g.path("none"), BaseFormat: "qcow2", SizeBytes: diskSize})
	s.is(err, fs.ErrNotExist)
	s.absent(path)
}

// inspect: a raw disk's guest can write a qcow2 header into it, so the stated format is
// all that counts (FAULTS.md, fact 8).
func inspect(s *suite) {
	g := s.written("qcow2", "raw")
	for t, format := range map[string]string{"vda": "qcow2", "vdb": "raw"} {
		path := g.disk(t).Path
		image, err := s.host().Inspect(s.ctx, path, format)
		s.must(err)
		want := hypervisor.Image{Path: path, Format: format, VirtualSize: diskSize, AllocatedSize: image.AllocatedSize}
		if image != want || image.AllocatedSize < mib {
			s.Errorf("the header says %+v", image)
		}
	}
	if image, err := s.host().Inspect(s.ctx, g.disk("vdb").Path, "qcow2"); err == nil {
		s.Errorf("a raw disk reads as qcow2: %+v", image)
	}
}

// unused: QEMU's lock tells, also of a guest that is paused. A base is not written to,
// so it counts as unused.
func unused(s *suite) {
	g := s.written("qcow2")
	path := g.disk("vda").Path
	s.must(s.host().Unused(s.ctx, path, "qcow2"))
	g.enter(hypervisor.Paused)
	s.is(s.host().Unused(s.ctx, path, "qcow2"), hypervisor.ErrBusy)
	l := g.take("snap")["vda"]
	s.must(s.host().Unused(s.ctx, path, "qcow2"))
	s.is(s.host().Unused(s.ctx, l.overlay, "qcow2"), hypervisor.ErrBusy)
	g.off()
	s.must(s.host().Unused(s.ctx, path, "qcow2"))
}

// exported compares an export, whole and in parts, with what it should hold, and
// the extents with that.
func (s *suite) exported(path, format string, want []byte) {
	s.Helper()
	e, err := s.host().Export(s.ctx, path, format)
	s.must(err)
	if e.Size() != int64(len(want)) {
		s.Fatalf("the export has %d bytes, want %d", e.Size(), len(want))
	}
	// At odd offsets too: HTTP ranges are what clients like.
	for _, part := range [][2]int64{{0, e.Size()}, {1, 5}, {64*kib - 3, 3*kib + 1}, {e.Size() - 8*kib - 7, 99}} {
		got := make([]byte, part[1])
		if n, err := e.ReadAt(got, part[0]); n != len(got) || err != nil && !errors.Is(err, io.EOF) {
			s.Fatalf("%d bytes at %d: read %d, %v", part[1], part[0], n, err)
		}
		s.equal("the export", got, want[part[0]:part[0]+part[1]])
	}
	if n, err := e.ReadAt(make([]byte, 10), e.Size()-4); n != 4 || !errors.Is(err, io.EOF) {
		s.Errorf("beyond the end: read %d, %v", n, err)
	}
	// Twice, since whoever cuts a reader off closes it as well.
	s.must(e.Close())
	s.must(e.Close())
	if n, err := e.ReadAt(make([]byte, 10), 0); err == nil {
		s.Errorf("closed, and still read %d bytes", n)
	}
	// Extents may call zeroes data, but never data zeroes.
	end := int64(0)
	s.must(s.host().Extents(s.ctx, path, format, func(offset, length int64) {
		if offset < end || length <= 0 || offset+length > int64(len(want)) {
			s.Fatalf("%d bytes at %d follow %d", length, offset, end)
		}
		s.equal("what is said to be zero", want[end:offset], make([]byte, offset-end))
		end = offset + length
	}))
	s.equal("what is said to be zero", want[end:], make([]byte, int64(len(want))-end))
	if end == 0 {
		s.Error("there is said to be no data")
	}
}

// export: what the guest writes after the take must not show in what is downloaded.
func export(s *suite) {
	g := s.written("qcow2", "raw")
	g.start()
	before := g.content()
	for t, l := range g.take("snap") {
		e, err := s.host().Export(s.ctx, l.base, l.baseFormat)
		s.must(err)
		g.write(t, 64*kib, 0x77, mib)
		got := make([]byte, e.Size())
		if _, err := e.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) {
			s.Fatal(err)
		}
		s.must(e.Close())
		s.equal("the base", got, before[t])
		s.exported(l.base, l.baseFormat, before[t])
	}
}

// exportClone: the golden image below is a part of the disk.
func exportClone(s *suite) {
	golden := s.written("qcow2")
	g := s.guest(DiskSpec{Target: "vda", SizeBytes: diskSize, Backing: golden.disk("vda").Path, BackingFormat: "qcow2"})
	g.want["vda"] = golden.content()["vda"]
	g.write("vda", 2*mib, 0x55, 64*kib)
	g.start()
	before := g.content()["vda"]
	l := g.take("snap")["vda"]
	g.write("vda", 2*mib, 0x66, 64*kib)
	s.exported(l.base, "qcow2", before)
}

// exportAlone: a merge changes what an export reads, so that one of the two must be
// refused, by the host and not by the daemon's memory alone.
func exportAlone(s *suite) {
	g := s.written("qcow2")
	path := g.disk("vda").Path
	g.start()
	_, err := s.host().Export(s.ctx, path, "qcow2")
	s.is(err, hypervisor.ErrBusy)
	s.is(s.host().Extents(s.ctx, path, "qcow2", func(int64, int64) {}), hypervisor.ErrBusy)
	l := g.take("snap")["vda"]
	e, err := s.host().Export(s.ctx, l.base, "qcow2")
	s.must(err)
	g.write("vda", 0, 0x31, mib)
	if err := s.host().StartMerge(s.ctx, g.id, l.merge("vda")); err == nil {
		s.Error("a merge into what is exported was begun")
	}
	// Let go, the base is free at once.
	s.must(e.Close())
	s.must(s.host().StartMerge(s.ctx, g.id, l.merge("vda")))
	_, err = s.host().Export(s.ctx, l.base, "qcow2")
	s.is(err, hypervisor.ErrBusy)
	g.pivot("vda")
	g.off()
	e, err = s.host().Export(s.ctx, l.base, "qcow2")
	s.must(err)
	overlay := g.take("again")["vda"].overlay
	g.write("vda", 0, 0x32, mib)
	merge := hypervisor.OfflineMerge{Overlay: overlay, Base: l.base, BaseFormat: "qcow2"}
	s.is(s.host().MergeOffline(s.ctx, merge, nil), hypervisor.ErrBusy)
	s.must(e.Close())
	s.must(s.host().MergeOffline(s.ctx, merge, nil))
	g.check()
}

// copyFile: a copy is whole, has the mode of the original and never replaces a file.
func copyFile(s *suite) {
	g := s.written("qcow2")
	src, dst := g.path("vars"), g.path("vars-saved")
	s.must(os.WriteFile(src, []byte("boot order"), 0o600))
	s.must(os.Chmod(src, 0o640))
	f, err := s.host().Copy(s.ctx, src, dst)
	s.must(err)
	if stat, err := s.host().Stat(s.ctx, dst); err != nil || stat.Inode != f.Inode {
		s.Errorf("made inode %d, found %d, %v", f.Inode, stat.Inode, err)
	}
	s.must(os.WriteFile(src, []byte("changed"), 0o600))
	_, err = s.host().Copy(s.ctx, src, dst)
	if err == nil {
		s.Errorf("a copy was made over another file")
	}
	if data, err := os.ReadFile(dst); err != nil || string(data) != "boot order" {
		s.Errorf("the copy holds %q, %v", data, err)
	}
	if info, err := os.Stat(dst); err != nil || info.Mode() != 0o640 {
		s.Errorf("the copy has mode %v, %v", info.Mode(), err)
	}
	// Any file, not only small ones.
	image := g.path("image-saved")
	_, err = s.host().Copy(s.ctx, g.disk("vda").Path, image)
	s.must(err)
	g.checkImage(image, "qcow2", g.want["vda"])
}

// exchange: each inode is under the other's name and nothing was copied: a restore tells
// by the inode what it has done.
func exchange(s *suite) {
	g := s.written("qcow2", "qcow2")
	a, b := g.disk("vda").Path, g.disk("vdb").Path
	before := [2]uint64{s.inode(a), s.inode(b)}
	s.must(s.host().Exchange(s.ctx, a, b))
	if after := [2]uint64{s.inode(b), s.inode(a)}; after != before {
		s.Fatalf("inodes %v became %v", before, after)
	}
	g.want["vda"], g.want["vdb"] = g.want["vdb"], g.want["vda"]
	g.check()
}

func (s *suite) inode(path string) uint64 {
	s.Helper()
	f, err := s.host().Stat(s.ctx, path)
	s.must(err)
	return f.Inode
}

// remove: a file that somebody put under the name is never removed, and what is gone
// already is no error, so that a step can run again.
func remove(s *suite) {
	g := s.written("qcow2")
	path := g.path("over")
	f := s.overlay(path, g.disk("vda").Path, "qcow2", diskSize)
	s.is(s.host().Remove(s.ctx, path, f.Inode+1), hypervisor.ErrReplaced)
	if s.inode(path) != f.Inode {
		s.Fatal("the file is another one")
	}
	// The new file is made before the old one goes, lest it get the same inode.
	s.must(os.WriteFile(path+".new", []byte("another's"), 0o600))
	s.must(os.Rename(path+".new", path))
	s.is(s.host().Remove(s.ctx, path, f.Inode), hypervisor.ErrReplaced)
	if data, err := os.ReadFile(path); err != nil || string(data) != "another's" {
		s.Errorf("another's file holds %q, %v", data, err)
	}
	inode := s.inode(path)
	s.must(s.host().Remove(s.ctx, path, inode))
	s.absent(path)
	s.must(s.host().AwaitRoom(s.ctx, filepath.Dir(path)))
	s.must(s.host().Remove(s.ctx, path, inode))
}

// statGrows: what the customer is shown, and what space is planned with, is what the
// file takes on disk.
func statGrows(s *suite) {
	g := s.written("qcow2")
	g.start()
	l := g.take("snap")["vda"]
	before, err := s.host().Stat(s.ctx, l.overlay)
	s.must(err)
	g.write("vda", 4*mib, 0x42, 2*mib)
	after, err := s.host().Stat(s.ctx, l.overlay)
	s.must(err)
	// A cluster of the real host is up to 128 KiB, and a little metadata comes with it.
	grown := after.Allocated - before.Allocated
	if grown < 2*mib || grown > 4*mib || after.Inode != before.Inode || after.Modified.Before(before.Modified) {
		s.Errorf("a write of 2 MiB made %+v of %+v", after, before)
	}
}

// space: file systems are told apart by their device, which is the same at each look.
func space(s *suite) {
	a, err := s.host().Space(s.ctx, s.fixture.ImageDir())
	s.must(err)
	b, err := s.host().Space(s.ctx, s.fixture.ImageDir())
	s.must(err)
	if a.Total <= 0 || a.Free <= 0 || a.Free > a.Total || a.Device != b.Device {
		s.Errorf("got %+v, then %+v", a, b)
	}
}

// missing: each call tells a missing file from other failures, because the daemon calls
// a snapshot broken for it.
func missing(s *suite) {
	g := s.written("qcow2")
	here, gone := g.disk("vda").Path, g.path("gone")
	h, ctx := s.host(), s.ctx
	_, err := h.Inspect(ctx, gone, "qcow2")
	s.is(err, fs.ErrNotExist)
	s.is(h.Unused(ctx, gone, "qcow2"), fs.ErrNotExist)
	_, err = h.Export(ctx, gone, "qcow2")
	s.is(err, fs.ErrNotExist)
	s.is(h.Extents(ctx, gone, "qcow2", func(int64, int64) {}), fs.ErrNotExist)
	_, err = h.Copy(ctx, gone, g.path("copy"))
	s.is(err, fs.ErrNotExist)
	s.absent(g.path("copy"))
	s.is(h.MergeOffline(ctx, hypervisor.OfflineMerge{Overlay: gone, Base: here, BaseFormat: "qcow2"}, nil), fs.ErrNotExist)
	s.is(h.Rebase(ctx, gone, here, "qcow2"), fs.ErrNotExist)
	s.is(h.Exchange(ctx, here, gone), fs.ErrNotExist)
	_, err = h.Stat(ctx, gone)
	s.is(err, fs.ErrNotExist)
	_, err = h.Space(ctx, gone)
	s.is(err, fs.ErrNotExist)
	s.must(h.Remove(ctx, gone, 1))
	s.is(h.AwaitRoom(ctx, gone), fs.ErrNotExist)
	g.check()
}

// files: orphans are looked for among regular files only.
func files(s *suite) {
	g := s.written("qcow2")
	path := g.path("listed")
	s.must(os.WriteFile(path, nil, 0o600))
	s.must(os.Chmod(path, 0o640))
	s.must(os.Mkdir(g.path("directory"), 0o700))
	s.must(os.Symlink(path, g.path("symlink")))
	stat, err := s.host().Stat(s.ctx, path)
	s.must(err)
	if stat.Mode != 0o640 || int(stat.UID) != os.Getuid() {
		s.Errorf("the file has mode %v and owner %d", stat.Mode, stat.UID)
	}
	list, err := s.host().Files(s.ctx, filepath.Dir(path))
	s.must(err)
	found := false
	for _, f := range list {
		switch filepath.Join(filepath.Dir(path), f.Name) {
		case path:
			found = f.Inode == stat.Inode
		case g.path("directory"), g.path("symlink"):
			s.Errorf("%s is listed as a regular file", f.Name)
		}
	}
	if !found {
		s.Errorf("%s with inode %d is not in %v", path, stat.Inode, list)
	}
	_, err = s.host().Files(s.ctx, g.path("none"))
	s.is(err, fs.ErrNotExist)
}

// hanging is FAULTS.md row 46: what a hung mount holds is neither missing nor waited for,
// and nothing happens to it, nor later from a call that was given up.
func hanging(s *suite) {
	g := s.written("qcow2")
	dir := g.path("hung")
	s.must(os.Mkdir(dir, 0o755))
	base, away, made := g.disk("vda").Path, filepath.Join(dir, "away"), g.path("made")
	overlay := s.overlay(g.path("near"), base, "qcow2", diskSize)
	inDir := s.overlay(away, base, "qcow2", diskSize)
	onDir := s.overlay(g.path("upper"), away, "qcow2", diskSize)
	answer := s.fixture.HangDirectory(s, dir)
	h, ctx := s.host(), s.ctx
	for name, call := range map[string]func() error{
		"Stat":      func() error { _, err := h.Stat(ctx, away); return err },
		"Files":     func() error { _, err := h.Files(ctx, dir); return err },
		"Space":     func() error { _, err := h.Space(ctx, dir); return err },
		"AwaitRoom": func() error { return h.AwaitRoom(ctx, dir) },
		"Inspect":   func() error { _, err := h.Inspect(ctx, away, "qcow2"); return err },
		"Unused":    func() error { return h.Unused(ctx, away, "qcow2") },
		"Export":    func() error { _, err := h.Export(ctx, away, "qcow2"); return err },
		"Extents":   func() error { return h.Extents(ctx, away, "qcow2", func(int64, int64) {}) },
		"Copy from": func() error { _, err := h.Copy(ctx, away, made); return err },
		"Copy to":   func() error { _, err := h.Copy(ctx, base, filepath.Join(dir, "made")); return err },
		"Exchange":  func() error { return h.Exchange(ctx, away, filepath.Join(dir, "other")) },
		"Remove":    func() error { return h.Remove(ctx, away, inDir.Inode) },
		"CreateOverlay in it": func() error {
			_, err := h.CreateOverlay(ctx, hypervisor.Overlay{
				Path: filepath.Join(dir, "made"), Base: base, BaseFormat: "qcow2", SizeBytes: diskSize})
			return err
		},
		"CreateOverlay on it": func() error {
			_, err := h.CreateOverlay(ctx, hypervisor.Overlay{
				Path: made, Base: away, BaseFormat: "qcow2", SizeBytes: diskSize})
			return err
		},
		"Rebase of it":   func() error { return h.Rebase(ctx, away, base, "qcow2") },
		"Rebase onto it": func() error { return h.Rebase(ctx, g.path("near"), away, "qcow2") },
		"MergeOffline of it": func() error {
			return h.MergeOffline(ctx, hypervisor.OfflineMerge{Overlay: away, Base: base, BaseFormat: "qcow2"}, nil)
		},
		"MergeOffline into it": func() error {
			m := hypervisor.OfflineMerge{Overlay: g.path("upper"), Base: away, BaseFormat: "qcow2"}
			return h.MergeOffline(ctx, m, nil)
		},
		"SameAsBase": func() error {
			m := hypervisor.OfflineMerge{Overlay: g.path("upper"), Base: away, BaseFormat: "qcow2"}
			_, err := h.SameAsBase(ctx, m)
			return err
		},
	} {
		err := call()
		var storage *hypervisor.StorageError
		if !errors.Is(err, hypervisor.ErrUnavailable) || !errors.As(err, &storage) || storage.Dir != dir ||
			errors.Is(err, fs.ErrNotExist) {
			s.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := h.Stat(ctx, base); err != nil {
		s.Errorf("another directory: %v", err)
	}
	answer()
	s.poll("the directory to answer", func() bool { _, err := h.Stat(ctx, away); return err == nil })
	for path, was := range map[string]hypervisor.File{away: inDir, g.path("near"): overlay, g.path("upper"): onDir} {
		if now, err := h.Stat(ctx, path); err != nil || now.Inode != was.Inode || !now.Modified.Equal(was.Modified) {
			s.Errorf("%s was %+v and is %+v, %v", path, was, now, err)
		}
	}
	s.absent(made)
	_, err := h.Copy(ctx, away, away+"2")
	s.must(err)
	s.must(h.Exchange(ctx, away, away+"2")) // it can be changed again, too
	g.check()
}
