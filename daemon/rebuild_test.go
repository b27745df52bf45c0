package daemon_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// rebuild runs vpssnapd rebuild; the daemon is not running.
func (w *world) rebuild() (daemon.Rebuilt, error) {
	w.t.Helper()
	host, err := fake.Open(w.hostDir)
	w.must(err)
	defer host.Close()
	return daemon.Rebuild(
		ctx, daemon.Config{Host: host, StateDir: w.stateDir, Logger: slog.New(slog.NewTextHandler(w.log, nil))},
	)
}

// loseRecord ends the daemon and removes the database.
func (w *world) loseRecord() {
	w.t.Helper()
	w.close()
	w.forgetAll()
}

func (w *world) forgetAll() {
	w.t.Helper()
	files, err := filepath.Glob(filepath.Join(w.stateDir, "vpssnapd.db*"))
	w.must(err)
	for _, f := range files {
		w.must(os.Remove(f))
	}
}

// TestRebuild: the database is lost; a new one knows every snapshot, and they work.
func TestRebuild(t *testing.T) {
	for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Paused, hypervisor.Off} {
		t.Run(string(state), func(t *testing.T) {
			w := newWorld(t, nil)
			two := []hypervisor.Disk{{Target: "vda", SizeBytes: 8 * mib}, {Target: "vdb", SizeBytes: 8 * mib, Format: "raw"}}
			fresh, undone, replaced := w.vps(
				"fresh",
				state,
				two...), w.vps(
				"restored",
				state,
				two...), w.vps(
				"replaced",
				state,
				two...)
			w.vps("none", state)
			for _, id := range []string{fresh, undone, replaced} {
				w.write(id, "vdb", 0, 'a')
				w.take(id, vps.TakeRequest{Description: "<before> & \"after\""})
				w.write(id, "vdb", 0, 'b')
			}
			w.restore(undone)
			w.write(undone, "vdb", 4096, 'c')
			w.take(replaced, vps.TakeRequest{Replace: true})
			w.write(replaced, "vdb", 0, 'd')
			want := map[string]vps.Snapshot{}
			for _, id := range []string{fresh, undone, replaced} {
				want[id] = w.snapshot(id)
			}
			w.loseRecord()

			done, err := w.rebuild()
			w.must(err)
			if len(done.Snapshots) != 3 || len(done.Aside) != 0 || done.Report.VPSCount != 4 {
				t.Errorf("rebuilt %+v", done)
			}
			w.codes(done.Report)
			w.open()
			for id, old := range want {
				s := w.snapshot(id)
				if s.State != vps.SnapshotAvailable || s.ID != old.ID || !s.CreatedAt.Equal(old.CreatedAt) || s.Description != old.Description ||
					s.Consistency != old.Consistency || s.SizeBytes != old.SizeBytes ||
					!reflect.DeepEqual(s.UndoUntil, old.UndoUntil) {
					t.Errorf("the snapshot was %+v and is %+v", old, s)
				}
				if _, err := w.daemon.Options.Option(ctx, id); vps.CodeOf(err) != vps.CodeNotFound {
					t.Errorf("there is an option that nobody sold: %v", err)
				}
			}
			w.finds()
			w.done(w.daemon.Snapshots.UndoRestore(ctx, undone, operator))
			w.sees(undone, "vdb", 0, 'b')
			w.restore(fresh)
			w.sees(fresh, "vdb", 0, 'a')
			w.restore(undone)
			w.sees(undone, "vdb", 0, 'a')
			w.sees(undone, "vdb", 4096, 0)
			w.restore(replaced)
			w.sees(replaced, "vdb", 0, 'b')
			for id := range want {
				w.delete(id)
			}
			w.finds()
		})
	}
}

// TestDamagedDatabase: it is recognised at the start, nothing is done on its word,
// and a rebuild keeps it.
func TestDamagedDatabase(t *testing.T) {
	damages := map[string]func(t *testing.T, path string){
		"bits flipped": func(t *testing.T, path string) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for i := 4096; i < len(data); i += 3 {
				data[i] ^= 0x55
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"cut short": func(t *testing.T, path string) { truncate(t, path, 10000) },
		"emptied":   func(t *testing.T, path string) { truncate(t, path, 0) },
		"something else": func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"only its log left": func(t *testing.T, path string) {
			if err := os.Rename(path, path+"-wal"); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps("web1", hypervisor.Running)
			w.write(id, "vda", 0, 'a')
			w.take(id, vps.TakeRequest{})
			w.write(id, "vda", 0, 'b')
			w.close()
			damage(t, filepath.Join(w.stateDir, "vpssnapd.db"))
			before := w.files()

			if err := w.tryOpen(); err == nil || !strings.Contains(err.Error(), "vpssnapd rebuild") {
				t.Fatalf("opening a damaged database: %v", err)
			}
			if err := w.tryOpen(); err == nil {
				t.Fatal("it is opened the second time")
			}
			done, err := w.rebuild()
			w.must(err)
			if len(done.Aside) == 0 || len(done.Snapshots) != 1 {
				t.Errorf("rebuilt %+v", done)
			}
			for _, f := range done.Aside {
				if _, err := os.Stat(f); err != nil || !strings.Contains(f, ".damaged-") {
					t.Errorf("the damaged file %s: %v", f, err)
				}
			}
			w.open()
			if after := w.files(); strings.Join(after, " ") != strings.Join(before, " ") {
				t.Errorf("files were %v and are %v", before, after)
			}
			w.finds()
			w.restore(id)
			w.sees(id, "vda", 0, 'a')
		})
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// TestRebuildRefuses a whole database, a daemon at work, and to guess without libvirt.
func TestRebuildRefuses(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{})
	if _, err := w.rebuild(); err == nil || !strings.Contains(err.Error(), "another vpssnapd works") {
		t.Errorf("with a daemon at work: %v", err)
	}
	w.close()
	if _, err := w.rebuild(); err == nil || !strings.Contains(err.Error(), "is whole") {
		t.Errorf("with a whole database: %v", err)
	}
	path := filepath.Join(w.stateDir, "vpssnapd.db")
	truncate(t, path, 5000)
	host, err := fake.Open(w.hostDir)
	w.must(err)
	host.Disconnect()
	_, err = daemon.Rebuild(ctx, daemon.Config{Host: host, StateDir: w.stateDir, Logger: slog.New(slog.DiscardHandler)})
	host.Close()
	if !errors.Is(err, hypervisor.ErrUnavailable) {
		t.Errorf("without libvirt: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != 5000 {
		t.Errorf("the damaged file was moved all the same: %v", err)
	}
	_, err = w.rebuild()
	w.must(err)
	w.open()
	w.finds()
}

// lostIn begins an operation, kills the daemon at a point of it, and loses the
// database. nth counts the visits from 1.
func (w *world) lostIn(point string, nth int, begin func() (vps.Operation, error)) {
	w.t.Helper()
	host, struck, visits := w.host, make(chan struct{}), 0
	host.SetHook(func(ctx context.Context, at, _ string) error {
		if at != point {
			return nil
		}
		if visits++; visits != nth {
			return nil
		}
		host.Cut()
		close(struck)
		<-ctx.Done()
		return ctx.Err()
	})
	_, err := begin()
	w.must(err)
	<-struck
	w.crash()
	w.forgetAll()
}

// TestLostInTheMiddle: the database is lost together with the daemon in the middle
// of an operation. No snapshot becomes available of which that is not certain,
// and there is a way on for every one.
func TestLostInTheMiddle(t *testing.T) {
	type way struct {
		name, point string
		nth         int
		state       hypervisor.State
		begin       func(w *world, id string) (vps.Operation, error)
		want        vps.SnapshotState
		// on is what an operator does then.
		on func(w *world, id string)
	}
	take := func(w *world, id string) (vps.Operation, error) {
		return w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
	}
	restore := func(w *world, id string) (vps.Operation, error) {
		return w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
	}
	del := func(w *world, id string) (vps.Operation, error) { return w.daemon.Snapshots.Delete(ctx, id, operator) }
	finish := func(w *world, id string) {
		if w.state(id) == hypervisor.Paused {
			w.must(w.host.Resume(ctx, id))
		}
		w.delete(id)
		w.sees(id, "vda", 0, 'b')
		w.sees(id, "vdb", 0, 'b')
	}
	back := func(pattern byte) func(w *world, id string) {
		return func(w *world, id string) {
			w.restore(id)
			w.sees(id, "vda", 0, pattern)
			w.sees(id, "vdb", 0, pattern)
		}
	}
	for _, c := range []way{
		{"take, switched", "SwitchToOverlays.after", 1, hypervisor.Running, take, vps.SnapshotBroken, finish},
		{"delete, nothing merged", "StartMerge.before", 1, hypervisor.Running, del, vps.SnapshotDeleting, finish},
		{"delete, merging", "StartMerge.after", 1, hypervisor.Running, del, vps.SnapshotDeleting, finish},
		{"delete, one disk pivoted", "Pivot.after", 1, hypervisor.Running, del, vps.SnapshotDeleting, finish},
		{"delete, merged off", "MergeOffline.after", 1, hypervisor.Off, del, vps.SnapshotDeleting, finish},
		{"restore, nothing exchanged", "Exchange.before", 1, hypervisor.Running, restore, vps.SnapshotAvailable, back('a')},
		{"restore, one disk exchanged", "Exchange.after", 1, hypervisor.Off, restore, vps.SnapshotBroken, putTheOtherRight},
		{"restore, all exchanged", "Exchange.after", 2, hypervisor.Off, restore, vps.SnapshotAvailable, back('a')},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps(
				"web1", c.state, hypervisor.Disk{Target: "vda", SizeBytes: 8 * mib},
				hypervisor.Disk{Target: "vdb", SizeBytes: 8 * mib},
			)
			pattern := byte('b')
			if c.name != "take, switched" {
				w.write(id, "vda", 0, 'a')
				w.write(id, "vdb", 0, 'a')
				w.take(id, vps.TakeRequest{})
			}
			w.write(id, "vda", 0, pattern)
			w.write(id, "vdb", 0, pattern)
			w.lostIn(c.point, c.nth, func() (vps.Operation, error) { return c.begin(w, id) })
			done, err := w.rebuild()
			w.must(err)
			if len(done.Snapshots) != 1 || !done.Snapshots[0].Recorded {
				t.Fatalf("rebuilt %+v", done)
			}
			w.open()
			w.activate(id)
			s := w.snapshot(id)
			if s.State != c.want {
				t.Fatalf("the snapshot is %s (%s), want %s", s.State, s.Reason, c.want)
			}
			if c.want != vps.SnapshotAvailable {
				_, err := w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: s.ID}, operator)
				w.refuses(vps.CodeVPSChanged, err)
				if s.Reason == "" || strings.Contains(s.Reason, "/") {
					t.Errorf("to a customer it says why: %q", s.Reason)
				}
				told := map[vps.SnapshotState]vps.CheckCode{vps.SnapshotDeleting: vps.CheckUnfinished, vps.SnapshotBroken: vps.CheckSnapshotBroken}[c.want]
				if !slices.ContainsFunc(mustCheck(w), func(f vps.Finding) bool {
					return f.Code == told && strings.Contains(f.Detail, s.Reason) && len(f.Remedies) > 0
				}) {
					t.Errorf("%s is not told of", told)
				}
			}
			c.on(w, id)
			for _, f := range mustCheck(w) {
				if f.Code != vps.CheckOrphanOverlay {
					t.Errorf("left: %s: %s", f.Code, f.Detail)
				}
			}
		})
	}
}

func mustCheck(w *world) []vps.Finding {
	w.t.Helper()
	r, err := w.daemon.Doctor.Checks(ctx)
	w.must(err)
	return r.Findings
}

// putTheOtherRight follows the remedy for the disk that a restore did not come to.
func putTheOtherRight(w *world, id string) {
	w.t.Helper()
	for _, f := range mustCheck(w) {
		if f.Code != vps.CheckReplacedOverlay {
			continue
		}
		for _, c := range f.Remedies[0].Commands {
			if c[0] == "mv" {
				w.must(os.Rename(c[len(c)-2], c[len(c)-1]))
			}
		}
	}
	w.repairs(vps.CheckOrphanOverlay, vps.CheckOrphanOverlay)
	for _, f := range mustCheck(w) {
		if f.Code != vps.CheckOrphanOverlay {
			w.t.Errorf("after the remedy: %s: %s", f.Code, f.Detail)
		}
	}
	if s := w.snapshot(id); s.State != vps.SnapshotAvailable {
		w.t.Fatalf("the snapshot is %s: %s", s.State, s.Reason)
	}
	w.sees(id, "vda", 0, 'a')
	w.sees(id, "vdb", 0, 'a')
}
