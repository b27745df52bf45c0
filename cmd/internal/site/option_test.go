package site_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/hypervisor/lab"
)

// TestOptionEnds lets the paid time of options run out, with the daemon up and
// down: the snapshot lives through the grace, then it and the option go.
func TestOptionEnds(t *testing.T) {
	t.Parallel()
	h := newHost(t, "[snapshot]\ngrace = \"4s\"\nundo_keep = \"1s\"\n")
	ctx := t.Context()
	for _, name := range []string{"web1", "web2", "web3"} {
		h.define(lab.Spec{Name: name, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "running")
		h.take(name, api.TakeRequest{})
		h.must(h.Lab.WriteDisk(ctx, name, "vda", 0, 'b', 1<<20))
	}
	before := h.virsh("domblklist", "web1")

	h.endSoon("web1")
	h.eventually("web1 is in its grace", func() bool {
		o, err := h.Client.Option(ctx, "web1")
		return err == nil && o.State == "grace" && o.GraceUntil != nil
	})
	h.refused(api.CodeOptionRequired, "")(h.Client.Take(ctx, "web1", api.TakeRequest{Replace: true}))
	if v, err := h.Client.VPS(ctx, "web1"); err != nil || !v.Actions.Restore.Allowed || !v.Actions.Delete.Allowed {
		t.Errorf("in the grace: %+v, %v", v.Actions, err)
	}
	h.released("web1")
	if after := h.virsh("domblklist", "web1"); after == before || h.state("web1") != "running" {
		t.Errorf("web1 is %s on\n%s", h.state("web1"), after)
	}
	h.must(h.Lab.CheckDisk(ctx, "web1", "vda", 0, 'b', 1<<20))
	h.told("web1", "The snapshot option is released.")

	end := h.endSoon("web2")
	h.must(h.StopDaemon())
	h.eventually("the grace of web2 is over", func() bool { return time.Now().After(end.Add(4 * time.Second)) })
	h.must(h.StartDaemon(ctx))
	h.released("web2")

	if _, err := h.Client.CancelOption(ctx, "web3", true); err != nil {
		t.Error(err)
	}
	h.released("web3")
	files, err := h.OurFiles()
	h.must(err)
	if len(files) > 0 {
		t.Errorf("files left: %v", files)
	}
}

// endSoon lets an option end in a second.
func (h *host) endSoon(name string) time.Time {
	h.t.Helper()
	end := time.Now().Add(time.Second)
	_, err := h.Client.PutOption(h.t.Context(), name, api.OptionOrder{State: "active", OrderRef: "order-1", EndsAt: &end})
	h.must(err)
	return end
}

// released waits until the snapshot is deleted and the option over.
func (h *host) released(name string) {
	h.t.Helper()
	h.eventually("the option of "+name+" is released", func() bool {
		_, err1 := h.Client.Option(h.t.Context(), name)
		_, err2 := h.Client.Snapshot(h.t.Context(), name)
		return client.CodeOf(err1) == api.CodeNotFound && client.CodeOf(err2) == api.CodeNotFound
	})
}

// told fails unless the journal of a VPS has that text.
func (h *host) told(name, text string) {
	h.t.Helper()
	list, err := h.Client.Messages(h.t.Context(), name, api.ListMessagesParams{})
	h.must(err)
	var all []string
	for _, m := range list.Messages {
		if strings.Contains(m.Text, text) {
			return
		}
		all = append(all, m.Text)
	}
	h.t.Errorf("the journal of %s does not say %q:\n%s", name, text, strings.Join(all, "\n"))
}

// TestUndoEnds lets the time to undo a restore run out.
func TestUndoEnds(t *testing.T) {
	t.Parallel()
	h := newHost(t, "[snapshot]\nundo_keep = \"1s\"\n")
	ctx := t.Context()
	h.define(lab.Spec{Name: "web1", UEFI: true, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "paused")
	h.take("web1", api.TakeRequest{})
	kept, err := h.OurFiles()
	h.must(err)
	h.restore("web1")
	h.eventually("the undo is given up", func() bool {
		files, err := h.OurFiles()
		return err == nil && len(files) == len(kept)
	})
	h.eventually("the undo is refused", func() bool {
		_, err := h.Client.UndoRestore(ctx, "web1")
		return client.CodeOf(err) == api.CodeNotFound
	})
	h.told("web1", "can no longer be undone")
	if s, err := h.Client.Snapshot(ctx, "web1"); err != nil || s.UndoUntil != nil {
		t.Errorf("the snapshot is %+v, %v", s, err)
	}
	if _, err := os.Stat(h.path("web1", "vda")); err != nil {
		t.Error(err)
	}
	h.restore("web1")
	h.delete("web1")
	h.clean("web1")
}
