package daemon

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// unavailable says that libvirt does not answer now, or the record cannot be
// written now: both heal by themselves, so the work waits.
func unavailable(err error) bool {
	return errors.Is(err, hypervisor.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) ||
		vps.CodeOf(err) == vps.CodeHypervisorUnavailable || store.IsFull(err)
}

// hostErrors is what each failure of the host means to a caller, first match wins.
var hostErrors = []struct {
	is     error
	code   vps.Code
	why    string
	remedy string
}{
	{hypervisor.ErrUnavailable, vps.CodeHypervisorUnavailable, "libvirt does not answer", "wait until libvirt is back, then try again"},
	{hypervisor.ErrNotFound, vps.CodeVPSChanged, "the VPS or one of its disks is no longer there", "look at the VPS with virsh on its host"},
	{hypervisor.ErrNoSpace, vps.CodeInsufficientSpace, "the host's file system is full", "free space on the host, then ask for the same again"},
	{hypervisor.ErrBusy, vps.CodeVPSChanged, "another job or program holds the VPS's disk", "wait until that job has ended (virsh domblklist, virsh blockjob), then ask for the same again"},
	{hypervisor.ErrDenied, vps.CodeVPSChanged, "the host's access control (AppArmor, SELinux or permissions) forbids it", "shut the VPS down and ask for the same again, or correct the profile of the VPS"},
	{hypervisor.ErrAgent, vps.CodeGuestUnresponsive, "the guest agent did not answer", "look at qemu-guest-agent in the VPS, or allow a snapshot without it (quiesce prefer)"},
	{hypervisor.ErrReplaced, vps.CodeVPSChanged, "a file of the snapshot was replaced by another", "find out on the host who replaced it, before anything else is done"},
	{hypervisor.ErrOff, vps.CodeVPSChanged, "the VPS went off meanwhile", "ask for the same again"},
	{hypervisor.ErrPersistence, vps.CodeInternal, "libvirt could not save the VPS's definition", "look for a full or read-only file system below libvirt's configuration directory, then resume the operation"},
	{hypervisor.ErrUnsupported, vps.CodeUnsupportedDisk, "the host cannot do this with the VPS's disks", ""},
	{syscall.EROFS, vps.CodeUnsupportedDisk, "the file system of the VPS's disks is read-only", "look at the host's mounts; where only vpssnapd.service may not write, allow it (systemctl edit vpssnapd: ReadWritePaths=)"},
	{fs.ErrNotExist, vps.CodeVPSChanged, "a file of the VPS's disks is missing", "look at the VPS's disks on its host (virsh domblklist)"},
}

// actions is how each kind of operation is named in a sentence.
var actions = map[vps.Kind]string{
	vps.KindTake:        "take the snapshot",
	vps.KindRestore:     "restore the snapshot",
	vps.KindUndoRestore: "undo the restore",
	vps.KindDelete:      "delete the snapshot",
}

// explain turns the error of an operation into what a caller may read. The
// cause stays for the log.
func explain(op vps.Operation, err error) *vps.Error {
	return explainAs("cannot "+actions[op.Kind]+" of "+op.VPSName, err)
}

func explainAs(what string, err error) *vps.Error {
	if e, ok := errors.AsType[*vps.Error](err); ok {
		return e
	}
	for _, h := range hostErrors {
		if errors.Is(err, h.is) {
			return vps.Errorf(h.code, "%s: %s", what, h.why).WithRemedy("%s", h.remedy).Because(err)
		}
	}
	return vps.Errorf(vps.CodeInternal, "%s: an internal error", what).
		WithRemedy("look into the daemon's log on the host (journalctl -u vpssnapd), cure the cause, then resume the operation or ask again").Because(err)
}
