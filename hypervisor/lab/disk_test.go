package lab

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"
)

func hashDisk(t *testing.T, l *Lab, name, target string) string {
	t.Helper()
	sum, err := l.HashDisk(t.Context(), name, target)
	must(t, err)
	return sum
}

func TestDisksHoldWhatIsWritten(t *testing.T) {
	l := startLab(t)
	targets := []string{"vda", "vdb", "sda", "fda"}
	spec := Spec{Name: "web1", Disks: []DiskSpec{
		{Target: "vda", SizeBytes: 16 << 20},
		{Target: "vdb", SizeBytes: 16 << 20, Format: "raw"},
		{Target: "sda", SizeBytes: 16 << 20},
		{Target: "fda", SizeBytes: 1440 << 10, Format: "raw", Device: "floppy"},
		{Target: "sdb", Device: "cdrom", Format: "raw", ReadOnly: true},
	}}
	_, err := l.DefineDomain(t.Context(), spec)
	must(t, err)
	empty := hashDisk(t, l, "web1", "vda")

	check := func(state string, pattern byte) {
		for _, target := range targets {
			if err := l.WriteDisk(t.Context(), "web1", target, 4096, pattern, 8192); err != nil {
				t.Errorf("%s: %v", state, err)
			}
			data, err := l.ReadDisk(t.Context(), "web1", target, 4095, 3)
			if want := []byte{0, pattern, pattern}; err != nil || !bytes.Equal(data, want) {
				t.Errorf("%s: %s holds %v, %v, want %v", state, target, data, err, want)
			}
			if err := l.CheckDisk(t.Context(), "web1", target, 4096, pattern+1, 8192); err == nil {
				t.Errorf("%s: %s passes for what it is not", state, target)
			}
		}
	}
	check("off", 1)
	first := hashDisk(t, l, "web1", "vda")
	if first == empty || first != hashDisk(t, l, "web1", "vdb") {
		t.Error("the hash does not tell what is on the disk, whatever its format")
	}
	_, err = l.Virsh(t.Context(), "start", "web1")
	must(t, err)
	if hashDisk(t, l, "web1", "vda") != first {
		t.Error("switching a guest on changes its disk's hash")
	}
	check("running", 2)
	_, err = l.Virsh(t.Context(), "suspend", "web1")
	must(t, err)
	check("paused", 3)
	last := hashDisk(t, l, "web1", "vda")
	must(t, l.KillQEMU("web1"))
	must(t, l.WaitState(within(t, 10*time.Second), "web1", "shut off"))
	if hashDisk(t, l, "web1", "vda") != last {
		t.Error("what was written and flushed is gone with QEMU")
	}
}

func TestHashIsRightInTheMiddleOfAMerge(t *testing.T) {
	l := startLab(t)
	spec := Spec{Name: "web1", Disks: []DiskSpec{{Target: "vda", SizeBytes: 128 << 20}}}
	startGuest(t, l, spec)
	must(t, l.WriteDisk(t.Context(), "web1", "vda", 0, 1, 8<<20))
	overlay := filepath.Join(l.ImageDir(), "overlay.qcow2")
	_, err := l.Virsh(t.Context(), "snapshot-create-as", "web1", "--no-metadata", "--disk-only",
		"--diskspec", "vda,file="+overlay)
	must(t, err)
	must(t, l.WriteDisk(t.Context(), "web1", "vda", 4<<20, 2, 96<<20))
	before := hashDisk(t, l, "web1", "vda")

	_, err = l.Virsh(t.Context(), "blockcommit", "web1", "vda", "--active", "--bandwidth", "1")
	must(t, err)
	during := hashDisk(t, l, "web1", "vda")
	var jobs []struct {
		Status string `json:"status"`
	}
	must(t, l.QMP(t.Context(), "web1", "query-block-jobs", nil, &jobs))
	if len(jobs) != 1 || jobs[0].Status != "running" {
		t.Fatalf("the merge was not in its middle: %v", jobs)
	}
	if during != before {
		t.Error("the guest sees another disk in the middle of a merge")
	}
	must(t, l.WriteDisk(t.Context(), "web1", "vda", 120<<20, 3, 4096))
	_, err = l.Virsh(t.Context(), "blockjob", "web1", "vda", "--abort")
	must(t, err)
	_, err = l.Virsh(t.Context(), "destroy", "web1")
	must(t, err)
	must(t, l.CheckDisk(t.Context(), "web1", "vda", 4<<20, 2, 96<<20))
	must(t, l.CheckDisk(t.Context(), "web1", "vda", 120<<20, 3, 4096))
	image, err := l.HashImage(t.Context(), overlay, "qcow2")
	if err != nil || image != hashDisk(t, l, "web1", "vda") {
		t.Errorf("overlay and disk differ, %v", err)
	}
}

func TestLinkedCloneReadsItsBase(t *testing.T) {
	l := startLab(t)
	base := filepath.Join(l.ImageDir(), "template.qcow2")
	_, err := l.DefineDomain(t.Context(), Spec{Name: "template", Disks: []DiskSpec{
		{Target: "vda", SizeBytes: 16 << 20, Path: base}}})
	must(t, err)
	must(t, l.WriteDisk(t.Context(), "template", "vda", 0, 5, 4096))
	startGuest(t, l, Spec{Name: "web1", Disks: []DiskSpec{
		{Target: "vda", SizeBytes: 16 << 20, Backing: base, BackingFormat: "qcow2"}}})
	must(t, l.CheckDisk(t.Context(), "web1", "vda", 0, 5, 4096))
	must(t, l.WriteDisk(t.Context(), "web1", "vda", 0, 6, 4096))
	must(t, l.CheckDisk(t.Context(), "template", "vda", 0, 5, 4096))
}
