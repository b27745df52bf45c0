package lab

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"
)

// TestRecorder boots the program of one sector: what it has acknowledged is on
// every disk when its QEMU is killed, and it goes on from there.
func TestRecorder(t *testing.T) {
	l := startLab(t)
	ctx := within(t, bootWithin)
	disks := []DiskSpec{{Target: "vda", SizeBytes: RecorderDisk}, {Target: "vdb", Format: "raw", SizeBytes: RecorderDisk}}
	startGuest(t, l, Spec{Name: "web1", Recorder: true, Disks: disks})
	said := func(what string) bool {
		text, err := os.ReadFile(l.ConsoleFile("web1"))
		must(t, err)
		return strings.Contains(string(text), what)
	}
	must(t, poll(ctx, func() (bool, error) { return said("A00000003\n"), nil }))
	must(t, l.KillQEMU("web1"))
	must(t, l.WaitState(ctx, "web1", "shut off"))
	for _, d := range disks {
		l.complete("web1", &d)
		data, err := l.ReadImage(ctx, d.Path, d.Format)
		must(t, err)
		for n := uint32(1); n <= 3; n++ {
			if at := SlotOf(n); !bytes.Equal(data[at:at+RecordSize], recordOf(n)) {
				t.Errorf("%s does not hold record %d, but begins with %d", d.Target, n, binary.LittleEndian.Uint32(data[at:]))
			}
		}
	}
	must(t, os.Truncate(l.ConsoleFile("web1"), 0))
	_, err := l.Virsh(ctx, "start", "web1")
	must(t, err)
	must(t, poll(ctx, func() (bool, error) { return said("A0000000"), nil }))
	if said("B00000000\n") || said("V0000") {
		t.Error("after its death the guest does not find its records")
	}
}
