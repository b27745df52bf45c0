package image

import (
	"context"
	"errors"
	"io/fs"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// Base reads the image that is about to become a snapshot's base and
// refuses what the definition does not show: a header that a customer supplied
// can name any file of the host as its backing.
func (i *Images) Base(ctx context.Context, dom hypervisor.Domain, disk hypervisor.Disk) (hypervisor.Image, error) {
	refuse := func(format string, args ...any) *vps.Error {
		return vps.Refuse(vps.CodeUnsupportedDisk, cannotTake(dom, disk, vps.Say(format, args...)), vps.Words{})
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
	case disk.SizeBytes > 0 && img.VirtualSize != WholeSectors(disk.SizeBytes):
		return img, refuse("the image is %d bytes, the disk %d", img.VirtualSize, disk.SizeBytes)
	}
	return img, i.checkLayers(ctx, dom, disk, img)
}

// WholeSectors is a size as a guest has it. A raw image may end within a sector: QEMU shows
// the guest the whole of it, and libvirt tells the length of the file while the VPS is off.
func WholeSectors(size int64) int64 { return (size + sector - 1) / sector * sector }

const sector = 512

// checkLayers follows the backing files of a linked clone header by header and holds
// them against what the definition states, as far as it does.
func (i *Images) checkLayers(
	ctx context.Context, dom hypervisor.Domain, disk hypervisor.Disk, top hypervisor.Image,
) error {
	read := func(path, format string) (hypervisor.Image, error) {
		if path == disk.Path {
			return top, nil
		}
		return i.host.Inspect(ctx, path, format)
	}
	rest := disk.Chain
	err := i.checkChain(disk.Path, disk.Format, read, i.placesFor(ctx, dom.ID, disk.Target, disk.Path),
		func(layer hypervisor.Layer) error {
			// libvirt may name a layer too many, that QEMU has merged away; never one too few.
			for len(rest) > 0 && !pathname.Same(rest[0].Path, layer.Path) {
				rest = rest[1:]
			}
			if len(rest) == 0 && disk.ChainKnown {
				return unfit(nil, "its image names another template than the definition of the VPS")
			}
			return nil
		})
	if err == nil {
		return nil
	}
	why, ok := errors.AsType[*Unfit](err)
	if !ok {
		return fault.Explain("cannot take a snapshot of "+dom.Name, err)
	}
	return vps.Refuse(vps.CodeUnsupportedDisk, cannotTake(dom, disk, why.Why), why.Remedy).Because(why)
}

// cannotTake is the sentence with which a take is refused because of a disk.
func cannotTake(dom hypervisor.Domain, disk hypervisor.Disk, why vps.Words) vps.Words {
	return vps.Say("cannot take a snapshot of %s: disk %s: %s", dom.Name, disk.Target, why)
}
