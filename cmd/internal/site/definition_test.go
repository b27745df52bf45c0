package site_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vpssnapd/api"
	"vpssnapd/hypervisor/lab"
)

// TestPanelRenamesDisk (FAULTS.md row 38): a panel changes the bus of a disk, so that vda
// becomes sda with the base's path, or gives a disk's name to another, while the VPS is off.
// The definition is put right, the record notes the name, and the VPS starts on its data.
func TestPanelRenamesDisk(t *testing.T) {
	h := newHost(t, "")
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{
		{Target: "vda", SizeBytes: 4 << 20}, {Target: "vdb", SizeBytes: 4 << 20},
	}}, "shut off")
	before := h.virsh("dumpxml", "--inactive", "--security-info", "web1")
	h.must(h.Lab.WriteDisk(t.Context(), "web1", "vda", 0, 'a', 1<<20))
	h.take("web1", api.TakeRequest{})
	h.must(h.Lab.WriteDisk(t.Context(), "web1", "vda", 0, 'b', 1<<20))
	panels := filepath.Join(t.TempDir(), "web1.xml")
	other := strings.NewReplacer(
		"<target dev='vda' bus='virtio'/>", "<target dev='sda' bus='sata'/>",
		"<target dev='vdb' bus='virtio'/>", "<target dev='vda' bus='virtio'/>",
	).Replace(before)
	other = withoutAddresses(other)
	h.must(os.WriteFile(panels, []byte(other), 0o600))
	h.must(h.StopDaemon())
	h.virsh("define", panels)
	if _, err := h.Lab.Virsh(t.Context(), "start", "web1"); err == nil || !strings.Contains(err.Error(), "frozen base") {
		t.Fatalf("the start on the base was not refused with the reason: %v", err)
	}
	h.must(h.StartDaemon(t.Context()))
	h.eventually("the definition names the overlays", func() bool {
		return strings.Count(h.virsh("domblklist", "--inactive", "web1"), ".vpssnap-") == 2
	})
	h.virsh("start", "web1")
	h.must(h.Lab.CheckDisk(t.Context(), "web1", "sda", 0, 'b', 1<<20))
	restored, err := h.Client.Snapshot(t.Context(), "web1")
	h.must(err)
	op, err := h.Client.Restore(t.Context(), "web1", api.RestoreRequest{Confirm: restored.ID})
	h.done(op, err)
	h.must(h.Lab.CheckDisk(t.Context(), "web1", "sda", 0, 'a', 1<<20))
	h.delete("web1")
	h.clean("web1")
	h.must(h.Lab.CheckDisk(t.Context(), "web1", "sda", 0, 'a', 1<<20))
}

// withoutAddresses lets libvirt choose the places of the disks again.
func withoutAddresses(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if !strings.Contains(line, "<address ") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// TestEmulatorGone (FAULTS.md row 35): QEMU's program has another path after an upgrade of
// its package. A deletion of a VPS that runs has nothing to define and ends; where one must
// be defined, the operator reads what libvirt said.
func TestEmulatorGone(t *testing.T) {
	h := newHost(t, "")
	emulator := filepath.Join(h.Lab.ImageDir(), "qemu-old")
	h.must(os.Symlink("/usr/bin/qemu-system-x86_64", emulator))
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 4 << 20}}}, "shut off")
	own := filepath.Join(t.TempDir(), "web1.xml")
	text := strings.ReplaceAll(h.virsh("dumpxml", "--inactive", "--security-info", "web1"),
		"/usr/bin/qemu-system-x86_64", emulator)
	h.must(os.WriteFile(own, []byte(text), 0o600))
	h.virsh("define", own)
	h.virsh("start", "web1")
	h.take("web1", api.TakeRequest{})
	h.must(os.Remove(emulator))
	h.delete("web1")
	h.clean("web1")
	h.bring("web1", "shut off")
	op, err := h.Client.Take(t.Context(), "web1", api.TakeRequest{})
	h.must(err)
	op, err = h.Client.WaitOperation(t.Context(), op.ID, bootWithin)
	h.must(err)
	if op.Status != "failed" || op.Error == nil || !strings.Contains(op.Error.Detail, "qemu-old") ||
		strings.Contains(op.Error.Detail, "internal error") {
		t.Errorf("the take ended as %s: %+v", op.Status, op.Error)
	}
}
