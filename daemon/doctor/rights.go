package doctor

import (
	"context"
	"fmt"
	"io/fs"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// checkRights judges the rights of a file of a snapshot by those of its base, which holds
// the same customer's data: nobody may do more with it, and who may write to the base may
// write to it. Otherwise, where libvirt does not change owners (dynamic_ownership = 0), the
// VPS does not start (FAULTS.md row 36). libvirt 9.0 made overlays of private disks readable
// by everybody (CVE-2025-13193), and an operator's copy may belong to the operator.
func (i *inspection) checkRights(ctx context.Context, disk vps.SnapshotDisk, path, what string, file hypervisor.File) {
	base, err := i.d.host.Stat(ctx, disk.Base)
	if err != nil {
		return // told by the check of the base
	}
	why := ""
	switch {
	case grantsMore(file, base):
		why = "others may read the VPS's data"
	case grantsLess(file, base, path == disk.Overlay):
		why = "who may write to its base may not write to it, so that the VPS may not start"
	default:
		return
	}
	i.add(
		vps.CheckWrongModeOrOwner, disk.Target, path,
		fmt.Sprintf("%s %s has %s, its base %s: %s", what, path, describeRights(file), describeRights(base), why),
		remedyRights(disk, path, file, base),
	)
}

func describeRights(f hypervisor.File) string {
	text := fmt.Sprintf("mode %04o, uid %d and gid %d", f.Mode, f.UID, f.GID)
	if f.ACL != "" {
		text += ", access control list " + f.ACL
	}
	return text
}

const (
	ownerBits fs.FileMode = 0o700
	groupBits fs.FileMode = 0o070
	otherBits fs.FileMode = 0o007
)

// grantsMore: that the owners differ says nothing by itself, as libvirt changes them at
// each start and end. A login user is no one that a host runs its guests as.
func grantsMore(file, base hypervisor.File) bool {
	return file.Mode&otherBits != 0 || file.Mode&groupBits&^base.Mode != 0 || file.ACL != "" && file.ACL != base.ACL ||
		loginUser(file.UID) && file.UID != base.UID
}

// grantsLess looks at those who may write to the base. Where root alone may, libvirt gives
// both files to whom it wants; and while the VPS runs on the base, to the guest's user, but
// not the disk of before a restore, which is not in use.
func grantsLess(file, base hypervisor.File, inUse bool) bool {
	lacks := func(bits fs.FileMode, same bool, id uint32) bool {
		const readAndWrite = 0o660
		if writes := base.Mode & bits & readAndWrite; writes != bits&readAndWrite {
			return false
		}
		if !same {
			return inUse && id != 0
		}
		return base.Mode&bits&^file.Mode != 0
	}
	return lacks(ownerBits, file.UID == base.UID, base.UID) || lacks(groupBits, file.GID == base.GID, base.GID) ||
		base.ACL != file.ACL
}

// loginUser reports whether a uid is a person's by the convention of Debian and Red Hat.
func loginUser(uid uint32) bool { return uid >= 1000 && uid < 60000 }

// remedyRights gives a file the rights of its base, but for what everybody may do. A list
// goes first, and comes last: it gives the mode's middle digit another meaning.
func remedyRights(disk vps.SnapshotDisk, path string, file, base hypervisor.File) vps.Remedy {
	w := remedy(vps.RemedySetRights, "give it the rights of its base, and everybody else none")
	if file.ACL != "" && file.ACL != base.ACL {
		w.Commands = append(w.Commands, argv("setfacl", "--remove-all", "--", path))
	}
	if file.UID != base.UID || file.GID != base.GID {
		w.Commands = append(w.Commands, argv("chown", "--reference="+disk.Base, "--", path))
	}
	w.Commands = append(w.Commands, argv("chmod", fmt.Sprintf("%03o", base.Mode&^otherBits), "--", path))
	if base.ACL != "" {
		w.Commands = append(w.Commands, argv("setfacl", "--set", base.ACL, "--", path))
	}
	return w
}
