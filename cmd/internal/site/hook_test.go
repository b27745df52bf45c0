package site_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vpssnapd/api"
	"vpssnapd/hypervisor/lab"
)

// TestPanelDefinesAnew: a panel defines a VPS from its own database, with the
// disk of before the snapshot. While the daemon is there the definition is put
// right at once; while it is not, the hook refuses the start, and says why.
func TestPanelDefinesAnew(t *testing.T) {
	h := newHost(t, "")
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", Format: "qcow2", SizeBytes: 16 << 20}}}, "shut off")
	panels := filepath.Join(t.TempDir(), "web1.xml")
	h.must(os.WriteFile(panels, []byte(h.virsh("dumpxml", "--inactive", "--security-info", "web1")), 0o600))
	h.must(h.Lab.WriteDisk(t.Context(), "web1", "vda", 0, 'a', 1<<20))
	h.take("web1", api.TakeRequest{})
	h.must(h.Lab.WriteDisk(t.Context(), "web1", "vda", 1<<20, 'b', 1<<20))
	want, err := h.Lab.HashDisk(t.Context(), "web1", "vda")
	h.must(err)
	base := h.Lab.ImageDir() + "/web1-vda.qcow2"
	before, err := h.Lab.HashImage(t.Context(), base, "qcow2")
	h.must(err)

	h.virsh("define", panels)
	h.eventually("the definition names the overlay again", func() bool {
		return strings.Contains(h.virsh("domblklist", "--inactive", "web1"), ".vpssnap-")
	})

	h.must(h.StopDaemon())
	h.virsh("define", panels)
	_, err = h.Lab.Virsh(t.Context(), "start", "web1")
	if err == nil || !strings.Contains(err.Error(), "frozen base of its snapshot") {
		t.Fatalf("the start on the base was not refused with the reason: %v", err)
	}
	h.must(h.StartDaemon(t.Context()))
	h.eventually("the definition names the overlay again", func() bool {
		return strings.Contains(h.virsh("domblklist", "--inactive", "web1"), ".vpssnap-")
	})
	h.virsh("start", "web1")
	got, err := h.Lab.HashDisk(t.Context(), "web1", "vda")
	h.must(err)
	if got != want {
		t.Error("the VPS does not see what it had written")
	}
	if after, err := h.Lab.HashImage(t.Context(), base, "qcow2"); err != nil || after != before {
		t.Errorf("the base was written to (%v)", err)
	}
}

// TestStartInMidMerge: a customer starts the VPS while its deletion copies with it
// off. It starts at once, and the deletion goes on with it on.
func TestStartInMidMerge(t *testing.T) {
	h := newHost(t, "[merge]\nbandwidth = \"1 MiB\"\n")
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", Format: "qcow2", SizeBytes: 16 << 20}}}, "shut off")
	h.take("web1", api.TakeRequest{})
	h.must(h.Lab.WriteDisk(t.Context(), "web1", "vda", 0, 'a', 8<<20))
	want, err := h.Lab.HashDisk(t.Context(), "web1", "vda")
	h.must(err)
	op, err := h.Client.Delete(t.Context(), "web1")
	h.must(err)
	h.eventually("the merge copies", func() bool {
		now, err := h.Client.Operation(t.Context(), op.ID)
		return err == nil && now.Progress.DoneBytes > 0
	})
	h.virsh("start", "web1")
	if now, err := h.Client.Operation(t.Context(), op.ID); err != nil || now.Status != api.OperationStatusRunning {
		t.Fatalf("the deletion was over before the start: %+v, %v", now, err)
	}
	h.done(op, nil)
	got, err := h.Lab.HashDisk(t.Context(), "web1", "vda")
	h.must(err)
	if got != want {
		t.Error("the VPS does not see what it had written")
	}
}
