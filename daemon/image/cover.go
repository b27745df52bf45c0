package image

import (
	"path/filepath"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// Cover says of one disk, by its definition alone, whether a snapshot covers
// it, leaves it out, or is impossible because of it.
func Cover(d hypervisor.Disk) vps.Disk {
	v := vps.Disk{Target: d.Target, Path: d.Path, Format: d.Format, SizeBytes: d.SizeBytes}
	switch {
	case d.Device == "cdrom" || d.Device == "floppy":
		v.Reason = vps.Say("left out: a %s", d.Device)
	case d.ReadOnly:
		v.Reason = vps.Say("left out: read-only")
	case d.SnapshotNo:
		v.Reason = vps.Say("left out: its definition says snapshot='no'")
	default:
		v.Reason, v.Refused = refusal(d)
		v.Included = !v.Refused
	}
	return v
}

// refusal reports whether a disk makes a snapshot impossible, and why.
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
	case d.NotFile != "":
		return vps.Say("the disk is of type file, but there lies %s", lies(d.NotFile)), true
	case d.Slice:
		return vps.Say("the disk is a slice of a file"), true
	case d.Format != "qcow2" && d.Format != "raw":
		return vps.Say("the disk has the format %s, only qcow2 and raw are supported", OrNone(d.Format)), true
	case !filepath.IsAbs(d.Path):
		return vps.Say("the disk has no image file"), true
	}
	return vps.Words{}, false
}

// lies says what lies under a name that should be a file's.
func lies(kind string) vps.Words {
	switch pathname.Kind(kind) {
	case pathname.BlockDevice:
		return vps.Say("a block device")
	case pathname.CharacterDevice:
		return vps.Say("a character device")
	case pathname.Pipe:
		return vps.Say("a named pipe")
	case pathname.Socket:
		return vps.Say("a socket")
	case pathname.Directory:
		return vps.Say("a directory")
	}
	return vps.Say("no file")
}

// OrNone writes what the definition may not state.
func OrNone(s string) string {
	if s == "" {
		return "(none stated)"
	}
	return s
}

// Unsupported says why a VPS as a whole cannot have a snapshot; nil when it can.
func Unsupported(dom hypervisor.Domain) *vps.Words {
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
		return refuse("it has %d libvirt snapshots of its own; delete them first (virsh snapshot-list)",
			dom.ForeignSnapshots)
	case dom.Checkpoints > 0:
		return refuse(
			"it has %d libvirt checkpoints, which a restore would make void (virsh checkpoint-list)", dom.Checkpoints,
		)
	case dom.ManagedSave:
		return refuse(
			"its memory is saved to disk (managed save); start it or drop the saved memory first (virsh managedsave-remove)",
		)
	}
	covered := 0
	for _, d := range dom.Disks {
		c := Cover(d)
		if c.Refused {
			return refuse("disk %s: %s", d.Target, c.Reason)
		}
		if c.Included {
			covered++
		}
	}
	if covered == 0 {
		return refuse("it has no disk that a snapshot would cover")
	}
	return nil
}

// Included returns the disks that a snapshot covers.
func Included(disks []hypervisor.Disk) []hypervisor.Disk {
	var in []hypervisor.Disk
	for _, d := range disks {
		if Cover(d).Included {
			in = append(in, d)
		}
	}
	return in
}
