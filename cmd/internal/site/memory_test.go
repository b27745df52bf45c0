package site_test

import (
	"strings"
	"testing"

	"vpssnapd/api"
	"vpssnapd/hypervisor/lab"
)

// TestSavedMemory has VPS whose memory somebody saved to disk: it belongs to
// the disks as they were then, and must never meet others.
func TestSavedMemory(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	ctx := t.Context()
	saved := func() bool { return strings.Contains(h.virsh("dominfo", "web1"), "Managed save:   yes") }
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "running")

	h.virsh("managedsave", "web1")
	h.refused(api.CodeUnsupportedDisk, "managed save")(h.Client.Take(ctx, "web1", api.TakeRequest{}))
	h.virsh("start", "web1")

	h.must(h.Lab.WriteDisk(ctx, "web1", "vda", 0, 'a', 1<<20))
	h.take("web1", api.TakeRequest{})
	h.must(h.Lab.WriteDisk(ctx, "web1", "vda", 0, 'b', 1<<20))
	h.virsh("managedsave", "web1")
	h.refused(api.CodeVPSChanged, "managed save")(h.Client.Delete(ctx, "web1"))
	op := h.restore("web1")
	if saved() {
		t.Error("the old memory is still there")
	}
	if !strings.Contains(op.Result, "saved memory") {
		t.Errorf("nothing is said of the saved memory: %s", op.Result)
	}
	h.virsh("start", "web1")
	if paths := h.virsh("domblklist", "web1"); !strings.Contains(paths, ".vpssnap-") {
		t.Errorf("the VPS runs on\n%s", paths)
	}
	h.must(h.Lab.CheckDisk(ctx, "web1", "vda", 0, 'a', 1<<20))
	h.delete("web1")
	h.clean("web1")
}
