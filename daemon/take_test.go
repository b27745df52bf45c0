package daemon_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// dieAt cuts the daemon's hands off at a point of a call on the host, and ends
// it there. Before that strike is called.
func (w *world) dieAt(point string, begin func() (vps.Operation, error), strike func()) vps.Operation {
	w.t.Helper()
	struck := make(chan struct{})
	var once atomic.Bool
	host := w.host
	host.SetHook(func(ctx context.Context, at, _ string) error {
		if at != point || once.Swap(true) {
			return nil
		}
		strike()
		host.Cut()
		close(struck)
		<-ctx.Done()
		return ctx.Err()
	})
	op, err := begin()
	w.must(err)
	select {
	case <-struck:
	case <-time.After(10 * time.Second):
		w.t.Fatalf("%s was not reached", point)
	}
	w.crash()
	return op
}

// TestLibvirtForgetsTheSwitch: libvirtd died between QEMU's switch and its own
// note of it, so its definition names the base, but the guest, which happens to
// write nothing, has the overlay open. Unlinking it would lose all that the
// guest writes from now on.
func TestLibvirtForgetsTheSwitch(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.write(id, "vda", 0, 'a')
	op := w.dieAt("SwitchToOverlays.half", func() (vps.Operation, error) {
		return w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
	}, func() {
		w.must(w.host.Edit(id, func(d *hypervisor.Domain) {
			disk := &d.Disks[0]
			disk.Path, disk.Format, disk.Chain = d.PersistentDisks[0].Path, d.PersistentDisks[0].Format, nil
		}))
	})
	w.open()
	op = w.ended(op, nil)
	if op.Status != vps.StatusNeedsAttention || op.Error.Code != vps.CodeVPSChanged {
		t.Fatalf("%s: %+v", op.Status, op.Error)
	}
	if files := w.files(); len(files) != 1 {
		t.Fatalf("the overlay that QEMU writes to is gone: %v", files)
	}
	w.must(w.host.KillGuest(id)) // as the remedy says
	_, err := w.daemon.Operations.ResumeOperation(ctx, op.ID, operator)
	if op = w.ended(op, err); op.Status != vps.StatusFailed {
		t.Fatalf("%s: %+v", op.Status, op.Error)
	}
	w.sees(id, "vda", 0, 'a')
	w.clean(id)
}

// TestSwitchStillUnderWay: libvirt works on a switch that we gave up waiting
// for, and makes everybody else wait. Until it has ended no overlay is removed.
func TestSwitchStillUnderWay(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.host.FailNext("SwitchToOverlays.before", fmt.Errorf("%w: no answer", hypervisor.ErrUnavailable))
	for range 3 {
		w.host.FailNext("SetMetadata.before", fmt.Errorf("%w: another call holds the domain", hypervisor.ErrBusy))
	}
	var tooEarly atomic.Bool
	var asked atomic.Int32
	w.host.SetHook(func(_ context.Context, at, _ string) error {
		switch {
		case at == "SetMetadata.after":
			asked.Add(1)
		case at == "Remove.before" && asked.Load() == 0:
			tooEarly.Store(true)
		}
		return nil
	})
	if op := w.ended(w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)); op.Status != vps.StatusFailed {
		t.Fatalf("%s: %+v", op.Status, op.Error)
	}
	if tooEarly.Load() {
		t.Error("an overlay was removed while the switch may have been under way")
	}
	w.clean(id)
}

// TestWrittenOverlayIsNeverRemoved: the guest wrote to the overlay and died with
// the daemon before libvirt noted the switch. A clock that was set back does not
// make it look unwritten.
func TestWrittenOverlayIsNeverRemoved(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.write(id, "vda", 0, 'a')
	op := w.dieAt("SwitchToOverlays.half", func() (vps.Operation, error) {
		return w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{Quiesce: vps.QuiesceNever}, operator)
	}, func() {
		overlay := filepath.Join(w.host.ImageDir(), w.files()[0])
		made, err := os.Stat(overlay)
		w.must(err)
		w.write(id, "vda", 4096, 'b')
		w.must(os.Chtimes(overlay, time.Time{}, made.ModTime().Add(-time.Hour)))
		base := filepath.Join(w.host.ImageDir(), "web1-vda.qcow2")
		w.must(os.Chtimes(base, time.Time{}, made.ModTime().Add(-2*time.Hour)))
	})
	w.must(w.host.KillGuest(id))
	w.open()
	w.done(op, nil)
	w.sees(id, "vda", 4096, 'b')
	w.delete(id)
	w.sees(id, "vda", 4096, 'b')
	w.clean(id)
}

// TestNeverAskedIsNeverThawed: a guest without an answering agent was not asked
// to freeze, so nothing is owed to it.
func TestNeverAskedIsNeverThawed(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.must(w.host.SetAgent(id, fake.AgentDown))
	var thaws atomic.Int32
	w.host.SetHook(func(_ context.Context, at, _ string) error {
		if strings.HasPrefix(at, "Thaw.before") {
			thaws.Add(1)
		}
		return nil
	})
	op := w.ended(w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{Quiesce: vps.QuiesceRequire}, operator))
	if op.Status != vps.StatusFailed || op.Error.Code != vps.CodeGuestUnresponsive {
		t.Fatalf("%s: %+v", op.Status, op.Error)
	}
	w.take(id, vps.TakeRequest{})
	w.close()
	w.open()
	if n := thaws.Load(); n != 0 {
		t.Errorf("thawed %d times", n)
	}
}

// TestNoGuestStaysFrozenWhenTheDaemonStops: stopped between freeze and switch.
func TestNoGuestStaysFrozenWhenTheDaemonStops(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	frozen := make(chan struct{})
	w.host.SetHook(func(ctx context.Context, at, _ string) error {
		if at == "SwitchToOverlays.before" {
			close(frozen)
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	})
	op, err := w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
	w.must(err)
	<-frozen
	w.close()
	if g, err := w.host.Guest(id); err != nil || g.Frozen || g.Freezes != 1 {
		t.Errorf("after the stop: %+v, %v", g, err)
	}
	w.open()
	if op = w.ended(op, nil); op.Status != vps.StatusFailed {
		t.Errorf("%s: %+v", op.Status, op.Error)
	}
	w.clean(id)
}

// TestLateThawDoesNotSpoilTheNextFreeze: while an earlier thaw is still owed, a
// guest is not frozen again.
func TestLateThawDoesNotSpoilTheNextFreeze(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.must(w.host.SetAgent(id, fake.AgentSilent))
	if op := w.take(id, vps.TakeRequest{}); !strings.Contains(op.Result, "not frozen") {
		t.Errorf("result %q", op.Result)
	}
	w.delete(id)
	if op := w.take(id, vps.TakeRequest{}); !strings.Contains(op.Result, "earlier thaw") {
		t.Errorf("result %q", op.Result)
	}
	w.must(w.host.SetAgent(id, fake.AgentAnswers))
	w.delete(id)
	w.eventually("the guest can be frozen again", func() bool {
		op := w.take(id, vps.TakeRequest{})
		w.delete(id)
		return strings.Contains(op.Result, "frozen for")
	})
}

// TestTheAgentsAnswerIsTold (FAULTS.md row 40): a guest that froze nothing is not called
// frozen, and a refusal is not called a late answer.
func TestTheAgentsAnswerIsTold(t *testing.T) {
	for mind, why := range map[fake.AgentMind]string{
		fake.AgentEmpty:    "found no file system to freeze",
		fake.AgentDisabled: "freezing is disabled in the guest agent",
		fake.AgentRefuses:  "the guest agent refused",
		fake.AgentSilent:   "did not do it in time",
	} {
		t.Run(string(mind), func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps("web1", hypervisor.Running)
			w.must(w.host.SetAgent(id, mind))
			op := w.ended(w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{Quiesce: vps.QuiesceRequire}, operator))
			if op.Status != vps.StatusFailed || op.Error.Code != vps.CodeGuestUnresponsive ||
				!strings.Contains(op.Error.Detail, why) {
				t.Errorf("required, it ended as %s: %+v", op.Status, op.Error)
			}
			id = w.vps("web2", hypervisor.Running)
			w.must(w.host.SetAgent(id, mind))
			op = w.take(id, vps.TakeRequest{Quiesce: vps.QuiescePrefer})
			if s := w.snapshot(id); !strings.Contains(op.Result, why) || s.Consistency != vps.ConsistencyCrash || s.FreezeMS != 0 {
				t.Errorf("preferred, it says %q of %+v", op.Result, s)
			}
		})
	}
}

// TestDiskThatIsLeftOut (FAULTS row 48): a disk whose definition says snapshot='no' is left
// out, and that is said.
func TestDiskThatIsLeftOut(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps(
		"web1", hypervisor.Running, hypervisor.Disk{Target: "vda", SizeBytes: 8 * mib},
		hypervisor.Disk{Target: "vdb", SizeBytes: 8 * mib},
	)
	w.must(
		w.host.Edit(id, func(d *hypervisor.Domain) { d.Disks[1].SnapshotNo, d.PersistentDisks[1].SnapshotNo = true, true }),
	)
	w.take(id, vps.TakeRequest{})
	if disks := w.snapshot(id).Disks; len(disks) != 1 || disks[0].Target != "vda" {
		t.Errorf("the snapshot covers %+v", disks)
	}
	v, err := w.daemon.Overview.ShowVPS(ctx, id)
	w.must(err)
	if left := v.Disks[1]; left.Included || left.Refused || !strings.Contains(left.Reason.String(), "snapshot='no'") {
		t.Errorf("vdb is shown as %+v", left)
	}
	w.write(id, "vda", 0, 'a')
	w.write(id, "vdb", 0, 'b')
	w.restore(id)
	w.sees(id, "vda", 0, 0)
	w.sees(id, "vdb", 0, 'b')
	w.delete(id)
	w.clean(id)
}
