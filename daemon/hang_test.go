package daemon_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// openHung starts a daemon on a host whose images do not answer.
func (w *world) openHung() (answer func()) {
	w.t.Helper()
	w.config = func(c *daemon.Config) {
		host := c.Host.(*fake.Host)
		answer = host.HangDirectory(host.ImageDir())
	}
	w.open()
	return answer
}

// TestFoundOnAHungMount (FAULTS row 46): what lies on a mount that does not answer is not
// missing. Whoever finds a snapshot there makes no record of it, least of all a broken
// one; it gets its record when the mount answers again, with all that it had.
func TestFoundOnAHungMount(t *testing.T) {
	for name, state := range map[string]hypervisor.State{
		"running": hypervisor.Running, "paused": hypervisor.Paused, "off": hypervisor.Off,
	} {
		found := func(t *testing.T) (w *world, id string) {
			w = newWorld(t, nil)
			id = w.vps("web1", state)
			w.write(id, "vda", 0, 'a')
			w.take(id, vps.TakeRequest{})
			w.restore(id) // which can be undone
			w.loseRecord()
			return w, id
		}
		whole := func(t *testing.T, w *world, id string) {
			if s := w.snapshot(id); s.State != vps.SnapshotAvailable || s.UndoUntil == nil {
				t.Errorf("recorded %+v", s)
			}
			w.finds()
		}
		t.Run("adopted "+name, func(t *testing.T) {
			w, id := found(t)
			answer := w.openHung()
			_, err := w.daemon.Doctor.Repair(ctx, operator)
			w.must(err)
			if s, err := w.daemon.Snapshots.Snapshot(ctx, id); vps.CodeOf(err) != vps.CodeNotFound {
				t.Errorf("recorded %+v (%v)", s, err)
			}
			answer()
			if state == hypervisor.Off {
				w.repairs() // who is off is adopted when an operator wants it
			}
			w.adopted(id)
			whole(t, w, id)
		})
		t.Run("rebuilt "+name, func(t *testing.T) {
			w, id := found(t)
			host, err := fake.Open(w.hostDir)
			w.must(err)
			defer host.Close()
			host.HangDirectory(host.ImageDir())
			done, err := daemon.Rebuild(
				ctx, daemon.Config{Host: host, StateDir: w.stateDir, Logger: slog.New(slog.NewTextHandler(w.log, nil))},
			)
			w.must(err)
			if len(done.Snapshots) != 1 || done.Snapshots[0].Recorded ||
				!strings.Contains(done.Snapshots[0].Why, "does not answer") {
				t.Errorf("rebuilt %+v", done.Snapshots)
			}
			w.open()
			if state == hypervisor.Off {
				w.repairs()
			}
			w.adopted(id)
			whole(t, w, id)
		})
	}
}

// TestAdoptionOfEachFile: no file of a snapshot may be taken for missing, whichever hangs.
func TestAdoptionOfEachFile(t *testing.T) {
	var hung atomic.Pointer[string]
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off)
	w.take(id, vps.TakeRequest{})
	w.restore(id)
	disk := w.disk(id)
	w.loseRecord()
	w.open()
	w.host.SetHook(func(_ context.Context, point, subject string) error {
		if path := hung.Load(); path != nil && *path == point+subject {
			return &hypervisor.StorageError{Dir: w.host.ImageDir()}
		}
		return nil
	})
	for _, at := range []string{
		"Stat.before" + disk.Base, "Stat.before" + disk.Overlay, "Inspect.before" + disk.Overlay,
		"Stat.before" + disk.Undo, "Inspect.before" + disk.Undo,
	} {
		hung.Store(&at)
		_, err := w.daemon.Doctor.Repair(ctx, operator)
		w.must(err)
		if s, err := w.daemon.Snapshots.Snapshot(ctx, id); vps.CodeOf(err) != vps.CodeNotFound {
			t.Fatalf("%s: recorded %+v (%v)", at, s, err)
		}
	}
	hung.Store(nil)
	w.repairs()
	if s := w.snapshot(id); s.State != vps.SnapshotAvailable || s.UndoUntil == nil {
		t.Errorf("recorded %+v", s)
	}
}

// TestRefusedOnAHungMount: who asks for something is told which storage does not answer.
func TestRefusedOnAHungMount(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	answer := w.host.HangDirectory(w.host.ImageDir())
	_, err := w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
	w.refuses(vps.CodeHypervisorUnavailable, err)
	var told *vps.Error
	if !errors.As(err, &told) || !strings.Contains(told.Detail, "the storage "+w.host.ImageDir()+" does not answer") ||
		told.Remedy == "" {
		t.Errorf("told %+v", told)
	}
	answer()
	w.take(id, vps.TakeRequest{})
	w.finds()
}

// TestWorkOnAHungMount: an operation that meets one waits, whichever call finds it out, and
// goes on when the mount answers again. A take before its moment is undone then, and says
// why.
func TestWorkOnAHungMount(t *testing.T) {
	for name, c := range map[string]struct {
		state  hypervisor.State
		before bool // there is a snapshot; a take, without, is over with its moment
		begin  func(w *world, id string) (vps.Operation, error)
		points []string
	}{
		"take": {hypervisor.Running, false, func(w *world, id string) (vps.Operation, error) {
			return w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
		}, []string{"CreateOverlay.before", "CreateOverlay.half", "CreateOverlay.after"}},
		"restore": {hypervisor.Off, true, func(w *world, id string) (vps.Operation, error) {
			return w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
		}, []string{"CreateOverlay.before", "CreateOverlay.after", "Exchange.before", "Exchange.after"}},
		"delete running": {hypervisor.Running, true, func(w *world, id string) (vps.Operation, error) {
			return w.daemon.Snapshots.Delete(ctx, id, operator)
		}, []string{"Remove.before", "Remove.after"}},
		"delete off": {hypervisor.Off, true, func(w *world, id string) (vps.Operation, error) {
			return w.daemon.Snapshots.Delete(ctx, id, operator)
		}, []string{"MergeOffline.before", "MergeOffline.half", "MergeOffline.after", "Remove.before", "Remove.after"}},
	} {
		for _, point := range c.points {
			t.Run(name+" at "+point, func(t *testing.T) {
				w := newWorld(t, nil)
				id := w.vps("web1", c.state)
				w.write(id, "vda", 0, 'a')
				if c.before {
					w.take(id, vps.TakeRequest{})
				}
				hung := make(chan func(), 1)
				w.once(point, func() { hung <- w.host.HangDirectory(w.host.ImageDir()) })
				op, err := c.begin(w, id)
				w.must(err)
				answer := <-hung
				w.eventually("the reason is told", func() bool {
					return strings.Contains(w.log.String(), "the storage "+w.host.ImageDir()+" does not answer")
				})
				now, err := w.daemon.Operations.Operation(ctx, op.ID)
				w.must(err)
				if now.Status.Final() || now.Status == vps.StatusNeedsAttention {
					t.Errorf("it ended as %s: %+v", now.Status, now.Error)
				}
				answer()
				op, err = w.daemon.Operations.WaitOperation(ctx, op.ID, time.Minute)
				w.must(err)
				switch {
				case c.before && op.Status != vps.StatusSucceeded:
					t.Errorf("it ended as %s: %+v", op.Status, op.Error)
				case !c.before && (op.Status != vps.StatusFailed || !strings.Contains(op.Error.Detail, "storage")):
					t.Errorf("it ended as %s: %+v", op.Status, op.Error)
				case !c.before:
					w.clean(id)
					w.take(id, vps.TakeRequest{})
				}
				w.sees(id, "vda", 0, 'a')
				w.finds()
			})
		}
	}
}
