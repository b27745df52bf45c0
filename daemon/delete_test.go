package daemon_test

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

var twoDisks = []hypervisor.Disk{{Target: "vda", SizeBytes: 8 * mib}, {Target: "vdb", SizeBytes: 8 * mib}}

// readyToDelete is a running VPS with a snapshot and something to merge.
func (w *world) readyToDelete() string {
	w.t.Helper()
	id := w.vps("web1", hypervisor.Running, twoDisks...)
	w.write(id, "vda", 0, 'a')
	w.write(id, "vdb", 0, 'a')
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 4096, 'b')
	w.write(id, "vdb", 4096, 'b')
	w.write(id, "vda", 8192, 'c')
	w.write(id, "vdb", 8192, 'c')
	return id
}

// merged fails unless all that readyToDelete wrote is there and nothing else is left.
func (w *world) merged(id string) {
	w.t.Helper()
	for _, target := range []string{"vda", "vdb"} {
		for offset, pattern := range []byte("abc") {
			w.sees(id, target, int64(offset)*4096, pattern)
		}
	}
	w.clean(id)
}

// once does something at the first visit of a point.
func (w *world) once(point string, do func()) {
	var done atomic.Bool
	w.host.SetHook(func(_ context.Context, at, _ string) error {
		if at == point && !done.Swap(true) {
			do()
		}
		return nil
	})
}

func (w *world) domain(id string) hypervisor.Domain {
	w.t.Helper()
	dom, err := w.host.Domain(ctx, id)
	w.must(err)
	return dom
}

// TestDefinedAnewDuringTheMerge: a merge can take hours. A panel that defines the
// VPS again meanwhile names the half-merged base.
func TestDefinedAnewDuringTheMerge(t *testing.T) {
	for name, begin := range map[string]func(w *world, id string) (vps.Operation, error){
		"delete": func(w *world, id string) (vps.Operation, error) { return w.daemon.Snapshots.Delete(ctx, id, operator) },
		"replace": func(w *world, id string) (vps.Operation, error) {
			return w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{Replace: true}, operator)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.readyToDelete()
			w.host.MergeReadyAfter(fake.Never)
			op, err := begin(w, id)
			w.must(err)
			jobs := func() bool { d := w.domain(id); return d.Disks[0].Job && d.Disks[1].Job }
			w.eventually("the merges run", jobs)
			w.must(w.host.Redefine(id))
			w.eventually("the next boot uses the overlays again", func() bool {
				d := w.domain(id)
				return d.PersistentDisks[0].Path == d.Disks[0].Path && d.PersistentDisks[1].Path == d.Disks[1].Path &&
					d.Metadata != ""
			})
			w.must(w.host.KillGuest(id))
			w.done(op, nil)
			if name == "replace" {
				w.delete(id)
			}
			w.merged(id)
		})
	}
}

// TestDefinedAnewBeforeThePivot: when the daemon comes back, the definition names
// the bases. No pivot put them there, and they lack what was written last.
func TestDefinedAnewBeforeThePivot(t *testing.T) {
	for _, started := range []bool{false, true} {
		t.Run(fmt.Sprintf("started=%v", started), func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.readyToDelete()
			var overlays []hypervisor.DiskSource
			for _, d := range w.domain(id).Disks {
				overlays = append(overlays, hypervisor.DiskSource{Target: d.Target, Path: d.Path, Format: d.Format})
			}
			op := w.dieAt(
				"Pivot.before", func() (vps.Operation, error) { return w.daemon.Snapshots.Delete(ctx, id, operator) },
				func() {},
			)
			w.must(w.host.KillGuest(id))
			w.must(w.host.Redefine(id))
			panel, err := fake.Open(w.hostDir)
			w.must(err)
			if started { // on a host without our hook
				w.must(panel.Start(ctx, id, false))
			}
			w.open()
			op = w.ended(op, nil)
			if op.Status != vps.StatusNeedsAttention || op.Error.Code != vps.CodeVPSChanged {
				t.Fatalf("%s: %+v", op.Status, op.Error)
			}
			if len(w.files()) != 2 {
				t.Fatalf("left: %v", w.files())
			}
			if started {
				w.eventually("the guest runs", func() bool { return w.state(id) == hypervisor.Running })
				w.must(w.host.KillGuest(id))
			}
			w.must(panel.PointDisks(ctx, id, overlays))
			w.must(panel.Close())
			_, err = w.daemon.Operations.ResumeOperation(ctx, op.ID, operator)
			w.done(op, err)
			w.merged(id)
		})
	}
}

// TestSomebodyLetsTheGuestRun between two pivots. The second waits until the
// guest is paused again.
func TestSomebodyLetsTheGuestRun(t *testing.T) {
	w := newWorld(t, nil)
	id := w.readyToDelete()
	pivots := 0
	w.host.SetHook(func(_ context.Context, at, _ string) error {
		switch at {
		case "Pivot.after":
			if pivots++; pivots == 1 {
				w.must(w.host.Resume(ctx, id))
				w.must(w.host.Write(id, "vda", 8192, 'c', 4096))
			}
		case "Pivot.before":
			if s := w.state(id); s == hypervisor.Running {
				t.Error("a running guest was pivoted")
			}
		}
		return nil
	})
	w.delete(id)
	w.standsAs(id, hypervisor.Running)
	w.merged(id)
}

// TestNobodyStandsStillForAnOperator: the definition cannot be saved, so the
// operation is parked, but what has pivoted is on record and the guest runs on.
func TestNobodyStandsStillForAnOperator(t *testing.T) {
	w := newWorld(t, nil)
	id := w.readyToDelete()
	w.host.SetHook(func(_ context.Context, at, _ string) error {
		if at == "PointDisks.before" {
			return fmt.Errorf("%w: read-only file system", hypervisor.ErrPersistence)
		}
		return nil
	})
	op := w.ended(w.daemon.Snapshots.Delete(ctx, id, operator))
	if op.Status != vps.StatusNeedsAttention {
		t.Fatalf("%s: %+v", op.Status, op.Error)
	}
	w.eventually("the guest runs again", func() bool { return w.state(id) == hypervisor.Running })
	w.host.SetHook(nil)
	_, err := w.daemon.Operations.ResumeOperation(ctx, op.ID, operator)
	w.done(op, err)
	w.standsAs(id, hypervisor.Running)
	w.merged(id)
}

// TestNoGuestStandsStillWhenTheDaemonStops between two pivots.
func TestNoGuestStandsStillWhenTheDaemonStops(t *testing.T) {
	w := newWorld(t, nil)
	id := w.readyToDelete()
	stopping := make(chan struct{})
	pivots := 0
	w.host.SetHook(func(ctx context.Context, at, _ string) error {
		if at == "Pivot.before" {
			if pivots++; pivots == 2 {
				close(stopping)
				<-ctx.Done()
				return ctx.Err()
			}
		}
		return nil
	})
	op, err := w.daemon.Snapshots.Delete(ctx, id, operator)
	w.must(err)
	<-stopping
	w.close()
	w.open()
	if w.done(op, nil); pivots != 2 {
		t.Errorf("%d pivots", pivots)
	}
	w.standsAs(id, hypervisor.Running)
	w.merged(id)
}

// TestPivotRefused again and again (FAULTS row 17): the overlays are kept, the guest
// runs, and an operator is asked.
func TestPivotRefused(t *testing.T) {
	w := newWorld(t, nil)
	id := w.readyToDelete()
	refuse := true
	w.host.SetHook(func(_ context.Context, at, _ string) error {
		if at == "Pivot.before" && refuse {
			return fmt.Errorf("QEMU does not want to")
		}
		return nil
	})
	op := w.ended(w.daemon.Snapshots.Delete(ctx, id, operator))
	if op.Status != vps.StatusNeedsAttention || op.Error.Remedy == "" {
		t.Fatalf("%s: %+v", op.Status, op.Error)
	}
	w.eventually("the guest runs again", func() bool { return w.state(id) == hypervisor.Running })
	refuse = false
	_, err := w.daemon.Operations.ResumeOperation(ctx, op.ID, operator)
	w.done(op, err)
	w.merged(id)
}

// TestMergeGivenUp: QEMU fails one disk's merge each time. No job of the other
// disk stays behind, and the deletion can be asked for again.
func TestMergeGivenUp(t *testing.T) {
	w := newWorld(t, nil)
	id := w.readyToDelete()
	w.host.SetHook(func(_ context.Context, at, _ string) error {
		if at == "StartMerge.after" && w.domain(id).Disks[1].Job {
			w.must(w.host.FailMerge(id, "vdb"))
		}
		return nil
	})
	if op := w.ended(w.daemon.Snapshots.Delete(ctx, id, operator)); op.Status != vps.StatusFailed {
		t.Fatalf("%s: %+v", op.Status, op.Error)
	}
	if d := w.domain(id); d.Disks[0].Job || d.Disks[1].Job {
		t.Error("a job was left behind")
	}
	_, err := w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
	w.refuses(vps.CodeVPSChanged, err)
	w.host.SetHook(nil)
	w.delete(id)
	w.merged(id)
}

// TestForeignSnapshotsAreNotThrownAway: they lie in the overlay that would go.
func TestForeignSnapshotsAreNotThrownAway(t *testing.T) {
	w := newWorld(t, nil)
	id := w.readyToDelete()
	w.must(w.host.Edit(id, func(d *hypervisor.Domain) { d.ForeignSnapshots = 1 }))
	_, err := w.daemon.Snapshots.Delete(ctx, id, operator)
	w.refuses(vps.CodeVPSChanged, err)
	_, err = w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
	w.refuses(vps.CodeVPSChanged, err)
}

// TestOldOverlayDefinedAgain: somebody brings a definition back that names what
// was merged already. It is put right before the file goes.
func TestOldOverlayDefinedAgain(t *testing.T) {
	for name, begin := range map[string]func(w *world, id string) (vps.Operation, error){
		"delete": func(w *world, id string) (vps.Operation, error) { return w.daemon.Snapshots.Delete(ctx, id, operator) },
		"replace": func(w *world, id string) (vps.Operation, error) {
			return w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{Replace: true}, operator)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.readyToDelete()
			old := w.domain(id).Disks[0]
			point := map[string]string{"delete": "Resume.after", "replace": "PointDisks.after"}[name]
			w.once(point, func() {
				w.must(w.host.Edit(id, func(d *hypervisor.Domain) {
					next := &d.PersistentDisks[0]
					if name == "delete" {
						next.Path, next.Format, next.Chain, next.ChainKnown = old.Path, old.Format, nil, false
						return
					}
					next.Chain, next.ChainKnown = append(
						[]hypervisor.Layer{{Path: old.Path, Format: old.Format}},
						old.Chain...), true
				}))
			})
			w.done(begin(w, id))
			for _, d := range w.domain(id).PersistentDisks {
				if d.Path == old.Path || len(d.Chain) > 0 && d.Chain[0].Path == old.Path {
					t.Errorf("the definition still names %s", filepath.Base(old.Path))
				}
			}
			if name == "replace" {
				w.delete(id)
			}
			w.merged(id)
		})
	}
}

// TestCustomersSeeNoPaths: what an operation says of itself names no file of the host.
func TestCustomersSeeNoPaths(t *testing.T) {
	w := newWorld(t, nil)
	id := w.readyToDelete()
	w.host.MergeReadyAfter(fake.Never)
	op, err := w.daemon.Snapshots.Delete(ctx, id, operator)
	w.must(err)
	w.eventually("the merge runs", func() bool { return w.domain(id).Disks[0].Job })
	w.must(w.host.Edit(id, func(d *hypervisor.Domain) { d.Disks[0].Path = d.Disks[0].Chain[0].Path }))
	op = w.ended(op, nil)
	if op.Status != vps.StatusNeedsAttention {
		t.Fatalf("%s: %+v", op.Status, op.Error)
	}
	page, err := w.daemon.Journal.Messages(ctx, vps.MessageQuery{})
	w.must(err)
	if text := op.Error.Detail + op.Error.Remedy + page.Messages[0].Text; strings.Contains(text, w.host.ImageDir()) {
		t.Errorf("a customer reads %q", text)
	}
	if detail := page.Messages[0].Detail; !strings.Contains(detail, w.host.ImageDir()) {
		t.Errorf("the operator does not read which files it is about: %q", detail)
	}
}

// TestRecordLockedAtTheEnd: the record of a delete cannot be written any more
// when all its disks have pivoted. The guest, which was suspended for that, runs on
// while the daemon waits.
func TestRecordLockedAtTheEnd(t *testing.T) {
	w := newWorld(t, nil)
	id := w.readyToDelete()
	other, err := sql.Open("sqlite", "file:"+filepath.Join(w.stateDir, "vpssnapd.db")+"?_txlock=immediate&_busy_timeout=5000")
	w.must(err)
	defer other.Close()
	var lock *sql.Tx
	locked := make(chan struct{})
	w.once("PointDisks.after", func() {
		lock, err = other.BeginTx(ctx, nil)
		close(locked)
	})
	op, errDelete := w.daemon.Snapshots.Delete(ctx, id, operator)
	w.must(errDelete)
	<-locked
	w.must(err)
	if got := w.state(id); got != hypervisor.Paused {
		t.Errorf("before the record the guest is %s", got)
	}
	w.eventually("the guest runs", func() bool { return w.state(id) == hypervisor.Running })
	w.must(lock.Rollback())
	w.done(op, nil)
	w.standsAs(id, hypervisor.Running)
	w.merged(id)
}

// TestResumedInThePivot: somebody resumes the guest within the pivot, it writes into
// the base, and dies before libvirt and the record know. Nobody can tell then which
// image is the newest: an operator is asked, and nothing is merged.
func TestResumedInThePivot(t *testing.T) {
	w := newWorld(t, nil)
	id := w.readyToDelete()
	w.write(id, "vda", 4*mib, 'y')
	w.host.SetHook(func(_ context.Context, point, subject string) error {
		if point != "Pivot.half" {
			return nil
		}
		w.host.SetHook(nil)
		w.must(w.host.Resume(ctx, id))
		w.must(w.host.Write(id, "vda", 4*mib, 'z', 4096))
		w.must(w.host.KillGuest(id))
		return hypervisor.ErrUnavailable
	})
	op := w.ended(w.daemon.Snapshots.Delete(ctx, id, operator))
	if op.Status != vps.StatusNeedsAttention || op.Error.Code != vps.CodeVPSChanged ||
		!strings.Contains(op.Error.Detail, "resumed") {
		t.Fatalf("the delete is %s: %+v", op.Status, op.Error)
	}
	base := w.snapshot(id).Disks[0]
	w.must(w.host.PointDisks(ctx, id, []hypervisor.DiskSource{{Target: "vda", Path: base.Base, Format: base.BaseFormat}}))
	_, err := w.daemon.Operations.ResumeOperation(ctx, op.ID, operator)
	w.must(err)
	w.done(op, nil)
	w.sees(id, "vda", 4*mib, 'z')
}

// endsAfterPivot expects that the deletion of web1 ended as wanted, lets it go on where an
// operator was asked, who takes the base, and expects the newest data to be there.
func (w *world) endsAfterPivot(op vps.Operation, want vps.Status, wrote bool) {
	w.t.Helper()
	if op.Status != want {
		w.t.Fatalf("the delete is %s: %+v", op.Status, op.Error)
	}
	if op.Status == vps.StatusNeedsAttention {
		base := w.snapshot(op.VPS).Disks[0]
		w.must(w.host.PointDisks(
			ctx, op.VPS, []hypervisor.DiskSource{{Target: "vda", Path: base.Base, Format: base.BaseFormat}},
		))
		_, err := w.daemon.Operations.ResumeOperation(ctx, op.ID, operator)
		w.done(op, err)
	}
	w.sees(op.VPS, "vda", 4*mib, map[bool]byte{true: 'z', false: 'y'}[wrote])
	w.merged(op.VPS)
}

// TestRanWhileLibvirtWasAway: libvirt dies within the pivot, before it has written
// the pivot down, and the event that tells that somebody let the guest run is lost.
// An operator is asked only if the guest has written meanwhile.
func TestRanWhileLibvirtWasAway(t *testing.T) {
	for _, c := range []struct {
		name  string
		point string
		write bool
		want  vps.Status
	}{
		{"resumed after the pivot, wrote", "Pivot.half", true, vps.StatusNeedsAttention},
		{"resumed after the pivot, wrote nothing", "Pivot.half", false, vps.StatusSucceeded},
		{"resumed before the pivot, wrote", "Pivot.before", true, vps.StatusSucceeded},
		{"resumed when libvirt knew of the pivot, wrote", "Pivot.after", true, vps.StatusSucceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.readyToDelete()
			w.write(id, "vda", 4*mib, 'y')
			w.host.SetHook(func(_ context.Context, point, _ string) error {
				if point != c.point {
					return nil
				}
				w.host.SetHook(nil)
				w.host.Disconnect()
				other, err := fake.Open(w.hostDir)
				w.must(err)
				w.must(other.Resume(ctx, id))
				if c.write {
					w.must(w.host.Write(id, "vda", 4*mib, 'z', 4096))
				}
				w.must(w.host.KillGuest(id))
				w.must(other.Close())
				w.host.Connect()
				return hypervisor.ErrUnavailable
			})
			op := w.ended(w.daemon.Snapshots.Delete(ctx, id, operator))
			w.endsAfterPivot(op, c.want, c.write)
		})
	}
}

// TestRanWhileTheDaemonWasAway (FAULTS row 47): the daemon dies within the pivot, before
// libvirt has written the pivot down, and somebody lets the guest run while nobody watches.
// The next daemon knows that a pivot was under way; it asks an operator only if the guest
// has written meanwhile.
func TestRanWhileTheDaemonWasAway(t *testing.T) {
	for _, c := range []struct {
		name  string
		point string
		write bool
		want  vps.Status
	}{
		{"resumed after the pivot, wrote", "Pivot.half", true, vps.StatusNeedsAttention},
		{"resumed after the pivot, wrote nothing", "Pivot.half", false, vps.StatusSucceeded},
		{"resumed before the pivot, wrote", "Pivot.before", true, vps.StatusSucceeded},
		{"resumed when libvirt knew of the pivot, wrote", "Pivot.after", true, vps.StatusSucceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.readyToDelete()
			w.write(id, "vda", 4*mib, 'y')
			struck := make(chan struct{})
			w.host.SetHook(func(ctx context.Context, point, _ string) error {
				if point == c.point {
					w.host.Cut()
					close(struck)
					<-ctx.Done() // the rest of this daemon's life never happens
				}
				return ctx.Err()
			})
			op, err := w.daemon.Snapshots.Delete(ctx, id, operator)
			w.must(err)
			<-struck
			w.crash()
			other, err := fake.Open(w.hostDir)
			w.must(err)
			w.must(other.Resume(ctx, id))
			if c.write {
				w.must(other.Write(id, "vda", 4*mib, 'z', 4096))
			}
			w.must(other.KillGuest(id))
			w.must(other.Close())
			w.open()
			op = w.ended(op, nil)
			w.endsAfterPivot(op, c.want, c.write)
		})
	}
}

// TestPivotedAfterAMergeWithTheVPSOff: the VPS is started when all was merged, merged
// again while it runs, and dies when libvirt alone knows that it had pivoted. That it
// was once merged while off says nothing any more of which image is the newest.
func TestPivotedAfterAMergeWithTheVPSOff(t *testing.T) {
	w := newWorld(t, nil)
	id := w.readyToDelete()
	w.must(w.host.PowerOff(ctx, id))
	started := false
	w.host.SetHook(func(_ context.Context, point, _ string) error {
		switch {
		case point == "PointDisks.before" && !started:
			started = true
			w.must(w.host.Start(ctx, id, false))
			w.must(w.host.Write(id, "vda", 4*mib, 'y', 4096))
		case point == "Pivot.after":
			w.host.SetHook(nil)
			w.must(w.host.Resume(ctx, id))
			w.must(w.host.Write(id, "vda", 4*mib, 'z', 4096))
			w.must(w.host.KillGuest(id))
			return hypervisor.ErrUnavailable
		}
		return nil
	})
	w.delete(id)
	w.sees(id, "vda", 4*mib, 'z')
	w.merged(id)
}

// TestMergesAreAllowed: AppArmor may deny writes to bases. That is asked for before
// each merge and after a pivot, which makes libvirt deny the others again; and all
// merges begin before the first pivot.
func TestMergesAreAllowed(t *testing.T) {
	w := newWorld(t, nil)
	id := w.readyToDelete()
	var calls []string
	w.host.SetHook(func(_ context.Context, at, _ string) error {
		for _, call := range []string{"AllowMerge", "StartMerge", "Pivot"} {
			if at == call+".before" {
				calls = append(calls, call)
			}
		}
		return nil
	})
	w.delete(id)
	want := []string{"AllowMerge", "AllowMerge", "StartMerge", "AllowMerge", "StartMerge", "Pivot", "AllowMerge", "Pivot"}
	if !slices.Equal(calls, want) {
		t.Errorf("called were %v, want %v", calls, want)
	}
}

// TestMergeDenied: what the host denies, and nobody can cure, is found before
// anything is lost, and said. With the VPS off the same works.
func TestMergeDenied(t *testing.T) {
	w := newWorld(t, nil)
	id := w.readyToDelete()
	w.host.FailNext("AllowMerge.before", hypervisor.ErrDenied)
	op := w.ended(w.daemon.Snapshots.Delete(ctx, id, operator))
	if op.Status != vps.StatusFailed || op.Error == nil || !strings.Contains(op.Error.Detail, "AppArmor") ||
		!strings.Contains(op.Error.Remedy, "shut the VPS down") {
		t.Fatalf("%s: %+v", op.Status, op.Error)
	}
	if s := w.snapshot(id); s.State != vps.SnapshotAvailable {
		t.Errorf("the snapshot is %s", s.State)
	}
	w.must(w.host.PowerOff(ctx, id))
	w.delete(id)
	w.merged(id)
}
