package hypervisortest

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"vpssnapd/hypervisor"
)

var images = []test{
	{"CreateOverlay makes what was asked", createOverlay},
	{"CreateOverlay never touches what exists", createOverlayExclusive},
	{"CreateOverlay without a base leaves nothing", createOverlayNoBase},
	{"Inspect reads a header and trusts no other format", inspect},
	{"Unused tells an image that a guest writes to", unused},
	{"Copy copies once", copyFile},
	{"Exchange swaps two files", exchange},
	{"Remove removes only the file that was meant", remove},
	{"Stat tells what an image holds", statGrows},
	{"Files lists what lies in a directory", files},
	{"Space tells the room", space},
	{"A missing file is told", missing},
}

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

func createOverlayExclusive(s *suite) {
	g := s.written("qcow2")
	base := g.disk("vda").Path
	taken := g.path("taken")
	s.must(os.WriteFile(taken, []byte("keep me"), 0o600))
	link, victim := g.path("link"), g.path("victim")
	s.must(os.Symlink(victim, link))
	for _, path := range []string{taken, link, base, filepath.Base(taken)} {
		_, err := s.host().CreateOverlay(s.ctx, hypervisor.Overlay{Path: path, Base: base, BaseFormat: "qcow2", SizeBytes: diskSize})
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

func (s *suite) absent(path string) {
	s.Helper()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		s.Errorf("%s is there (%v)", path, err)
	}
}

func createOverlayNoBase(s *suite) {
	g := s.written("qcow2")
	path := g.path("over")
	_, err := s.host().CreateOverlay(s.ctx, hypervisor.Overlay{Path: path, Base: g.path("none"), BaseFormat: "qcow2", SizeBytes: diskSize})
	s.is(err, fs.ErrNotExist)
	s.absent(path)
}

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
	image := g.path("image-saved")
	_, err = s.host().Copy(s.ctx, g.disk("vda").Path, image)
	s.must(err)
	g.checkImage(image, "qcow2", g.want["vda"])
}

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
	s.must(s.host().Remove(s.ctx, path, inode))
}

func statGrows(s *suite) {
	g := s.written("qcow2")
	g.start()
	l := g.take("snap")["vda"]
	before, err := s.host().Stat(s.ctx, l.overlay)
	s.must(err)
	g.write("vda", 4*mib, 0x42, 2*mib)
	after, err := s.host().Stat(s.ctx, l.overlay)
	s.must(err)
	grown := after.Allocated - before.Allocated
	if grown < 2*mib || grown > 4*mib || after.Inode != before.Inode || after.Modified.Before(before.Modified) {
		s.Errorf("a write of 2 MiB made %+v of %+v", after, before)
	}
}

func space(s *suite) {
	a, err := s.host().Space(s.ctx, s.fixture.ImageDir())
	s.must(err)
	b, err := s.host().Space(s.ctx, s.fixture.ImageDir())
	s.must(err)
	if a.Total <= 0 || a.Free <= 0 || a.Free > a.Total || a.Device != b.Device {
		s.Errorf("got %+v, then %+v", a, b)
	}
}

func missing(s *suite) {
	g := s.written("qcow2")
	here, gone := g.disk("vda").Path, g.path("gone")
	h, ctx := s.host(), s.ctx
	_, err := h.Inspect(ctx, gone, "qcow2")
	s.is(err, fs.ErrNotExist)
	s.is(h.Unused(ctx, gone, "qcow2"), fs.ErrNotExist)
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
	g.check()
}

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
