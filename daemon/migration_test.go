package daemon_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// adopted waits until a VPS that came along has its snapshot.
func (w *world) adopted(id string) {
	w.t.Helper()
	w.eventually("the snapshot is adopted", func() bool {
		s, err := w.daemon.Snapshots.Snapshot(ctx, id)
		return err == nil && s.State == vps.SnapshotAvailable
	})
}

// letGo waits until a VPS that was migrated away has no record here.
func (w *world) letGo(id string) {
	w.t.Helper()
	w.eventually("the VPS is let go", func() bool {
		_, err1 := w.daemon.Snapshots.Snapshot(ctx, id)
		_, err2 := w.daemon.Options.Option(ctx, id)
		return vps.CodeOf(err1) == vps.CodeNotFound && vps.CodeOf(err2) == vps.CodeNotFound
	})
}

// TestMigratedAway: the record goes, every file stays, and nothing is done to what
// the migration left behind (FAULTS row 31).
func TestMigratedAway(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{Description: "kept"})
	w.write(id, "vda", 0, 'b')
	w.restore(id)
	files := w.files()
	w.must(w.host.Depart(id))
	w.letGo(id)
	v, err := w.daemon.Overview.ShowVPS(ctx, id)
	w.must(err)
	for name, verdict := range map[string]vps.Verdict{"take": v.Actions.Take, "restore": v.Actions.Restore, "delete": v.Actions.Delete} {
		if verdict.Allowed || verdict.Code != vps.CodeVPSChanged {
			t.Errorf("%s: %+v", name, verdict)
		}
	}
	_, err = w.daemon.Options.PutOption(ctx, id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "order-1"}, operator)
	w.refuses(vps.CodeVPSChanged, err)
	_, err = w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
	w.refuses(vps.CodeVPSChanged, err)
	w.setClock(time.Now().Add(48 * time.Hour)) // its undo would be over
	if r := w.repairs(); len(r.Repairs) > 0 {
		t.Errorf("repaired %+v", r.Repairs)
	}
	w.must(w.host.Edit(id, func(d *hypervisor.Domain) { d.MigratedAway = false })) // as libvirt forgets it
	w.close()
	w.open()
	w.repairs()
	w.letGo(id)
	if now := w.files(); len(now) != len(files) {
		t.Errorf("files of a VPS that runs elsewhere were touched: %v, they were %v", now, files)
	}
}

// TestMigratedWhileAMergeWaits: what waits for its turn must not merge what another
// host works on by then.
func TestMigratedWhileAMergeWaits(t *testing.T) {
	for name, c := range map[string]struct {
		begin func(*world, string) (vps.Operation, error)
		want  vps.Status
	}{
		"delete": {func(w *world, id string) (vps.Operation, error) { return w.daemon.Snapshots.Delete(ctx, id, operator) }, vps.StatusFailed},
		"replace": {func(w *world, id string) (vps.Operation, error) {
			return w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{Replace: true}, operator)
		}, vps.StatusNeedsAttention},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *daemon.Config) { c.Settings.Merge.Limit = 1 })
			id, busy := w.vps("web1", hypervisor.Running), w.vps("web2", hypervisor.Running)
			w.take(id, vps.TakeRequest{})
			w.write(id, "vda", 0, 'b')
			w.restore(id)
			w.take(busy, vps.TakeRequest{})
			w.host.MergeReadyAfter(fake.Never)
			long, err := w.daemon.Snapshots.Delete(ctx, busy, operator)
			w.must(err)
			w.eventually("the only place is taken", func() bool { return w.domain(busy).Disks[0].Job })
			op, err := c.begin(w, id)
			w.must(err)
			w.eventually("it waits", func() bool {
				op, err = w.daemon.Operations.Operation(ctx, op.ID)
				return err == nil && (op.Step == "queue" || op.Step == "old_merge")
			})
			files := w.files()
			w.must(w.host.Depart(id))
			w.must(w.host.FinishMerge(busy, "vda"))
			w.done(long, nil)
			if op = w.ended(op, nil); op.Status != c.want || op.Error.Code != vps.CodeVPSChanged {
				t.Errorf("it is %s: %v", op.Status, op.Error)
			}
			now := w.files()
			for _, file := range files {
				if strings.Contains(file, "web1") && !slices.Contains(now, file) {
					t.Errorf("%s of a VPS that runs elsewhere is gone", file)
				}
			}
		})
	}
}

// TestMigratedAfterTheLastLook: the same when it goes before a job of QEMU's, or its
// end, would keep it here.
func TestMigratedAfterTheLastLook(t *testing.T) {
	for point, begin := range map[string]func(*world, string) (vps.Operation, error){
		"StartMerge.before": func(w *world, id string) (vps.Operation, error) { return w.daemon.Snapshots.Delete(ctx, id, operator) },
		"PowerOff.before": func(w *world, id string) (vps.Operation, error) {
			return w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
		},
	} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps("web1", hypervisor.Running)
			w.take(id, vps.TakeRequest{})
			disk := w.disk(id)
			w.once(point, func() { w.must(w.host.Depart(id)) })
			op := w.ended(begin(w, id))
			if op.Status != vps.StatusNeedsAttention || op.Error.Code != vps.CodeVPSChanged {
				t.Errorf("it is %s: %v", op.Status, op.Error)
			}
			if w.state(id) != hypervisor.Off {
				t.Error("it runs on two hosts")
			}
			if now, err := w.host.Stat(ctx, disk.Overlay); err != nil || now.Inode != disk.OverlayInode {
				t.Errorf("the overlay that another host uses was touched (%v)", err)
			}
		})
	}
}

// TestMigratedBack: it comes back with its snapshot, the undo of its last restore
// included, and the order of before makes its option active again.
func TestMigratedBack(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.write(id, "vda", 0, 'a')
	w.take(id, vps.TakeRequest{Description: "kept"})
	w.write(id, "vda", 0, 'b')
	w.restore(id)
	before := w.snapshot(id)
	w.must(w.host.Depart(id))
	w.letGo(id)
	w.close()
	w.must(w.arrive(id)) // while nobody watches
	w.open()
	w.adopted(id)
	after := w.snapshot(id)
	if after.ID != before.ID || after.Description != "kept" || !after.CreatedAt.Equal(before.CreatedAt) ||
		after.UndoUntil == nil ||
		!after.UndoUntil.Equal(*before.UndoUntil) {
		t.Errorf("the snapshot was %+v and is %+v", before, after)
	}
	w.activate(id)
	if o, err := w.daemon.Options.Option(ctx, id); err != nil || o.State != vps.OptionActive || o.ReleasedAt != nil {
		t.Errorf("the option is %+v (%v)", o, err)
	}
	w.finds()
	w.done(w.daemon.Snapshots.UndoRestore(ctx, id, operator))
	w.sees(id, "vda", 0, 'b')
	w.restore(id)
	w.sees(id, "vda", 0, 'a')
	w.delete(id)
	w.clean(id)

	_, err := w.daemon.Options.CancelOption(ctx, id, true, operator)
	w.must(err)
	o, err := w.daemon.Options.PutOption(ctx, id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "order-1"}, operator)
	if err != nil || o.State != vps.OptionReleased {
		t.Errorf("an order whose option was cancelled makes it %s again (%v)", o.State, err)
	}
}

// arrive lets a VPS come back, seen by nobody.
func (w *world) arrive(id string) error {
	host, err := fake.Open(w.hostDir)
	if err != nil {
		return err
	}
	defer host.Close()
	return host.Arrive(id)
}

// TestArrivesChanged: what its files do not prove is not adopted, but told.
func TestArrivesChanged(t *testing.T) {
	for name, change := range map[string]func(w *world, d vps.SnapshotDisk){
		"base written": func(w *world, d vps.SnapshotDisk) { w.must(os.Chtimes(d.Base, time.Now(), time.Now())) },
		"base gone":    func(w *world, d vps.SnapshotDisk) { w.must(os.Rename(d.Base, d.Base+".moved")) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps("web1", hypervisor.Running)
			w.take(id, vps.TakeRequest{})
			disk := w.disk(id)
			w.loseRecord()
			change(w, disk)
			w.open()
			w.finds(vps.CheckUnrecordedSnapshot)
			if _, err := w.daemon.Snapshots.Snapshot(ctx, id); vps.CodeOf(err) != vps.CodeNotFound {
				t.Errorf("it was adopted: %v", err)
			}
		})
	}
}
