package daemon_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// restoreOfGone begins a restore whose VPS is undefined in its middle, and parks.
func (w *world) restoreOfGone(id string) (op vps.Operation, dom hypervisor.Domain) {
	w.t.Helper()
	w.write(id, "vda", 0, 'a')
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 0, 'b')
	host := w.host
	host.SetHook(func(_ context.Context, point, _ string) error {
		if point == "Exchange.after" && dom.ID == "" {
			var err error
			if dom, err = host.Domain(ctx, id); err == nil {
				err = host.Undefine(id)
			}
			return err
		}
		return nil
	})
	op = w.ended(w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator))
	if op.Status != vps.StatusNeedsAttention {
		w.t.Fatalf("the restore is %s", op.Status)
	}
	w.eventually(
		"the VPS is gone",
		func() bool { _, err := w.daemon.Overview.ShowVPS(ctx, id); return vps.CodeOf(err) == vps.CodeNotFound },
	)
	return op, dom
}

// TestParkedAndGone: an operation whose VPS is gone waits for ever, unless the VPS
// is defined again, or an operator gives it up; then nothing of the host is touched.
func TestParkedAndGone(t *testing.T) {
	for _, back := range []bool{true, false} {
		t.Run(fmt.Sprintf("back=%v", back), func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps("web1", hypervisor.Running)
			op, dom := w.restoreOfGone(id)
			files := w.files()
			f := w.finds(vps.CheckOperationParked)[0]
			if f.Operation != op.ID || !strings.Contains(f.Detail, "does not know") || len(f.Remedies) != 2 {
				t.Fatalf("found %+v", f)
			}
			w.repairs(vps.CheckOperationParked)
			if back {
				w.must(w.host.DefineAgain(dom))
				if line := f.Remedies[0].Commands[1].String(); line != "vpssnap operations resume "+op.ID {
					t.Errorf("the way back is %s", line)
				}
				w.done(w.daemon.Operations.ResumeOperation(ctx, op.ID, operator))
				w.sees(id, "vda", 0, 'a')
				w.finds()
				return
			}
			if line := f.Remedies[1].Commands[0].String(); line != "vpssnap delete "+id {
				t.Errorf("the way out is %s", line)
			}
			_, err := w.daemon.Snapshots.Delete(ctx, id, vps.Actor{Name: "panel", Way: vps.WayPanel})
			w.refuses(vps.CodeNotFound, err)
			w.delete(id)
			if op, err := w.daemon.Operations.Operation(ctx, op.ID); err != nil || op.Status != vps.StatusFailed ||
				op.Error == nil ||
				op.EndedAt == nil {
				t.Errorf("the restore is %+v, %v", op, err)
			}
			if now := w.files(); !slices.Equal(now, files) {
				t.Errorf("files were %v and are %v", files, now)
			}
			if _, err := w.daemon.Snapshots.Snapshot(ctx, id); vps.CodeOf(err) != vps.CodeNotFound {
				t.Errorf("the snapshot is still recorded: %v", err)
			}
			w.close()
			w.open()
			w.finds(vps.CheckVPSGone, vps.CheckOrphanOverlay, vps.CheckOrphanOverlay) // its option, and its files
		})
	}
}

// TestGivenUpAndBack: a VPS that was given up as gone comes back with its
// definition, and gets its snapshot back.
func TestGivenUpAndBack(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off)
	w.write(id, "vda", 0, 'a')
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 0, 'b')
	dom, err := w.host.Domain(ctx, id)
	w.must(err)
	w.must(w.host.Undefine(id))
	w.eventually(
		"the VPS is gone",
		func() bool { _, err := w.daemon.Overview.ShowVPS(ctx, id); return vps.CodeOf(err) == vps.CodeNotFound },
	)
	w.delete(id)
	w.finds(vps.CheckVPSGone, vps.CheckOrphanOverlay)
	w.must(w.host.DefineAgain(dom))
	w.eventually("the VPS is back", func() bool { _, err := w.daemon.Overview.ShowVPS(ctx, id); return err == nil })
	if f := w.finds(vps.CheckUnrecordedSnapshot)[0]; !f.Repairable {
		t.Errorf("found %+v", f)
	}
	w.repairs()
	w.sees(id, "vda", 0, 'b')
	w.restore(id)
	w.sees(id, "vda", 0, 'a')
}

// TestStorageAway: a file system with every file of a VPS is not mounted and its
// VPS not defined, as when a host is being put together again. No repair takes
// that for a loss, nor what then comes back for left over.
func TestStorageAway(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off)
	w.write(id, "vda", 0, 'a')
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 0, 'b')
	disk := w.disk(id)
	dom, err := w.host.Domain(ctx, id)
	w.must(err)
	w.must(w.host.Undefine(id))
	w.eventually(
		"the VPS is gone",
		func() bool { _, err := w.daemon.Overview.ShowVPS(ctx, id); return vps.CodeOf(err) == vps.CodeNotFound },
	)
	base, overlay := w.aside(disk.Base), w.aside(disk.Overlay)
	w.repairs(vps.CheckVPSGone, vps.CheckMissingBase, vps.CheckMissingOverlay)
	base()
	overlay()
	w.repairs(vps.CheckVPSGone)
	w.must(w.host.DefineAgain(dom))
	w.eventually("the VPS is back", func() bool { _, err := w.daemon.Overview.ShowVPS(ctx, id); return err == nil })
	w.finds()
	w.sees(id, "vda", 0, 'b')
	w.restore(id)
	w.sees(id, "vda", 0, 'a')
}

// TestGiveUpWithOtherDisks: the way to give up a broken snapshot does not pull the
// overlay away from a disk that still writes to it.
func TestGiveUpWithOtherDisks(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps(
		"web1", hypervisor.Running, hypervisor.Disk{Target: "vda", SizeBytes: mib},
		hypervisor.Disk{Target: "vdb", SizeBytes: mib},
	)
	w.take(id, vps.TakeRequest{})
	overlay := w.snapshot(id).Disks[1].Overlay
	w.must(
		w.host.Edit(
			id,
			func(d *hypervisor.Domain) { d.Disks[0].Path += ".elsewhere"; d.PersistentDisks[0].Path += ".elsewhere" },
		),
	)
	for _, f := range w.finds(vps.CheckDiskMoved) {
		lines := fmt.Sprint(f.Remedies[1].Commands)
		if !strings.Contains(lines, "blockcommit "+id+" vdb --top "+overlay) || strings.Contains(lines, "[mv") {
			t.Errorf("the way out is %s", lines)
		}
	}
	_, err := w.daemon.Snapshots.Delete(ctx, id, operator)
	w.refuses(vps.CodeVPSChanged, err)
	if _, err := os.Stat(overlay); err != nil {
		t.Error(err)
	}
}

// TestClockPutBack: a power cut may put the time of a base back, which is no write.
func TestClockPutBack(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{})
	d := w.disk(id)
	w.must(os.Chtimes(d.Base, time.Time{}, d.BaseModified.Add(-time.Second)))
	w.finds()
	w.loseRecord()
	done, err := w.rebuild()
	w.must(err)
	if len(done.Snapshots) != 1 || done.Snapshots[0].Snapshot.State != vps.SnapshotAvailable {
		t.Errorf("rebuilt %+v", done)
	}
}
