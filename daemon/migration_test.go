package daemon_test

import (
	"os"
	"testing"
	"time"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// adopted waits until a VPS that came along has its snapshot.
func (w *world) adopted(id string) {
	w.t.Helper()
	w.eventually("the snapshot is adopted", func() bool {
		s, err := w.daemon.Snapshot(ctx, id)
		return err == nil && s.State == vps.SnapshotAvailable
	})
}

// letGo waits until a VPS that was migrated away has no record here.
func (w *world) letGo(id string) {
	w.t.Helper()
	w.eventually("the VPS is let go", func() bool {
		_, err1 := w.daemon.Snapshot(ctx, id)
		_, err2 := w.daemon.Option(ctx, id)
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
	v, err := w.daemon.ShowVPS(ctx, id)
	w.must(err)
	for name, verdict := range map[string]vps.Verdict{"take": v.Actions.Take, "restore": v.Actions.Restore, "delete": v.Actions.Delete} {
		if verdict.Allowed || verdict.Code != vps.CodeVPSChanged {
			t.Errorf("%s: %+v", name, verdict)
		}
	}
	_, err = w.daemon.PutOption(ctx, id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "order-1"}, operator)
	w.refuses(vps.CodeVPSChanged, err)
	_, err = w.daemon.Take(ctx, id, vps.TakeRequest{}, operator)
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
	if after.ID != before.ID || after.Description != "kept" || !after.CreatedAt.Equal(before.CreatedAt) || after.UndoUntil == nil || !after.UndoUntil.Equal(*before.UndoUntil) {
		t.Errorf("the snapshot was %+v and is %+v", before, after)
	}
	w.activate(id)
	if o, err := w.daemon.Option(ctx, id); err != nil || o.State != vps.OptionActive || o.ReleasedAt != nil {
		t.Errorf("the option is %+v (%v)", o, err)
	}
	w.finds()
	w.done(w.daemon.UndoRestore(ctx, id, operator))
	w.sees(id, "vda", 0, 'b')
	w.restore(id)
	w.sees(id, "vda", 0, 'a')
	w.delete(id)
	w.clean(id)

	_, err := w.daemon.CancelOption(ctx, id, true, operator)
	w.must(err)
	o, err := w.daemon.PutOption(ctx, id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "order-1"}, operator)
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
			if _, err := w.daemon.Snapshot(ctx, id); vps.CodeOf(err) != vps.CodeNotFound {
				t.Errorf("it was adopted: %v", err)
			}
		})
	}
}
