package daemon

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// cover says of one disk, by its definition alone, whether a snapshot covers
// it, leaves it out, or is impossible because of it.
func cover(d hypervisor.Disk) vps.Disk {
	v := vps.Disk{Target: d.Target, Path: d.Path, Format: d.Format, SizeBytes: d.SizeBytes}
	switch {
	case d.Device == "cdrom" || d.Device == "floppy":
		v.Reason = vps.Say("left out: a %s", d.Device)
	case d.ReadOnly:
		v.Reason = vps.Say("left out: read-only")
	default:
		v.Reason, v.Refused = refusal(d)
		v.Included = !v.Refused
	}
	return v
}

// refusal says whether a disk makes a snapshot impossible, and why.
func refusal(d hypervisor.Disk) (why vps.Words, refused bool) {
	switch {
	case d.Device != "disk":
		return vps.Say("device type %s is not supported", d.Device), true
	case d.Shareable:
		return vps.Say("the disk is shareable: another VPS may write to it"), true
	case d.Transient:
		return vps.Say("the disk is transient: its changes are thrown away at power-off"), true
	case d.Encrypted:
		return vps.Say("the disk is encrypted"), true
	case d.Type != "file":
		return vps.Say("the disk is of type %s, only image files are supported", d.Type), true
	case d.Slice:
		return vps.Say("the disk is a slice of a file"), true
	case d.Format != "qcow2" && d.Format != "raw":
		return vps.Say("the disk has the format %s, only qcow2 and raw are supported", orNone(d.Format)), true
	case !filepath.IsAbs(d.Path):
		return vps.Say("the disk has no image file"), true
	}
	return vps.Words{}, false
}

func orNone(s string) string {
	if s == "" {
		return "(none stated)"
	}
	return s
}

// unsupported says why a VPS as a whole cannot have a snapshot; nil when it can.
func unsupported(dom hypervisor.Domain) *vps.Words {
	refuse := func(format string, args ...any) *vps.Words {
		why := vps.Say("cannot take a snapshot of %s: %s", dom.Name, vps.Say(format, args...))
		return &why
	}
	switch {
	case !dom.Persistent:
		return refuse("the VPS is not persistent, its definition is gone at power-off")
	case dom.State == hypervisor.Suspended:
		return refuse("the guest put itself to sleep; wake it up first")
	case dom.TPM:
		return refuse("the VPS has an emulated TPM, whose state a snapshot would not hold")
	case dom.NVRAMOther:
		return refuse("the VPS keeps its UEFI variables elsewhere than in a local file")
	case dom.ForeignSnapshots > 0:
		return refuse("it has %d libvirt snapshots of its own; delete them first (virsh snapshot-list)", dom.ForeignSnapshots)
	case dom.Checkpoints > 0:
		return refuse("it has %d libvirt checkpoints, which a restore would make void (virsh checkpoint-list)", dom.Checkpoints)
	case dom.ManagedSave:
		return refuse("its memory is saved to disk (managed save); start it or drop the saved memory first (virsh managedsave-remove)")
	}
	included := 0
	for _, d := range dom.Disks {
		c := cover(d)
		if c.Refused {
			return refuse("disk %s: %s", d.Target, c.Reason)
		}
		if c.Included {
			included++
		}
	}
	if included == 0 {
		return refuse("it has no disk that a snapshot would cover")
	}
	return nil
}

// included returns the disks that a snapshot covers.
func included(disks []hypervisor.Disk) []hypervisor.Disk {
	var in []hypervisor.Disk
	for _, d := range disks {
		if cover(d).Included {
			in = append(in, d)
		}
	}
	return in
}

// diskOf finds a disk by its target.
func diskOf(disks []hypervisor.Disk, target string) (hypervisor.Disk, bool) {
	for _, d := range disks {
		if d.Target == target {
			return d, true
		}
	}
	return hypervisor.Disk{}, false
}

// inspectBase reads the image that is about to become a snapshot's base and
// refuses what the definition does not show: a header that a customer supplied
// can name any file of the host as its backing.
func (d *Daemon) inspectBase(ctx context.Context, dom hypervisor.Domain, disk hypervisor.Disk) (hypervisor.Image, error) {
	refuse := func(format string, args ...any) *vps.Error {
		return vps.Errorf(vps.CodeUnsupportedDisk, "cannot take a snapshot of %s: disk %s: %s", dom.Name, disk.Target, vps.Say(format, args...))
	}
	img, err := d.Config.Host.Inspect(ctx, disk.Path, disk.Format)
	if errors.Is(err, fs.ErrNotExist) {
		return img, refuse("its image file is missing")
	}
	if err != nil {
		return img, vps.Errorf(vps.CodeUnsupportedDisk, "cannot take a snapshot of %s: disk %s: its image cannot be read as %s", dom.Name, disk.Target, disk.Format).Because(err)
	}
	switch {
	case img.Encrypted:
		return img, refuse("the image is encrypted")
	case img.DataFile:
		return img, refuse("the image keeps its data in another file (data_file)")
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
	case disk.SizeBytes > 0 && img.VirtualSize != disk.SizeBytes:
		return img, refuse("the image is %d bytes, the disk %d", img.VirtualSize, disk.SizeBytes)
	}
	return img, d.checkChain(ctx, dom, disk, img, refuse)
}

// besideOf is the path of a backing file that an image's header names, which may
// be relative to the image.
func besideOf(image, backing string) string {
	if filepath.IsAbs(backing) {
		return backing
	}
	return filepath.Join(filepath.Dir(image), backing)
}

// maxChain is how many images a chain may have below a disk.
const maxChain = 16

// checkChain follows the backing files of a linked clone header by header and
// holds them against what libvirt runs with, as far as it states that.
func (d *Daemon) checkChain(ctx context.Context, dom hypervisor.Domain, disk hypervisor.Disk, top hypervisor.Image,
	refuse func(string, ...any) *vps.Error) error {
	above, stated := disk.Path, disk.Chain
	for depth := 0; top.Backing != ""; depth++ {
		path := top.Backing
		switch {
		case depth >= maxChain:
			return refuse("its chain of backing files is longer than %d", maxChain)
		case strings.Contains(strings.SplitN(path, "/", 2)[0], ":"):
			return refuse("its backing file is not a plain local file")
		case top.BackingFormat != "qcow2" && top.BackingFormat != "raw":
			return refuse("its backing file has the format %s, only a stated qcow2 or raw is supported", orNone(top.BackingFormat))
		}
		path = besideOf(above, path)
		// libvirt may name a layer too many, that QEMU has merged away; never one too few.
		for disk.ChainKnown && len(stated) > 0 && stated[0].Path != path {
			stated = stated[1:]
		}
		if disk.ChainKnown && len(stated) == 0 {
			return refuse("its image names another backing file than the definition of the VPS")
		}
		img, err := d.Config.Host.Inspect(ctx, path, top.BackingFormat)
		if err != nil {
			return vps.Errorf(vps.CodeUnsupportedDisk, "cannot take a snapshot of %s: disk %s: a backing file cannot be read", dom.Name, disk.Target).Because(err)
		}
		if img.Encrypted || img.DataFile {
			return refuse("a backing file is encrypted or keeps its data in another file")
		}
		above, top = path, img
	}
	return nil
}
