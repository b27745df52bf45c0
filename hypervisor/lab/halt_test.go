package lab

import (
	"fmt"
	"strings"
	"testing"
)

// TestHalt: the guest's processor is halted, and no interrupt wakes it.
func TestHalt(t *testing.T) {
	l := startLab(t)
	ctx := within(t, bootWithin)
	startGuest(t, l, Spec{Name: "web1", Halt: true, MemoryMiB: 16, Disks: []DiskSpec{{Target: "vda", SizeBytes: 1 << 20}}})
	const interrupts = 1 << 9 // among the processor's flags
	must(t, poll(ctx, func() (bool, error) {
		registers, err := l.HMP(ctx, "web1", "info registers")
		var flags int
		_, text, _ := strings.Cut(registers, "EFL=")
		_, _ = fmt.Sscanf(text, "%x", &flags) // 0: not yet
		return strings.Contains(registers, "EIP=00007c0") && strings.Contains(registers, "HLT=1") && flags != 0 &&
			flags&interrupts == 0, err
	}))
}
