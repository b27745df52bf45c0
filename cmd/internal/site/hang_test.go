package site_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/hypervisor/lab"
)

// slowMerges makes a merge of what merging writes last for minutes, unless hurry is called.
const slowMerges = "[merge]\nbandwidth = \"32 KiB\"\nhelp = false\n"

// hurry takes the limit off the merge of a VPS.
func (h *host) hurry(name string) {
	h.t.Helper()
	h.virsh("blockjob", name, "vda", "--bytes", "--bandwidth", "0")
}

// merging gives a VPS a snapshot and begins to delete it.
func (h *host) merging(name string) api.Operation {
	h.t.Helper()
	h.define(lab.Spec{Name: name, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "running")
	h.take(name, api.TakeRequest{})
	h.must(h.Lab.WriteDisk(h.t.Context(), name, "vda", 0, 'b', 4<<20))
	op, err := h.Client.Delete(h.t.Context(), name)
	h.must(err)
	h.eventually("the merge of "+name+" runs", func() bool {
		now, err := h.Client.Operation(h.t.Context(), op.ID)
		return err == nil && now.Step == "merge" && now.Progress.TotalBytes > 0
	})
	return op
}

// TestQEMUsHang stops the QEMUs of VPSes that merge, as many as may merge at a
// time, and of one that does nothing. Another VPS is served as ever, and when the
// QEMUs go on, so do their operations.
func TestQEMUsHang(t *testing.T) {
	t.Parallel()
	h := newHost(t, slowMerges)
	ctx := t.Context()
	for _, name := range []string{"idle", "well"} {
		h.define(lab.Spec{Name: name, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "running")
	}
	stuck := []api.Operation{h.merging("stuck1"), h.merging("stuck2")}
	names := []string{"stuck1", "stuck2", "idle"}
	for _, name := range names {
		h.must(h.Lab.StopQEMU(name))
	}
	for _, name := range names {
		v, err := h.Client.VPS(ctx, name)
		h.must(err)
		if v.State != "unknown" || v.Actions.Take.Allowed || v.Actions.Take.Code != api.CodeHypervisorUnavailable {
			t.Errorf("%s hangs and is shown as %s, %+v", name, v.State, v.Actions.Take)
		}
	}
	_, err := h.Client.Take(ctx, "idle", api.TakeRequest{})
	h.refused(api.CodeHypervisorUnavailable, "does not answer")(api.Operation{}, err)
	h.take("well", api.TakeRequest{})
	h.restore("well")
	h.delete("well") // which needs a place among the merges
	list, err := h.Client.ListVPS(ctx)
	h.must(err)
	for _, v := range list {
		if hangs := v.Name != "well"; hangs != (v.State == "unknown") {
			t.Errorf("%s is listed as %s", v.Name, v.State)
		}
	}
	for i, op := range stuck {
		if now, err := h.Client.Operation(ctx, op.ID); err != nil || now.Status != "running" {
			t.Errorf("the operation of stuck%d is %s: %v", i+1, now.Status, err)
		}
	}
	for _, name := range names {
		h.must(h.Lab.ContinueQEMU(name))
	}
	for _, op := range stuck {
		h.hurry(op.VPSName)
		h.done(op, nil)
		h.must(h.Lab.CheckDisk(ctx, op.VPSName, "vda", 0, 'b', 4<<20))
	}
	h.take("idle", api.TakeRequest{})
	h.delete("idle")
	for _, name := range append(names, "well") {
		h.clean(name)
	}
}

// TestLibvirtdHangs stops libvirtd in the middle of a merge. What the record
// knows can be read meanwhile, and the operation goes on when libvirtd does.
func TestLibvirtdHangs(t *testing.T) {
	t.Parallel()
	h := newHost(t, slowMerges)
	op := h.merging("web1")
	h.must(h.Lab.StopLibvirtd())
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err1 := h.Client.Operation(ctx, op.ID)
	_, err2 := h.Client.Snapshot(ctx, "web1")
	_, err3 := h.Client.Option(ctx, "web1")
	_, err4 := h.Client.Host(ctx)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Errorf("with libvirtd stopped: %v", err)
	}
	h.must(h.Lab.ContinueLibvirtd())
	h.hurry("web1")
	h.done(op, nil)
	h.must(h.Lab.CheckDisk(t.Context(), "web1", "vda", 0, 'b', 4<<20))
	h.clean("web1")
}
