package vouch

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"time"

	"vpssnapd/daemon/adoption"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// timeFormat has milliseconds: a write just after the take differs from it by less than a
// second.
const timeFormat = "2006-01-02T15:04:05.000Z"

// examine compares the files of a snapshot with its record. An error means that this cannot
// be told now.
func (v *Vouchers) examine(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) (*findings, error) {
	f := &findings{snap: snap}
	f.snap.Disks, f.snap.DeltaBytes = slices.Clone(snap.Disks), 0
	if snap.State == vps.SnapshotBroken {
		f.differ("the snapshot is broken: %s", snap.Reason)
		// Half of the disks are of another time; no word of anybody makes them one.
		if strings.HasPrefix(snap.Reason, adoption.HalfRestored) {
			f.refuse("%s", snap.Reason)
		}
	}
	for n := range f.snap.Disks {
		disk := &f.snap.Disks[n]
		for _, look := range []func(context.Context, *findings, hypervisor.Domain, *vps.SnapshotDisk) error{
			v.examineBase, v.examineOverlay, v.examineUndo,
		} {
			if err := look(ctx, f, dom, disk); err != nil || f.against != "" {
				return f, err
			}
		}
		if was := snap.Disks[n]; was.Undo != "" && was.OverlayInode == disk.UndoInode && was.UndoInode == disk.OverlayInode {
			f.refuse("disk %s: its overlay and the disk from before the last restore have changed places", disk.Target)
		}
	}
	// By him who calls snapshots broken: what he finds nothing wrong with stays available.
	reason, err := v.integrity.WhatIsBroken(ctx, dom, f.snap)
	if reason != "" {
		f.refuse("%s", reason)
	}
	return f, err
}

// stat looks for a file; ok is false when it is missing, which is then held against the
// snapshot.
func (v *Vouchers) stat(
	ctx context.Context, f *findings, disk *vps.SnapshotDisk, what, path string,
) (file hypervisor.File, ok bool, err error) {
	file, err = v.host.Stat(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		f.refuse("disk %s: its %s is missing: %s", disk.Target, what, path)
		return file, false, nil
	}
	return file, err == nil, err
}

// inspect reads a header. One that cannot be read is held against the snapshot, unless the
// storage does not answer.
func (v *Vouchers) inspect(
	ctx context.Context, f *findings, disk *vps.SnapshotDisk, what, path, format string,
) (img hypervisor.Image, ok bool, err error) {
	img, err = v.host.Inspect(ctx, path, format)
	if _, silent := errors.AsType[*hypervisor.StorageError](err); silent || ctx.Err() != nil {
		return img, false, err
	}
	switch {
	case err != nil:
		f.refuse("disk %s: its %s cannot be read as %s: %v", disk.Target, what, format, err)
	case img.Corrupt:
		f.refuse("disk %s: its %s is marked corrupt (qemu-img check)", disk.Target, what)
	}
	return img, f.against == "", nil
}

// examineBase looks at the file that is the snapshot.
func (v *Vouchers) examineBase(
	ctx context.Context, f *findings, dom hypervisor.Domain, disk *vps.SnapshotDisk,
) error {
	file, ok, err := v.stat(ctx, f, disk, "base", disk.Base)
	if !ok {
		return err
	}
	img, ok, err := v.inspect(ctx, f, disk, "base", disk.Base, disk.BaseFormat)
	if !ok {
		return err
	}
	if err := v.checkBase(ctx, f, dom, disk, img); err != nil || f.against != "" {
		return err
	}
	moved, later := file.Inode != disk.BaseInode, !disk.BaseModified.IsZero() && file.Modified.After(disk.BaseModified)
	switch {
	// It was started on the base that was there, or on this one: nobody can tell, and a
	// deletion would merge into the one that it has open.
	case moved && dom.State != hypervisor.Off:
		f.refuse("disk %s: its base was replaced, and the running VPS may still read the file that was there before: "+
			"if the VPS was started since, shut it down and vouch then; else copy its disk out first (virsh blockcopy)",
			disk.Target)
	case moved:
		f.differ("disk %s: the base %s has inode %d, recorded is %d", disk.Target, disk.Base, file.Inode, disk.BaseInode)
	}
	if later {
		f.differ("disk %s: the base %s was changed at %s, recorded is %s", disk.Target, disk.Base,
			stamp(file.Modified), stamp(disk.BaseModified))
	}
	f.prove("disk %s: the base has the size of the snapshot (%d bytes)", disk.Target, img.VirtualSize)
	if moved && file.Modified.Equal(disk.BaseModified) {
		f.prove("disk %s: the base was last changed when the record says", disk.Target)
	}
	disk.BaseInode, disk.BaseModified = file.Inode, file.Modified
	return nil
}

func stamp(at time.Time) string { return at.UTC().Format(timeFormat) }

// checkBase refuses a base that cannot be the one of the snapshot.
func (v *Vouchers) checkBase(
	ctx context.Context, f *findings, dom hypervisor.Domain, disk *vps.SnapshotDisk, img hypervisor.Image,
) error {
	if img.VirtualSize != image.WholeSectors(disk.SizeBytes) {
		f.refuse("disk %s: its base has %d bytes, at the snapshot it had %d", disk.Target, img.VirtualSize, disk.SizeBytes)
		return nil
	}
	if disk.BaseFormat == "qcow2" {
		cut, err := v.host.CutShort(ctx, disk.Base)
		if err != nil {
			return err
		}
		if cut {
			f.refuse("disk %s: its base was cut short (truncated)", disk.Target)
			return nil
		}
	}
	err := v.images.CheckChain(ctx, dom.ID, disk.Target, disk.Base, disk.BaseFormat)
	if why, ok := errors.AsType[*image.Unfit](err); ok {
		f.refuse("disk %s: its base: %s", disk.Target, why.Why)
		return nil
	}
	return err
}

// examineOverlay looks at the file that the VPS writes to.
func (v *Vouchers) examineOverlay(
	ctx context.Context, f *findings, dom hypervisor.Domain, disk *vps.SnapshotDisk,
) error {
	file, ok, err := v.stat(ctx, f, disk, "overlay", disk.Overlay)
	if !ok {
		return err
	}
	if moved := file.Inode != disk.OverlayInode; moved {
		if ours, err := v.writesTo(ctx, dom, disk.Overlay); err != nil || !ours {
			f.refuse("disk %s: the running VPS writes to another file than its overlay %s: it has the one open that was "+
				"there before; do not power it off, copy its disk out first (virsh blockcopy)", disk.Target, disk.Overlay)
			return err
		}
		f.differ("disk %s: the overlay %s has inode %d, recorded is %d", disk.Target, disk.Overlay, file.Inode,
			disk.OverlayInode)
		f.doubt("disk %s: that the overlay holds all that the VPS has written", disk.Target)
	}
	ok, err = v.liesOnBase(ctx, f, disk, "overlay", disk.Overlay)
	if ok {
		f.prove("disk %s: the overlay is whole and lies on the base", disk.Target)
	}
	disk.OverlayInode = file.Inode
	f.snap.DeltaBytes += file.Allocated
	return err
}

// liesOnBase reads from the header of an overlay what it lies on.
func (v *Vouchers) liesOnBase(
	ctx context.Context, f *findings, disk *vps.SnapshotDisk, what, path string,
) (bool, error) {
	cut, err := v.host.CutShort(ctx, path)
	if err != nil {
		return false, err
	}
	if cut {
		f.refuse("disk %s: its %s was cut short (truncated): a part of what the VPS has written is lost", disk.Target, what)
		return false, nil
	}
	img, ok, err := v.inspect(ctx, f, disk, what, path, "qcow2")
	if ok && !img.LiesOn(disk.Base, disk.BaseFormat) {
		f.refuse("disk %s: its %s lies on %s (%s) by its header, and on %s (%s) by the record", disk.Target, what,
			image.OrNone(img.Backing), image.OrNone(img.BackingFormat), disk.Base, disk.BaseFormat)
		return false, nil
	}
	return ok, err
}

// writesTo reports whether the file at a path is the one that the VPS writes to: off, it
// will be; on, QEMU has it open to write, or it has another one.
func (v *Vouchers) writesTo(ctx context.Context, dom hypervisor.Domain, path string) (bool, error) {
	if dom.State == hypervisor.Off {
		return true, nil
	}
	err := v.host.Unused(ctx, path, "qcow2")
	if errors.Is(err, hypervisor.ErrBusy) {
		return true, nil
	}
	return false, err
}

// examineUndo looks at the disk from before the last restore. Where it is missing, the
// restore cannot be undone, and the snapshot is no worse for it.
func (v *Vouchers) examineUndo(ctx context.Context, f *findings, _ hypervisor.Domain, disk *vps.SnapshotDisk) error {
	if disk.Undo == "" {
		return nil
	}
	const what = "disk from before the last restore"
	file, err := v.host.Stat(ctx, disk.Undo)
	if errors.Is(err, fs.ErrNotExist) {
		f.doubt("disk %s: the %s is missing: that restore cannot be undone", disk.Target, what)
		return nil
	}
	if err != nil || file.Inode == disk.UndoInode {
		return err
	}
	f.differ("disk %s: the %s, %s, has inode %d, recorded is %d", disk.Target, what, disk.Undo, file.Inode, disk.UndoInode)
	if ok, err := v.liesOnBase(ctx, f, disk, what, disk.Undo); !ok {
		return err
	}
	disk.UndoInode = file.Inode
	return nil
}
