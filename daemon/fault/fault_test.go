package fault_test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// TestTheHostsReasonIsTold (FAULTS.md row 35): whatever kind of error it is, an operator reads
// what libvirt, QEMU or the kernel said, and no "internal error" where they said something.
func TestTheHostsReasonIsTold(t *testing.T) {
	said := func(words string, kind error) error {
		return fmt.Errorf("step: %w", &hypervisor.Told{Words: words, Err: fmt.Errorf("%w: libvirt", kind)})
	}
	unknown := errors.New("a kind of its own")
	astray := func(pid int) error {
		return &hypervisor.AstrayError{Domain: hypervisor.Domain{Name: "web1", Astray: &hypervisor.Astray{PID: pid}}}
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{said("Cannot check QEMU binary /usr/bin/gone: No such file or directory", hypervisor.ErrPersistence), "Cannot check QEMU binary"},
		{said("internal error: unable to execute QEMU command 'blockdev-add'", unknown), "the host refused: unable to execute QEMU"},
		{said("Failed to get \"write\" lock", hypervisor.ErrBusy), "Failed to get \"write\" lock"},
		{said("unsupported configuration: no such bus", hypervisor.ErrUnsupported), "no such bus"},
		{fmt.Errorf("cannot read x: %w", syscall.EIO), "the host refused: input/output error"},
		{astray(4711), "libvirt takes web1 for off, but its QEMU runs (process 4711)"},
		{astray(0), "libvirt takes web1 for being started, but no QEMU of it runs"},
		{fmt.Errorf("%w: %w", hypervisor.ErrPersistence, syscall.EROFS), "read-only file system"},
	} {
		e := fault.Explain("cannot delete the snapshot of web1", c.err)
		if !strings.Contains(e.Detail, c.want) || strings.Contains(e.Detail, "internal error") || e.Remedy == "" &&
			!errors.Is(c.err, hypervisor.ErrUnsupported) {
			t.Errorf("%v: %q, %q", c.err, e.Detail, e.Remedy)
		}
		if told := e.In(vps.English); strings.Contains(told.Detail, c.want) {
			t.Errorf("a customer reads %q", told.Detail)
		}
	}
	agent := fault.Explain("cannot take", said("the guest's words", hypervisor.ErrAgent))
	if strings.Contains(agent.Detail, "guest's words") {
		t.Errorf("the guest speaks: %q", agent.Detail)
	}
}
