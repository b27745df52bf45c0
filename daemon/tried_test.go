package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// twoDisks is a VPS with two disks and, if it is wanted, a snapshot, since when it has written.
func (w *world) twoDisks(state hypervisor.State, taken bool) string {
	id := w.vps("web1", state,
		hypervisor.Disk{Target: "vda", SizeBytes: 8 * mib}, hypervisor.Disk{Target: "vdb", SizeBytes: 8 * mib})
	w.must(w.host.Edit(id, func(d *hypervisor.Domain) { d.NVRAM = w.nvram() }))
	for _, disk := range []string{"vda", "vdb"} {
		w.write(id, disk, 0, 'a')
	}
	if taken {
		w.take(id, vps.TakeRequest{})
		for _, disk := range []string{"vda", "vdb"} {
			w.write(id, disk, 0, 'b')
		}
	}
	return id
}

func (w *world) both(id string, pattern byte) {
	w.t.Helper()
	w.sees(id, "vda", 0, pattern)
	w.sees(id, "vdb", 0, pattern)
}

// always lets every call fail that comes to a point with a subject of that end.
func (w *world) always(point, end string, err error) {
	w.host.SetHook(func(_ context.Context, at, subject string) error {
		if at == point && strings.HasSuffix(subject, end) {
			return err
		}
		return nil
	})
}

// TestTakeIsRefusedWhereNoRestoreIs (FAULTS.md row 34): by name, before anything is made, of
// whichever disk, and of the variables.
func TestTakeIsRefusedWhereNoRestoreIs(t *testing.T) {
	for _, c := range []struct {
		end  string
		err  error
		code vps.Code
		says string
	}{
		{"-vda.qcow2", hypervisor.ErrUnsupported, vps.CodeUnsupportedDisk, "disk vda: its file system cannot exchange"},
		{"-vdb.qcow2", hypervisor.ErrUnsupported, vps.CodeUnsupportedDisk, "disk vdb: its file system cannot exchange"},
		{"VARS.fd", hypervisor.ErrUnsupported, vps.CodeUnsupportedDisk, "UEFI variables"},
		{"-vdb.qcow2", syscall.EROFS, vps.CodeUnsupportedDisk, "vdb"},
		{"-vdb.qcow2", hypervisor.ErrDenied, vps.CodeVPSChanged, "vdb"},
		{"-vdb.qcow2", hypervisor.ErrNoSpace, vps.CodeInsufficientSpace, "vdb"},
	} {
		for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Off} {
			w := newWorld(t, nil)
			id := w.twoDisks(state, false)
			w.always("TryExchange.before", c.end, c.err)
			_, err := w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
			w.refuses(c.code, err)
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s, %v: %v", c.end, c.err, err)
			}
			w.clean(id)
			if w.newest(id).ID != "" {
				t.Error("an operation was begun")
			}
			w.close()
		}
	}
}

// inVain is what can be in the way of a restore.
var inVain = []struct {
	name  string
	point string
	end   string // of what
	err   error
}{
	{"file system of the first disk", "TryExchange.before", "vda.qcow2", hypervisor.ErrUnsupported},
	{"file system of the second disk", "TryExchange.before", "vdb.qcow2", hypervisor.ErrUnsupported},
	{"read-only", "TryExchange.before", "vdb.qcow2", syscall.EROFS},
	{"not ours", "TryExchange.before", "vdb.qcow2", hypervisor.ErrDenied},
	{"quota", "CreateOverlay.before", "", hypervisor.ErrNoSpace},
	{"definition cannot be saved", "SaveDefinition.before", "", hypervisor.ErrPersistence},
	{"network is stopped", "CheckStart.before", "", hypervisor.ErrNoStart},
	{"metadata cannot be written", "SetMetadata.before", "", hypervisor.ErrPersistence},
	{"cannot be stopped", "PowerOff.before", "", errors.New("it does not end")},
	{"memory cannot be dropped", "RemoveManagedSave.before", "", syscall.EROFS},
	{"first exchange", "Exchange.before", "vda.qcow2", syscall.EROFS},
}

// TestRestoreInVain (FAULTS.md row 34): whatever is in the way, on and off, of a restore and of
// its undo, for good: it fails with a reason, the VPS runs as before with what it had written,
// and when the cause is cured the same works.
func TestRestoreInVain(t *testing.T) {
	for _, c := range inVain {
		for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Paused, hypervisor.Off} {
			for _, kind := range []vps.Kind{vps.KindRestore, vps.KindUndoRestore} {
				switch {
				case state == hypervisor.Off && c.point == "CheckStart.before":
					continue // it is not to be started
				case kind == vps.KindUndoRestore && c.point == "CreateOverlay.before":
					continue // it makes none
				}
				t.Run(c.name+"/"+string(state)+"/"+string(kind), func(t *testing.T) {
					w := newWorld(t, nil)
					id := w.twoDisks(state, true)
					was, becomes := byte('b'), byte('a')
					ask := func() (vps.Operation, error) {
						return w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
					}
					if kind == vps.KindUndoRestore {
						w.restore(id)
						was, becomes = 'a', 'b'
						ask = func() (vps.Operation, error) { return w.daemon.Snapshots.UndoRestore(ctx, id, operator) }
					}
					files := w.files()
					w.always(c.point, c.end, c.err)
					if op, err := ask(); err == nil {
						op = w.ended(op, nil)
						if op.Status != vps.StatusFailed || op.Error == nil || op.Error.Detail == "" {
							t.Fatalf("it is %s at %s: %v", op.Status, op.Step, op.Error)
						}
					}
					w.both(id, was)
					if got := w.state(id); got != state {
						t.Errorf("the VPS was %s and is %s", state, got)
					}
					if now := w.files(); !slices.Equal(now, files) {
						t.Errorf("there were %v, there are %v", files, now)
					}
					if s := w.snapshot(id); s.State != vps.SnapshotAvailable {
						t.Errorf("the snapshot is %s", s.State)
					}
					w.host.SetHook(nil)
					w.done(ask())
					w.both(id, becomes)
					w.delete(id)
					w.both(id, becomes)
				})
			}
		}
	}
}

// TestTakenBackTooLate: a VPS that ran on the restored disks, or whose disk somebody has replaced
// meanwhile, loses nothing by a cancel, and there is a way on.
func TestTakenBackTooLate(t *testing.T) {
	for _, what := range []string{"runs", "ran", "replaced"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			id := w.twoDisks(hypervisor.Running, true)
			overlay := w.disk(id).Overlay
			w.always("PointDisks.before", "", hypervisor.ErrPersistence)
			op := w.ended(w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator))
			f := w.finds(vps.CheckOperationParked)[0]
			if !strings.Contains(fmt.Sprint(f.Remedies), "operations cancel "+op.ID) {
				t.Errorf("found %+v", f)
			}
			w.host.SetHook(nil)
			if what == "replaced" {
				w.replaced(overlay)
				if op = w.ended(w.daemon.Operations.CancelOperation(ctx, op.ID, operator)); op.Status != vps.StatusCancelled {
					t.Fatalf("it is %s: %v", op.Status, op.Error)
				}
				if s := w.snapshot(id); s.State != vps.SnapshotBroken || w.state(id) != hypervisor.Off {
					t.Errorf("the snapshot is %s, the VPS %s", s.State, w.state(id))
				}
				w.sees(id, "vdb", 0, 'b')
				return
			}
			w.must(w.host.Start(ctx, id, false)) // this host has no hook
			w.write(id, "vdb", 4096, 'c')
			if what == "ran" {
				w.must(w.host.KillGuest(id))
			}
			op = w.ended(w.daemon.Operations.CancelOperation(ctx, op.ID, operator))
			if op.Status != vps.StatusNeedsAttention || op.Error == nil || !strings.Contains(op.Error.Detail, "restored already") {
				t.Fatalf("it is %s: %v", op.Status, op.Error)
			}
			w.sees(id, "vdb", 4096, 'c')
			w.done(w.daemon.Operations.ResumeOperation(ctx, op.ID, operator))
			w.both(id, 'a')
			w.sees(id, "vdb", 4096, 'c')
		})
	}
}

// TestCancelWhileItStops: a cancel that comes while the VPS is being stopped is heard, and the
// VPS is started again.
func TestCancelWhileItStops(t *testing.T) {
	for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Paused} {
		for _, point := range []string{"SetMetadata.before", "PowerOff.before", "PowerOff.after"} {
			w := newWorld(t, nil)
			id := w.twoDisks(state, true)
			w.once(point, func() {
				_, err := w.daemon.Operations.CancelOperation(ctx, w.newest(id).ID, vps.Actor{Name: "panel", Way: vps.WayPanel})
				w.must(err)
			})
			op := w.ended(w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator))
			if op.Status != vps.StatusCancelled || op.Error != nil {
				t.Errorf("%s, %s: it is %s: %v", state, point, op.Status, op.Error)
			}
			w.both(id, 'b')
			if got := w.state(id); got != state {
				t.Errorf("%s, %s: the VPS is %s", state, point, got)
			}
			w.restore(id)
			w.both(id, 'a')
			w.close()
		}
	}
}

// TestOperatorTakesARestoreBack (FAULTS.md row 34): a restore that is parked with one disk
// exchanged, or all, is taken back by an operator, and by nobody else; the daemon may be
// restarted in between.
func TestOperatorTakesARestoreBack(t *testing.T) {
	for _, c := range []struct{ name, point, end string }{
		{"one of two disks", "Exchange.before", "vdb.qcow2"},
		{"the disks without the variables", "Exchange.before", "VARS.fd"},
		{"all", "PointDisks.before", ""},
	} {
		for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Paused, hypervisor.Off} {
			t.Run(c.name+"/"+string(state), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, nil)
				id := w.twoDisks(state, true)
				w.always(c.point, c.end, syscall.EROFS)
				op := w.ended(w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator))
				if op.Status != vps.StatusNeedsAttention {
					t.Fatalf("it is %s: %v", op.Status, op.Error)
				}
				_, err := w.daemon.Operations.CancelOperation(ctx, op.ID, vps.Actor{Name: "panel", Way: vps.WayPanel})
				w.refuses(vps.CodeVPSChanged, err)
				if state == hypervisor.Running {
					w.crash()
					w.open()
				}
				w.always("Exchange.before", "vda.qcow2", syscall.EROFS) // the way back is barred too
				op = w.ended(w.daemon.Operations.CancelOperation(ctx, op.ID, operator))
				if op.Status != vps.StatusNeedsAttention {
					t.Fatalf("it is %s: %v", op.Status, op.Error)
				}
				w.sees(id, "vda", 0, 'a')
				if got := w.state(id); got != hypervisor.Off {
					t.Errorf("the VPS is %s on disks of two times", got)
				}
				w.host.SetHook(nil)
				op = w.ended(w.daemon.Operations.CancelOperation(ctx, op.ID, operator))
				if op.Status != vps.StatusCancelled {
					t.Fatalf("it is %s: %v", op.Status, op.Error)
				}
				w.both(id, 'b')
				if got := w.state(id); got != state {
					t.Errorf("the VPS is %s", got)
				}
				w.restore(id)
				w.both(id, 'a')
				w.delete(id)
				w.must(os.Remove(w.nvram()))
				w.clean(id)
			})
		}
	}
}
