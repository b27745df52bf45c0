package fake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
	"vpssnapd/hypervisor/rights"
)

// Inspect reads an image's own header.
func (h *Host) Inspect(ctx context.Context, path, format string) (hypervisor.Image, error) {
	var l layer
	err := h.image(ctx, "Inspect", path, func() (err error) {
		l, err = readLayer(path, format)
		return err
	})
	if err != nil {
		return hypervisor.Image{}, fmt.Errorf("cannot inspect %s: %w", path, err)
	}
	return hypervisor.Image{
		Path:          path,
		Format:        l.header.Format,
		VirtualSize:   l.header.Size,
		AllocatedSize: l.allocated(),
		Backing:       l.header.Backing,
		BackingFormat: l.header.BackingFormat,
	}, nil
}

// Unused makes sure that nobody has an image open to write.
func (h *Host) Unused(ctx context.Context, path, format string) error {
	err := h.image(ctx, "Unused", path, func() error {
		if _, err := readLayer(path, format); err != nil {
			return err
		}
		all, err := h.loadAll()
		if err != nil {
			return err
		}
		for _, d := range all {
			// By what QEMU has open, not by what libvirt believes it has.
			if d.hasOpen(path) && (d.writes(path) || !d.reads(path)) {
				return fmt.Errorf("%w: %s writes to it", hypervisor.ErrBusy, d.Name)
			}
		}
		held, err := hold(unix.LOCK_SH, path)
		letGo(held)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot find %s unused: %w", path, err)
	}
	return nil
}

// image runs one Images call between its two points.
func (h *Host) image(ctx context.Context, call, path string, effect func() error) error {
	if err := h.fate(ctx, call+".before", path); err != nil {
		return err
	}
	if err := h.locked(effect); err != nil {
		return err
	}
	return h.fate(ctx, call+".after", path)
}

// CreateOverlay makes a new qcow2 overlay.
func (h *Host) CreateOverlay(ctx context.Context, o hypervisor.Overlay) (hypervisor.File, error) {
	file, err := h.createOverlay(ctx, o)
	if err != nil {
		return hypervisor.File{}, fmt.Errorf("cannot create overlay %s: %w", o.Path, err)
	}
	return file, nil
}

// Each stage may be the last: a kill leaves no file, an empty one, or a whole overlay.
func (h *Host) createOverlay(ctx context.Context, o hypervisor.Overlay) (hypervisor.File, error) {
	if err := errors.Join(h.fate(ctx, "CreateOverlay.before", o.Path), h.answers(o.Base)); err != nil {
		return hypervisor.File{}, err
	}
	if !filepath.IsAbs(o.Path) || !filepath.IsAbs(o.Base) || o.SizeBytes <= 0 {
		return hypervisor.File{}, errors.New("paths must be absolute and the size positive")
	}
	// The real qemu-img opens the base too, and refuses one that is not of its format.
	if _, err := headerChain(o.Base, o.BaseFormat); err != nil {
		return hypervisor.File{}, err
	}
	// Exclusive, with the base's rights, as the contract demands.
	if err := createLike(o.Path, o.Base); err != nil {
		return hypervisor.File{}, err
	}
	if err := h.fate(ctx, "CreateOverlay.half", o.Path); err != nil {
		return hypervisor.File{}, err
	}
	header := record{Format: "qcow2", Size: o.SizeBytes, Backing: o.Base, BackingFormat: o.BaseFormat}
	if err := appendTo(o.Path, header); err != nil {
		return hypervisor.File{}, err
	}
	file, err := statFile(o.Path)
	if err != nil {
		return hypervisor.File{}, err
	}
	return file, h.fate(ctx, "CreateOverlay.after", o.Path)
}

// createLike makes an empty file with the rights of model.
func createLike(path, model string) error {
	r, err := rights.Of(model)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(r.Give(f), f.Close())
}

// Copy makes dst an exact copy of src.
func (h *Host) Copy(ctx context.Context, src, dst string) (hypervisor.File, error) {
	file, err := h.copy(ctx, src, dst)
	if err != nil {
		return hypervisor.File{}, fmt.Errorf("cannot copy %s to %s: %w", src, dst, err)
	}
	return file, nil
}

func (h *Host) copy(ctx context.Context, src, dst string) (hypervisor.File, error) {
	if err := errors.Join(h.fate(ctx, "Copy.before", dst), h.answers(src)); err != nil {
		return hypervisor.File{}, err
	}
	data, err := os.ReadFile(src)
	if err != nil {
		return hypervisor.File{}, err
	}
	if err := createLike(dst, src); err != nil {
		return hypervisor.File{}, err
	}
	// Half of it, for Copy.half: a copy that was cut short has the right name and the
	// wrong contents.
	if err := os.WriteFile(dst, data[:len(data)/2], 0o600); err != nil {
		return hypervisor.File{}, err
	}
	if err := h.fate(ctx, "Copy.half", dst); err != nil {
		return hypervisor.File{}, err
	}
	if err := os.WriteFile(dst, data, 0o600); err != nil {
		return hypervisor.File{}, err
	}
	file, err := statFile(dst)
	if err != nil {
		return hypervisor.File{}, err
	}
	return file, h.fate(ctx, "Copy.after", dst)
}

// MergeOffline copies what the overlay holds into its base.
func (h *Host) MergeOffline(ctx context.Context, m hypervisor.OfflineMerge, progress func(done, total int64)) error {
	if err := h.mergeOffline(ctx, m, progress); err != nil {
		return fmt.Errorf("cannot merge %s into %s: %w", m.Overlay, m.Base, err)
	}
	return nil
}

func (h *Host) mergeOffline(ctx context.Context, m hypervisor.OfflineMerge, progress func(done, total int64)) error {
	if err := errors.Join(h.fate(ctx, "MergeOffline.before", m.Overlay), h.answers(m.Base)); err != nil {
		return err
	}
	top := hypervisor.Layer{Path: m.Overlay, Format: "qcow2"}
	base := hypervisor.Layer{Path: m.Base, Format: m.BaseFormat}
	l, err := readLayer(top.Path, top.Format)
	if err != nil {
		return err
	}
	if _, err := readLayer(base.Path, base.Format); err != nil {
		return err
	}
	// A merge into anything else would be silent damage.
	if !pathname.Same(l.header.Backing, base.Path) || l.header.BackingFormat != base.Format {
		return fmt.Errorf("the overlay's header names %s as its base", l.header.Backing)
	}
	var held []*os.File
	defer func() { letGo(held) }()
	// The host's lock is given back before the copy: guests run while qemu-img works.
	// The images stay locked.
	err = h.locked(func() (err error) {
		if err := h.unused("", top.Path, base.Path); err != nil {
			return err
		}
		held, err = hold(unix.LOCK_EX, top.Path, base.Path)
		return err
	})
	if err != nil {
		return err
	}
	total := l.allocated()
	// In two halves, with a point between them where a test may kill the daemon.
	for part := 1; part <= 2; part++ {
		if err := mergeInto(top, base, part, 2); err != nil {
			return err
		}
		if progress != nil {
			progress(total*int64(part)/2, total)
		}
		if part == 1 {
			if err := h.fate(ctx, "MergeOffline.half", m.Overlay); err != nil {
				return err
			}
		}
	}
	return h.fate(ctx, "MergeOffline.after", m.Overlay)
}

// SameAsBase compares what a guest would read. By contents, whatever clusters are
// allocated.
func (h *Host) SameAsBase(ctx context.Context, m hypervisor.OfflineMerge) (same bool, err error) {
	err = h.image(ctx, "SameAsBase", m.Overlay, func() error {
		if err := h.answers(m.Base); err != nil {
			return err
		}
		chain, held, err := h.openChain(m.Overlay, "qcow2")
		if err != nil {
			return err
		}
		defer letGo(held)
		if len(chain) < 2 || chain[1] != (hypervisor.Layer{Path: m.Base, Format: m.BaseFormat}) {
			return fmt.Errorf("%w: the overlay's header names another base", hypervisor.ErrReplaced)
		}
		same, err = topSameAsRest(chain)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("cannot compare %s with %s: %w", m.Overlay, m.Base, err)
	}
	return same, nil
}

// topSameAsRest reports whether what lies below the top of a chain reads as all of it.
// Only where the top holds something can they differ.
func topSameAsRest(chain []hypervisor.Layer) (bool, error) {
	upper, err := readLayer(chain[0].Path, chain[0].Format)
	if err != nil {
		return false, err
	}
	lower, err := readLayer(chain[1].Path, chain[1].Format)
	// A shorter base cannot read the same.
	if err != nil || lower.header.Size < upper.header.Size {
		return false, err
	}
	for _, w := range upper.writes {
		a, err1 := readChain(chain, w.Offset, w.Length)
		b, err2 := readChain(chain[1:], w.Offset, w.Length)
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(a, b) {
			return false, err
		}
	}
	return true, nil
}

// hold locks image files against everybody who also holds; ErrBusy when someone does.
func hold(how int, paths ...string) ([]*os.File, error) {
	var held []*os.File
	for _, p := range paths {
		f, err := os.Open(p)
		if err == nil {
			held = append(held, f)
			// QEMU does not wait for an image lock either.
			err = flock(f, how|unix.LOCK_NB)
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w: another process has %s open", hypervisor.ErrBusy, p)
		}
		if err != nil {
			letGo(held)
			return nil, err
		}
	}
	return held, nil
}

// letGo closes, and thereby unlocks, what hold returned.
func letGo(held []*os.File) {
	for _, f := range held {
		_ = f.Close()
	}
}

// Rebase makes the overlay's header name a new backing file.
func (h *Host) Rebase(ctx context.Context, overlay, backing, backingFormat string) error {
	err := h.image(ctx, "Rebase", overlay, func() error {
		if err := h.answers(backing); err != nil {
			return err
		}
		if _, err := readLayer(backing, backingFormat); err != nil {
			return err
		}
		// qemu-img needs the lock of the overlay for it.
		if err := h.unused("", overlay); err != nil {
			return err
		}
		return rebase(overlay, "qcow2", backing, backingFormat)
	})
	if err != nil {
		return fmt.Errorf("cannot rebase %s onto %s: %w", overlay, backing, err)
	}
	return nil
}

func rebase(overlay, format, backing, backingFormat string) error {
	l, err := readLayer(overlay, format)
	if err != nil {
		return err
	}
	l.header.Backing, l.header.BackingFormat = backing, backingFormat
	// The newest header counts; the file keeps its inode.
	return appendTo(overlay, l.header)
}

// Exchange swaps two files of one directory.
func (h *Host) Exchange(ctx context.Context, a, b string) error {
	err := h.image(ctx, "Exchange", a, func() error {
		if filepath.Dir(a) != filepath.Dir(b) {
			return errors.New("they are not in one directory")
		}
		// The real thing: a test of a file system without it injects the error.
		return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	})
	if err != nil {
		return fmt.Errorf("cannot exchange %s and %s: %w", a, b, err)
	}
	return nil
}

// TryExchange finds a file system that can.
func (h *Host) TryExchange(ctx context.Context, path string) error {
	err := h.image(ctx, "TryExchange", path, func() error {
		_, err := inodeOf(path)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot exchange %s: %w", path, err)
	}
	return nil
}

// Remove unlinks path if it is still the file with that inode.
func (h *Host) Remove(ctx context.Context, path string, inode uint64) error {
	err := h.image(ctx, "Remove", path, func() error {
		found, err := inodeOf(path)
		switch {
		// Gone already is as wanted: a step may run twice.
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case found != inode:
			return hypervisor.ErrReplaced
		}
		return os.Remove(path)
	})
	if err != nil {
		return fmt.Errorf("cannot remove %s: %w", path, err)
	}
	return nil
}

// AwaitRoom has nothing to wait for.
func (h *Host) AwaitRoom(ctx context.Context, dir string) error {
	return h.image(ctx, "AwaitRoom", dir, func() error {
		_, err := inodeOf(dir)
		return err
	})
}

// Stat reads a file's identity and allocation.
func (h *Host) Stat(ctx context.Context, path string) (file hypervisor.File, err error) {
	err = h.image(ctx, "Stat", path, func() error {
		file, err = statFile(path)
		return err
	})
	if err != nil {
		return hypervisor.File{}, fmt.Errorf("cannot stat %s: %w", path, err)
	}
	return file, nil
}

// statFile tells of an image what it would hold were it real.
func statFile(path string) (hypervisor.File, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return hypervisor.File{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	file := hypervisor.File{
		Inode:     st.Ino,
		Size:      st.Size,
		Allocated: st.Blocks * 512,
		Modified:  time.Unix(st.Mtim.Unix()),
		Changed:   time.Unix(st.Ctim.Unix()),
		Mode:      fs.FileMode(st.Mode).Perm(),
		UID:       st.Uid,
		GID:       st.Gid,
	}
	r, err := rights.Of(path)
	if err != nil {
		return hypervisor.File{}, err
	}
	file.ACL = r.ACL
	for _, format := range []string{"qcow2", "raw"} {
		// The file is small whatever the disk holds, so sizes are told as of the image
		// that it stands for.
		if l, err := readLayer(path, format); err == nil {
			file.Allocated = l.allocated() + cluster
			file.Size = file.Allocated
			if format == "raw" {
				file.Size = l.header.Size
			}
		}
	}
	return file, nil
}

// CutShort reports whether the header of an image is gone, or was never there.
func (h *Host) CutShort(ctx context.Context, path string) (cut bool, err error) {
	err = h.image(ctx, "CutShort", path, func() error {
		if _, err := os.Stat(path); err != nil {
			return err
		}
		_, err := readLayer(path, "qcow2")
		cut = err != nil
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("cannot read the length of %s: %w", path, err)
	}
	return cut, nil
}

// Files lists the regular files of a directory.
func (h *Host) Files(ctx context.Context, dir string) (files []hypervisor.NamedFile, err error) {
	err = h.image(ctx, "Files", dir, func() error {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !e.Type().IsRegular() {
				continue
			}
			inode, err := inodeOf(filepath.Join(dir, e.Name()))
			if err != nil {
				return err
			}
			files = append(files, hypervisor.NamedFile{Name: e.Name(), Inode: inode})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list %s: %w", dir, err)
	}
	return files, nil
}

// Space reads the file system that holds dir.
func (h *Host) Space(ctx context.Context, dir string) (space hypervisor.Space, err error) {
	err = h.image(ctx, "Space", dir, func() error {
		var fsys unix.Statfs_t
		if err := unix.Statfs(dir, &fsys); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return err
		}
		space = hypervisor.Space{
			Total:  int64(fsys.Blocks) * fsys.Bsize,
			Free:   int64(fsys.Bavail) * fsys.Bsize,
			Device: st.Dev,
		}
		return nil
	})
	if err != nil {
		return hypervisor.Space{}, fmt.Errorf("cannot read the space of %s: %w", dir, err)
	}
	// After the call: an error of the path comes first.
	h.faultMu.Lock()
	defer h.faultMu.Unlock()
	if h.faults.free >= 0 {
		space.Free = h.faults.free
	}
	return space, nil
}
