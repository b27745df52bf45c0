package image

import (
	"context"
	"errors"
	"io/fs"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Base reads the image that is about to become a snapshot's base and
// refuses what the definition does not show: a header that a customer supplied
// can name any file of the host as its backing.
func (i *Images) Base(ctx context.Context, dom hypervisor.Domain, disk hypervisor.Disk) (hypervisor.Image, error) {
	refuse := func(format string, args ...any) *vps.Error {
		return vps.Errorf(
			vps.CodeUnsupportedDisk, "cannot take a snapshot of %s: disk %s: %s", dom.Name, disk.Target,
			vps.Say(format, args...),
		)
	}
	// With the format that the definition states, never probed: a guest can write any
	// header into a raw disk (FAULTS.md, fact 8).
	img, err := i.host.Inspect(ctx, disk.Path, disk.Format)
	if errors.Is(err, fs.ErrNotExist) {
		return img, refuse("its image file is missing")
	}
	if fault.Unavailable(err) {
		return img, fault.Explain("cannot take a snapshot of "+dom.Name, err)
	}
	if err != nil {
		return img, vps.Errorf(vps.CodeUnsupportedDisk,
			"cannot take a snapshot of %s: disk %s: its image cannot be read as %s",
			dom.Name, disk.Target, disk.Format).
			Because(err)
	}
	switch {
	case img.Encrypted:
		return img, refuse("the image is encrypted")
	// A customer's image may name any file of the host here.
	case img.DataFile:
		return img, refuse("the image keeps its data in another file (data_file)")
	// They, and bitmaps, are bound to this layer: a merge or a restore would silently
	// make them void.
	case img.InternalSnapshots > 0:
		return img, refuse("the image holds %d internal snapshots (qemu-img snapshot -l)", img.InternalSnapshots)
	case img.Bitmaps > 0:
		return img, refuse("the image holds %d persistent bitmaps", img.Bitmaps)
	case img.Corrupt:
		return img, refuse("the image is marked corrupt (qemu-img check)")
	case img.Dirty && dom.State == hypervisor.Off:
		// Frozen like that nobody would repair it, and no running VPS could merge
		// into it (checkClosed). Of one that is on, QEMU has it open.
		return img, refuse("its image was not closed by who last wrote to it (dirty flag)").
			WithRemedy("start the VPS and shut it down again, which repairs the image (or qemu-img check -r all)")
	// An overlay has the size of the image; the guest must not see its disk shrink.
	case disk.SizeBytes > 0 && img.VirtualSize != disk.SizeBytes:
		return img, refuse("the image is %d bytes, the disk %d", img.VirtualSize, disk.SizeBytes)
	}
	return img, i.checkChain(ctx, dom, disk, img, refuse)
}

// checkChain follows the backing files of a linked clone header by header and holds
// them against what libvirt runs with, as far as it states that.
func (i *Images) checkChain(
	ctx context.Context, dom hypervisor.Domain, disk hypervisor.Disk, top hypervisor.Image,
	refuse func(string, ...any) *vps.Error,
) error {
	stated := disk.Chain
	read := func(path, format string) (hypervisor.Layer, error) {
		img, err := top, error(nil)
		if path != disk.Path {
			img, err = i.host.Inspect(ctx, path, format)
		}
		switch {
		case fault.Unavailable(err):
			return hypervisor.Layer{}, fault.Explain("cannot take a snapshot of "+dom.Name, err)
		case err != nil:
			return hypervisor.Layer{}, vps.Errorf(vps.CodeUnsupportedDisk,
				"cannot take a snapshot of %s: disk %s: a backing file cannot be read", dom.Name, disk.Target).
				Because(err)
		// The top was looked at by Base.
		case path != disk.Path && (img.Encrypted || img.DataFile):
			return hypervisor.Layer{}, refuse("a backing file is encrypted or keeps its data in another file")
		case img.Backing != "" && !isFile(img.Backing):
			return hypervisor.Layer{}, refuse("its backing file is not a plain local file")
		case img.Backing != "" && img.BackingFormat != "qcow2" && img.BackingFormat != "raw":
			return hypervisor.Layer{}, refuse(
				"its backing file has the format %s, only a stated qcow2 or raw is supported",
				OrNone(img.BackingFormat),
			)
		}
		return hypervisor.Layer{Path: img.Backing, Format: img.BackingFormat}, nil
	}
	err := walk(disk.Path, disk.Format, read, func(layer hypervisor.Layer) error {
		// libvirt may name a layer too many, that QEMU has merged away; never one too few.
		for disk.ChainKnown && len(stated) > 0 && stated[0].Path != layer.Path {
			stated = stated[1:]
		}
		if disk.ChainKnown && len(stated) == 0 {
			return refuse("its image names another backing file than the definition of the VPS")
		}
		return nil
	})
	if errors.Is(err, errTooDeep) {
		return refuse("its chain of backing files is longer than %d", maxChain)
	}
	return err
}
