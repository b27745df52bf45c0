package site_test

import (
	"fmt"
	"testing"

	"vpssnapd/api"
	"vpssnapd/hypervisor/lab"
)

// TestCancel cancels a delete that waits for another merge: nothing is lost. The
// merge that runs can no longer be cancelled, and the answer says so.
func TestCancel(t *testing.T) {
	t.Parallel()
	h := newHost(t, "[snapshot]\nmerge_limit = 1\n[merge]\nbandwidth = \"8 MiB\"\n")
	ctx := t.Context()
	const much = 128 << 20
	for _, name := range []string{"web1", "web2"} {
		h.define(lab.Spec{Name: name, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: much}}}, "running")
		h.must(h.Lab.WriteDisk(ctx, name, "vda", 0, 'a', 1<<20))
		h.take(name, api.TakeRequest{})
	}
	h.must(h.Lab.WriteDisk(ctx, "web1", "vda", 0, 'b', much))
	h.must(h.Lab.WriteDisk(ctx, "web2", "vda", 0, 'b', 1<<20))

	first, err := h.Client.Delete(ctx, "web1")
	h.must(err)
	h.at(first, "merge")
	// A stopped QEMU holds its merge up for as long as this test likes.
	h.must(h.Lab.StopQEMU("web1"))
	second, err := h.Client.Delete(ctx, "web2")
	h.must(err)
	if op := h.at(second, "queue"); !op.Cancellable {
		t.Error("a delete that waits cannot be cancelled")
	}
	_, err = h.Client.CancelOperation(ctx, second.ID)
	h.must(err)
	h.eventually("the second delete is cancelled", func() bool {
		op, err := h.Client.Operation(ctx, second.ID)
		return err == nil && op.Status == "cancelled"
	})
	if op, err := h.Client.Operation(ctx, first.ID); err != nil || op.Status != "running" || op.Cancellable {
		t.Fatalf("the merge that was held up is %+v, %v", op, err)
	}
	h.refused(api.CodeVPSChanged, "cannot be taken back, only finished")(h.Client.CancelOperation(ctx, first.ID))
	h.must(h.Lab.ContinueQEMU("web1"))
	h.done(first, nil)
	h.must(h.Lab.CheckDisk(ctx, "web1", "vda", 0, 'b', much))
	h.restore("web2")
	h.must(h.Lab.CheckDisk(ctx, "web2", "vda", 0, 'a', 1<<20))
	h.delete("web2")
	h.clean("web1")
	h.clean("web2")
}

// at waits until an operation is at a step.
func (h *host) at(op api.Operation, step string) api.Operation {
	h.t.Helper()
	h.eventually(fmt.Sprintf("the %s of %s is at step %s", op.Kind, op.VPSName, step), func() bool {
		var err error
		op, err = h.Client.Operation(h.t.Context(), op.ID)
		return err == nil && op.Step == step
	})
	return op
}
