package qemuimg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/rights"
)

// The overlay's mapping tables are laid out when it is made: a guest's first writes
// are then some five times faster, as none has to allocate a cluster. Tables cost
// time and space, and QEMU keeps 32 MiB of them in memory, beyond which each
// scattered write reads and writes a table. So they are never larger than mostTables:
// as the disk grows, so do the clusters. QEMU 7.2 on ext4, 16,384 scattered 4 KiB
// writes on a disk of 1 TiB:
//
//	clusters                  made in   allocated   writes   growth
//	64 KiB (libvirt's)        0.04 s      0 MiB      31 s    1,152 MiB
//	128 KiB, extended, laid   7.5  s    144 MiB      39 s       64 MiB
//	512 KiB, extended, laid   1.2  s     37 MiB     7.8 s      256 MiB
//	1 MiB,   extended, laid   0.8  s     21 MiB     5.4 s      512 MiB
//
// (On two busy processors; what counts is the one beside the other.) A cluster has
// 32 subclusters, and a write copies the rest of its own from the base: 4 KiB of
// 128 KiB, up to the 64 KiB of 2 MiB that libvirt's overlays copy at any size.
const (
	smallestCluster = 128 << 10
	largestCluster  = 2 << 20 // that qcow2 has
	tableEntry      = 16      // bytes for each cluster
	mostTables      = 16 << 20
)

// preallocateUpTo is the largest disk whose tables are within mostTables: 2 TiB. Above
// it nothing is laid out, and above 16 TiB nothing could be: the file itself would be
// larger than ext4 allows.
const preallocateUpTo = mostTables / tableEntry * largestCluster

// profile is how an overlay of that size is laid out.
func profile(size int64) string {
	cluster := int64(smallestCluster)
	for cluster < largestCluster && size/cluster > mostTables/tableEntry {
		cluster *= 2
	}
	options := fmt.Sprintf("cluster_size=%d,extended_l2=on,lazy_refcounts=off", cluster)
	if size <= preallocateUpTo {
		options += ",preallocation=metadata"
	}
	return options
}

// plainProfile is for a QEMU before 5.2, which knows no subclusters, and lays no
// tables out over a base.
const plainProfile = "cluster_size=64k,lazy_refcounts=off"

// CreateOverlay makes a new qcow2 overlay. The file is first made empty,
// exclusively and with its final rights, and then filled by qemu-img,
// which keeps an existing file's inode: no foreign file can be overwritten, and
// at no moment can others read it.
func (i *Images) CreateOverlay(ctx context.Context, o hypervisor.Overlay) (hypervisor.File, error) {
	what := fmt.Sprintf("cannot make overlay %q", o.Path)
	if err := checkOverlay(o); err != nil {
		return hypervisor.File{}, fmt.Errorf("%s: %w", what, err)
	}
	made, err := change(ctx, &i.storage, []string{o.Path, o.Base}, func(ctx context.Context) (hypervisor.File, error) {
		return i.createOverlay(ctx, o)
	})
	if err != nil {
		return hypervisor.File{}, fileError(what, err)
	}
	return made, nil
}

func (i *Images) createOverlay(ctx context.Context, o hypervisor.Overlay) (hypervisor.File, error) {
	base, err := rights.Of(o.Base)
	if err != nil {
		return hypervisor.File{}, err
	}
	file, err := createWith(o.Path, base)
	if err != nil {
		return hypervisor.File{}, err
	}
	defer file.Close()
	made, err := i.fillOverlay(ctx, file, base, o)
	if err != nil {
		return hypervisor.File{}, errors.Join(err, discard(file))
	}
	return made, nil
}

// checkOverlay refuses an overlay that qemu-img could take for something else, or round to
// another size.
func checkOverlay(o hypervisor.Overlay) error {
	if err := checkPlain(o.Path); err != nil {
		return err
	}
	if err := errors.Join(checkPlain(o.Base), checkFormat(o.BaseFormat)); err != nil {
		return err
	}
	if o.SizeBytes <= 0 || o.SizeBytes%512 != 0 {
		return fmt.Errorf("%w: a size of %d bytes", hypervisor.ErrUnsupported, o.SizeBytes)
	}
	return nil
}

// fillOverlay writes the qcow2 structures into the empty file, and verifies and syncs them.
func (i *Images) fillOverlay(
	ctx context.Context, file *os.File, base rights.Rights, o hypervisor.Overlay,
) (hypervisor.File, error) {
	create := func(profile string) error {
		// -u: the base is not opened, so nothing is read from its header either.
		return i.run(ctx, io.Discard, "create", "-q", "-u", "-f", "qcow2", "-b", o.Base, "-F", o.BaseFormat,
			"-o", profile, o.Path, strconv.FormatInt(o.SizeBytes, 10))
	}
	err := create(profile(o.SizeBytes))
	if err != nil && strings.Contains(err.Error(), "extended_l2") {
		err = create(plainProfile)
	}
	if err != nil {
		return hypervisor.File{}, err
	}
	if err := i.verifyOverlay(ctx, file, base, o); err != nil {
		return hypervisor.File{}, err
	}
	if err := syncFile(file); err != nil {
		return hypervisor.File{}, err
	}
	if err := syncEntry(o.Path); err != nil {
		return hypervisor.File{}, err
	}
	return i.Stat(ctx, o.Path)
}

// verifyOverlay compares what was made with what was asked. libvirt checks
// neither size nor backing of an overlay it is given: a smaller one shrinks a
// running guest's disk.
func (i *Images) verifyOverlay(ctx context.Context, file *os.File, base rights.Rights, o hypervisor.Overlay) error {
	opened, err := file.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(o.Path)
	if err != nil {
		return err
	}
	have, err := rights.Of(o.Path)
	if err != nil {
		return err
	}
	if !os.SameFile(opened, named) || named.Mode() != base.Mode || !have.Same(base) {
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
	if err := errors.Join(checkPlain(overlay), checkPlain(backing), checkFormat(backingFormat)); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	for _, path := range []string{overlay, backing} {
		if _, err := i.Stat(ctx, path); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	// -u with no cache option: the header alone changes, and is synced below.
	err := i.short(ctx, []string{overlay, backing}, io.Discard,
		"rebase", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", backingFormat, overlay)
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
	return i.act(ctx, what, []string{overlay}, func() error { return syncFileAndEntry(overlay) })
}
