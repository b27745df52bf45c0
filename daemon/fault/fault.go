// Package fault turns the errors of the host into what a caller may read: a code, a
// sentence and a remedy. The host's own reason stays with the error, for the log and
// for operators.
package fault

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// RecordDamaged: what is recorded of a VPS is not what was recorded, and is not acted on.
func RecordDamaged(name string) *vps.Error {
	return vps.Errorf(vps.CodeVPSChanged, "the record of %s is damaged, so nothing is done to it", name).
		WithRemedy("look at what is damaged (vpssnap doctor), then have the record made again from the host " +
			"(vpssnap doctor --repair)")
}

// Unavailable reports whether err means that libvirt does not answer now, or that the
// record cannot be written now: both heal by themselves, so the work waits.
func Unavailable(err error) bool {
	return errors.Is(err, hypervisor.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) ||
		vps.CodeOf(err) == vps.CodeHypervisorUnavailable || store.IsFull(err)
}

// hostErrors is what each failure of the host means to a caller; the first match wins.
var hostErrors = []struct {
	is     error
	code   vps.Code
	why    string
	remedy string
}{
	{hypervisor.ErrUnavailable, vps.CodeHypervisorUnavailable, "libvirt does not answer", waitForLibvirt},
	{hypervisor.ErrNotFound, vps.CodeVPSChanged, "the VPS or one of its disks is no longer there",
		"look at the VPS with virsh on its host"},
	{hypervisor.ErrNoSpace, vps.CodeInsufficientSpace, "the host's file system is full",
		"free space on the host, then ask for the same again"},
	{hypervisor.ErrBusy, vps.CodeVPSChanged, "another job or program holds the VPS's disk",
		"wait until that job has ended (virsh domblklist, virsh blockjob), then ask for the same again"},
	{hypervisor.ErrDenied, vps.CodeVPSChanged, "the host's access control (AppArmor, SELinux or permissions) forbids it",
		"shut the VPS down and ask for the same again, or correct the profile of the VPS"},
	{hypervisor.ErrAgent, vps.CodeGuestUnresponsive, "the guest agent did not answer",
		"look at qemu-guest-agent in the VPS, or allow a snapshot without it (quiesce prefer)"},
	{hypervisor.ErrReplaced, vps.CodeVPSChanged, "a file of the snapshot was replaced by another",
		"find out on the host who replaced it, before anything else is done"},
	{hypervisor.ErrOff, vps.CodeVPSChanged, "the VPS went off meanwhile", "ask for the same again"},
	{hypervisor.ErrPersistence, vps.CodeInternal, "libvirt could not save the VPS's definition",
		"cure what libvirt names, or a full or read-only file system below its configuration directory, " +
			"then resume the operation"},
	{hypervisor.ErrUnsupported, vps.CodeUnsupportedDisk, "the host cannot do this with the VPS's disks", ""},
	{syscall.EROFS, vps.CodeUnsupportedDisk, "the file system of the VPS's disks is read-only",
		"look at the host's mounts; where only vpssnapd.service may not write, allow it (systemctl edit vpssnapd: ReadWritePaths=)"},
	{fs.ErrNotExist, vps.CodeVPSChanged, "a file of the VPS's disks is missing",
		"look at the VPS's disks on its host (virsh domblklist)"},
}

const astrayRemedy = "have libvirt know the VPS again, as doctor says (vpssnap doctor), then resume the operation or ask again"

const waitForLibvirt = "wait until libvirt is back, then try again"

// Explain says that what could not be done, and why, as far as err tells: in our words,
// and in those of the host. An error that was written for a caller is returned as it is.
func Explain(what string, err error) *vps.Error {
	if e, ok := errors.AsType[*vps.Error](err); ok {
		return e
	}
	if storage, ok := errors.AsType[*hypervisor.StorageError](err); ok {
		return vps.Errorf(vps.CodeHypervisorUnavailable, "%s: the storage %s does not answer", what, storage.Dir).
			WithRemedy("bring that mount of the host back (its server, network or array); " +
				"the work goes on by itself, and what was refused can be asked for again").
			Because(err)
	}
	if astray, ok := errors.AsType[*hypervisor.AstrayError](err); ok {
		return vps.Errorf(vps.CodeVPSChanged, "%s: %s", what, astray).
			WithRemedy(astrayRemedy).Because(err)
	}
	reason := reasonOf(err)
	for _, h := range hostErrors {
		if errors.Is(err, h.is) {
			return vps.Errorf(h.code, "%s: %s%s", what, h.why, reason).WithRemedy("%s", h.remedy).Because(err)
		}
	}
	if reason != "" {
		return vps.Errorf(vps.CodeInternal, "%s: the host refused%s", what, reason).
			WithRemedy("cure what the host names, then resume the operation or ask again").
			Because(err)
	}
	return vps.Errorf(vps.CodeInternal, "%s: an internal error", what).
		WithRemedy("look into the daemon's log on the host (journalctl -u vpssnapd), cure the cause, then resume the operation or ask again").
		Because(err)
}

// reasonOf is the host's own reason, to be added to a sentence. What a guest's agent
// answers are the guest's words, which are kept to the log.
func reasonOf(err error) string {
	if reason := hypervisor.Reason(err); reason != "" && !errors.Is(err, hypervisor.ErrAgent) {
		return ": " + reason
	}
	return ""
}

// Silent is the error of a VPS about which libvirt does not answer, though it does
// about others.
func Silent(dom hypervisor.Domain) *vps.Error {
	return vps.Errorf(vps.CodeHypervisorUnavailable, "%s does not answer its host", dom.Name).
		WithRemedy("its QEMU process or its storage hangs (virsh domcontrol %s tells); try again when it is cured", dom.Name)
}

// NoVPS is the same for a VPS that does not exist and for another customer's.
func NoVPS() *vps.Error { return vps.Errorf(vps.CodeNotFound, "no such VPS") }

// Disconnected is the error while there is no connection to libvirt.
func Disconnected() *vps.Error {
	return vps.Errorf(vps.CodeHypervisorUnavailable, "libvirt does not answer").WithRemedy(waitForLibvirt)
}

// Migrated refuses to work on what a migration has left behind.
func Migrated(dom hypervisor.Domain) *vps.Error {
	return vps.Errorf(vps.CodeVPSChanged, "%s was migrated to another host; only its definition is still here", dom.Name).
		WithRemedy("ask the host that it runs on; remove the definition that was left here (virsh undefine %s)", dom.ID)
}

// InProgress refuses a second operation of one VPS.
func InProgress(name string) *vps.Error {
	return vps.Errorf(vps.CodeOperationInProgress, "another operation of %s is not finished", name).
		WithRemedy("wait for it to end (GET /v1/operations), then ask again")
}
