package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// CheckExchange makes sure that the files of a snapshot can be exchanged where they lie, or
// will lie: path tells a file of a disk. NFS, FUSE and ZFS before 2.2 cannot do it in one act,
// and a restore knows no other way: there a snapshot is not taken. cannot is what could not
// be done to the VPS of that name, as a format for the name and the reason.
func (i *Images) CheckExchange(
	ctx context.Context, cannot, name string, snap vps.Snapshot, path func(vps.SnapshotDisk) string,
) error {
	for _, disk := range snap.Disks {
		why := vps.Say("disk %s: %s", disk.Target,
			vps.Say("its file system cannot exchange two files in one act, which a restore needs"))
		if err := i.checkExchange(ctx, cannot, name, disk.Target, path(disk), why); err != nil {
			return err
		}
	}
	if snap.NVRAM == "" {
		return nil
	}
	why := vps.Say("its UEFI variables lie on a file system that cannot exchange two files in one act, which a restore needs")
	return i.checkExchange(ctx, cannot, name, "", snap.NVRAM, why)
}

func (i *Images) checkExchange(ctx context.Context, cannot, name, disk, path string, why vps.Words) error {
	err := i.host.TryExchange(ctx, path)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, hypervisor.ErrUnsupported):
		return vps.Errorf(vps.CodeUnsupportedDisk, cannot, name, why).
			WithRemedy("move it to a file system that can: ext4, XFS, Btrfs, or ZFS from 2.2 on").Because(err)
	}
	return fault.Explain(fmt.Sprintf(cannot, name, cmp.Or(disk, "UEFI variables")), err)
}
