package qemuimg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"vpssnapd/hypervisor"
)

// preallocateUpTo is the largest overlay whose mapping tables are laid out when
// it is made. With them in place a guest's first writes are some five times
// faster, as none has to allocate a cluster. QEMU 7.2 on ext4, cluster_size 128k
// with extended_l2:
//
//	virtual size     time     allocated
//	       1 GiB   0.01 s       0.5 MiB
//	     100 GiB   0.16 s        14 MiB
//	       1 TiB   2.3  s       145 MiB
//	       4 TiB   8.9  s       577 MiB
//	      16 TiB   fails: the file itself would be larger than ext4 allows
//
// Without preallocation every size takes 0.01 s and 0.4 MiB. Up to 2 TiB the
// cost is a take's wait of under 5 s before anything is frozen, and 290 MiB;
// above, it is not worth it, and soon not possible.
const preallocateUpTo = 2 << 40

// CreateOverlay makes a new qcow2 overlay. The file is first made empty,
// exclusively and with its final mode and owner, and then filled by qemu-img,
// which keeps an existing file's inode: no foreign file can be overwritten, and
// at no moment can others read it.
func (i *Images) CreateOverlay(ctx context.Context, o hypervisor.Overlay) (hypervisor.File, error) {
	what := fmt.Sprintf("cannot make overlay %q", o.Path)
	if err := checkOverlay(o); err != nil {
		return hypervisor.File{}, fmt.Errorf("%s: %w", what, err)
	}
	base, err := os.Stat(o.Base)
	if err != nil {
		return hypervisor.File{}, fileError(what, err)
	}
	file, err := createLike(o.Path, base)
	if err != nil {
		return hypervisor.File{}, fileError(what, err)
	}
	defer file.Close()
	made, err := i.fillOverlay(ctx, file, o)
	if err != nil {
		return hypervisor.File{}, errors.Join(fmt.Errorf("%s: %w", what, err), discard(file))
	}
	return made, nil
}

func checkOverlay(o hypervisor.Overlay) error {
	if err := checkPath(o.Path); err != nil {
		return err
	}
	if err := checkNames(o.Base, o.BaseFormat); err != nil {
		return err
	}
	if o.SizeBytes <= 0 || o.SizeBytes%512 != 0 {
		return fmt.Errorf("%w: a size of %d bytes", hypervisor.ErrUnsupported, o.SizeBytes)
	}
	return nil
}

// fillOverlay writes the qcow2 structures into the empty file, and verifies and syncs them.
func (i *Images) fillOverlay(ctx context.Context, file *os.File, o hypervisor.Overlay) (hypervisor.File, error) {
	options := "cluster_size=128k,extended_l2=on,lazy_refcounts=off"
	if o.SizeBytes <= preallocateUpTo {
		options += ",preallocation=metadata"
	}
	// -u: the base is not opened, so nothing is read from its header either.
	err := i.run(ctx, io.Discard, "create", "-q", "-u", "-f", "qcow2", "-b", o.Base, "-F", o.BaseFormat,
		"-o", options, o.Path, strconv.FormatInt(o.SizeBytes, 10))
	if err != nil {
		return hypervisor.File{}, err
	}
	if err := i.verifyOverlay(ctx, file, o); err != nil {
		return hypervisor.File{}, err
	}
	if err := syncFile(file); err != nil {
		return hypervisor.File{}, err
	}
	if err := syncDirectoryOf(o.Path); err != nil {
		return hypervisor.File{}, err
	}
	return i.Stat(ctx, o.Path)
}

// verifyOverlay compares what was made with what was asked. libvirt checks
// neither size nor backing of an overlay it is given: a smaller one shrinks a
// running guest's disk.
func (i *Images) verifyOverlay(ctx context.Context, file *os.File, o hypervisor.Overlay) error {
	opened, err := file.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(o.Path)
	if err != nil {
		return err
	}
	if !os.SameFile(opened, named) || named.Mode() != 0o600 {
		return fmt.Errorf("%w: %q", hypervisor.ErrReplaced, o.Path)
	}
	image, err := i.Inspect(ctx, o.Path, "qcow2")
	if err != nil {
		return err
	}
	if image.VirtualSize != o.SizeBytes || image.Backing != o.Base || image.BackingFormat != o.BaseFormat {
		return fmt.Errorf("qemu-img made %d bytes over %q (%s) instead of %d over %q (%s)",
			image.VirtualSize, image.Backing, image.BackingFormat, o.SizeBytes, o.Base, o.BaseFormat)
	}
	return nil
}

// Rebase makes overlay's header name a new backing file, without copying.
func (i *Images) Rebase(ctx context.Context, overlay, backing, backingFormat string) error {
	what := fmt.Sprintf("cannot make %q name %q as its backing file", overlay, backing)
	if err := errors.Join(checkPath(overlay), checkNames(backing, backingFormat)); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	for _, path := range []string{overlay, backing} {
		if _, err := os.Stat(path); err != nil {
			return fileError(what, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, shortTime)
	defer cancel()
	// -u with no cache option: the header alone changes, and is synced below.
	err := i.run(ctx, io.Discard, "rebase", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", backingFormat, overlay)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	image, err := i.Inspect(ctx, overlay, "qcow2")
	if err != nil {
		return err
	}
	if image.Backing != backing || image.BackingFormat != backingFormat {
		return fmt.Errorf("%s: it names %q (%s)", what, image.Backing, image.BackingFormat)
	}
	return syncPath(overlay)
}
