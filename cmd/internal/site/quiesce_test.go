package site_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/hypervisor/lab"
)

// bootWithin is far more than a guest's boot takes, even on a machine that is busy.
const bootWithin = 2 * time.Minute

// boot defines and starts a VPS with an OS and waits for its agent.
func (h *host) boot(name string) {
	h.t.Helper()
	h.define(
		lab.Spec{Name: name, OS: true, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 128 << 20, Ext4: true}}},
		"running",
	)
	ctx, cancel := context.WithTimeout(h.t.Context(), bootWithin)
	defer cancel()
	h.must(h.Lab.WaitAgent(ctx, name))
}

// TestQuiesceWithoutAgent requires what a VPS without agent cannot do.
func TestQuiesceWithoutAgent(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 1 << 20}}}, "running")
	before := h.look("web1")
	h.failed(api.CodeGuestUnresponsive)(h.Client.Take(t.Context(), "web1", api.TakeRequest{Quiesce: "require"}))
	h.same("after a take that failed", "web1", before)
	h.clean("web1")
	h.take("web1", api.TakeRequest{Quiesce: "prefer"})
	if s, err := h.Client.Snapshot(t.Context(), "web1"); err != nil || s.Consistency != "crash" || s.FreezeMS != 0 {
		t.Errorf("the snapshot is %+v, %v", s, err)
	}
	h.bring("web1", "shut off")
	h.delete("web1")
	h.take("web1", api.TakeRequest{Quiesce: "require"})
	if s, err := h.Client.Snapshot(t.Context(), "web1"); err != nil || s.Consistency != "offline" {
		t.Errorf("the snapshot is %+v, %v", s, err)
	}
}

// slowFreeze (FAULTS row 29): the guest takes far longer to freeze than it may, and
// then does freeze: with nobody waiting any more, it must be thawed all the same.
func (h mortal) slowFreeze() {
	ctx, name := h.t.Context(), pointVPS
	h.must(h.Lab.GuestWriteFile(ctx, name, "/run/hook", []byte("[ $1 = thaw ] || sleep 20\n")))
	op := h.take(name, api.TakeRequest{Quiesce: "prefer"})
	if !strings.Contains(op.Result, "as after a power cut") || !strings.Contains(op.Result, "did not do it in time") {
		h.t.Errorf("the take says %q", op.Result)
	}
	if s, err := h.Client.Snapshot(ctx, name); err != nil || s.Consistency != "crash" || s.FreezeMS != 0 {
		h.t.Errorf("the snapshot is %+v, %v", s, err)
	}
	h.writes(name)
	h.delete(name)

	h.failed(api.CodeGuestUnresponsive)(h.Client.Take(ctx, name, api.TakeRequest{Quiesce: "require"}))
	h.clean(name)
	h.writes(name)
	h.must(h.Lab.GuestWriteFile(ctx, name, "/run/hook", nil))
}

// writes fails unless the guest's agent answers, thawed, and its recorder goes on.
func (h *host) writes(name string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), bootWithin)
	defer cancel()
	h.eventually("the guest can write", func() bool {
		return h.Lab.GuestWriteFile(ctx, name, "/mnt/vda/file", []byte("x")) == nil
	})
	last, err := h.Lab.Acknowledged(name)
	h.must(err)
	h.must(h.Lab.WaitAcknowledged(ctx, name, last+5))
}

// failed fails unless an operation was accepted and has failed with that code.
func (h *host) failed(code api.Code) func(api.Operation, error) {
	h.t.Helper()
	return func(op api.Operation, err error) {
		h.t.Helper()
		h.must(err)
		op, err = h.Client.WaitOperation(h.t.Context(), op.ID, time.Minute)
		h.must(err)
		if op.Status != "failed" || op.Error == nil || op.Error.Code != code {
			h.t.Errorf("%s ended as %s, %+v; want failed with %s", op.Kind, op.Status, op.Error, code)
		}
	}
}
