package site_test

import (
	"testing"

	"vpssnapd/api"
	"vpssnapd/hypervisor/lab"
)

// TestPowerAfter restores in every state, with every wish for afterwards.
func TestPowerAfter(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "paused")
	h.take("web1", api.TakeRequest{})
	if got := h.state("web1"); got != "paused" {
		t.Errorf("a paused VPS is %s after the take", got)
	}
	s, err := h.Client.Snapshot(t.Context(), "web1")
	h.must(err)
	for _, c := range []struct {
		was   string
		after api.RestoreRequestPowerAfter
		want  string
	}{
		{"running", "previous", "running"}, {"running", "running", "running"}, {"running", "off", "shut off"},
		{"paused", "", "paused"}, {"paused", "running", "running"}, {"paused", "off", "shut off"},
		{"shut off", "previous", "shut off"}, {"shut off", "running", "running"}, {"shut off", "off", "shut off"},
	} {
		h.bring("web1", c.was)
		h.done(h.Client.Restore(t.Context(), "web1", api.RestoreRequest{Confirm: s.ID, PowerAfter: c.after}))
		if got := h.state("web1"); got != c.want {
			t.Errorf("restored when %s with power_after %q: the VPS is %s, want %s", c.was, c.after, got, c.want)
		}
	}
	h.delete("web1")
	h.clean("web1")
}

// bring brings a VPS into a state, whatever it is in.
func (h *host) bring(name, state string) {
	h.t.Helper()
	was := h.state(name)
	if was == state {
		return
	}
	if was != "shut off" {
		h.virsh("destroy", name)
	}
	switch state {
	case "running":
		h.virsh("start", name)
	case "paused":
		h.virsh("start", "--paused", name)
	}
}
