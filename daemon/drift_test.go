package daemon_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// awaits fails unless the snapshot comes into that state; it returns why.
func (w *world) awaits(id string, state vps.SnapshotState) string {
	w.t.Helper()
	w.eventually("the snapshot is "+string(state), func() bool { return w.snapshot(id).State == state })
	return w.snapshot(id).Reason
}

// TestBroken: a file of the snapshot is gone, replaced or written to (FAULTS row 32).
// That is named, nothing is done to the VPS, and it heals when the cause does.
func TestBroken(t *testing.T) {
	const base, overlay = "web1-vda.qcow2", "web1-vda.qcow2.vpssnap-"
	for name, c := range map[string]struct {
		break_ func(w *world, base, overlay string) error
		heal   func(w *world, base, overlay string) error
		reason string
	}{
		"overlay missing":  {move(1, ""), move(1, "back"), "overlay is missing"},
		"base missing":     {move(0, ""), move(0, "back"), "base is missing"},
		"base replaced":    {replace(0), nil, "base was replaced"},
		"overlay replaced": {replace(1), nil, "overlay was replaced"},
		"base written to":  {touch, nil, "base was written to"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps("web1", hypervisor.Off)
			w.take(id, vps.TakeRequest{})
			dir := w.host.ImageDir()
			file, snapshot := filepath.Join(dir, base), filepath.Join(dir, w.files()[0])
			if !strings.HasPrefix(filepath.Base(snapshot), overlay) {
				t.Fatal(w.files())
			}
			w.must(c.break_(w, file, snapshot))
			w.close()
			w.open() // the host is reviewed at each connection
			if reason := w.awaits(id, vps.SnapshotBroken); !strings.Contains(reason, c.reason) ||
				strings.Contains(reason, dir) {
				t.Errorf("the reason is %q", reason)
			}
			_, err := w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
			w.refuses(vps.CodeVPSChanged, err)
			_, err = w.daemon.Snapshots.Delete(ctx, id, operator)
			w.refuses(vps.CodeVPSChanged, err)
			_, err = w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{Replace: true}, operator)
			w.refuses(vps.CodeSnapshotExists, err)
			if c.heal == nil {
				return
			}
			w.must(c.heal(w, file, snapshot))
			w.close()
			w.open()
			w.awaits(id, vps.SnapshotAvailable)
			w.restore(id)
			w.delete(id)
			w.clean(id)
		})
	}
}

// move puts the base (0) or the overlay (1) elsewhere, or back.
func move(which int, back string) func(*world, string, string) error {
	return func(_ *world, base, overlay string) error {
		path := []string{base, overlay}[which]
		if back != "" {
			return os.Rename(path+".elsewhere", path)
		}
		return os.Rename(path, path+".elsewhere")
	}
}

func replace(which int) func(*world, string, string) error {
	return func(_ *world, base, overlay string) error {
		path := []string{base, overlay}[which]
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path+".new", data, 0o600); err != nil {
			return err
		}
		return os.Rename(path+".new", path)
	}
}

func touch(_ *world, base, _ string) error {
	return os.Chtimes(base, time.Time{}, time.Now().Add(time.Second))
}

// TestPowerCutTurnsTimeBack: the base's content is durable at a take, the time
// of its last change is not, and goes back at a power cut (FAULTS row 23).
func TestPowerCutTurnsTimeBack(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off)
	w.take(id, vps.TakeRequest{})
	w.close()
	w.must(os.Chtimes(filepath.Join(w.host.ImageDir(), "web1-vda.qcow2"), time.Time{}, time.Now().Add(-time.Minute)))
	w.open()
	w.restore(id)
	if s := w.snapshot(id); s.State != vps.SnapshotAvailable {
		t.Errorf("the snapshot is %s: %s", s.State, s.Reason)
	}
	w.delete(id)
	w.clean(id)
}

// TestBaseUsedAgain: while the daemon was down somebody defined the VPS again and
// ran it on the base. Base and overlay both hold new data: nothing is put right,
// and nothing of it is merged or restored over the other.
func TestBaseUsedAgain(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off)
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 0, 'b')
	w.close()
	w.must(w.host.Redefine(id))
	w.must(w.host.Write(id, "vda", 0, 'c', 4096))
	w.open()
	w.awaits(id, vps.SnapshotBroken)
	w.sees(id, "vda", 0, 'c')
	if len(w.files()) != 1 {
		t.Errorf("left: %v", w.files())
	}
}

// TestBaseUsedBeforeTheTakeHadEnded is the same, with the take cut off between
// its switch and its end.
func TestBaseUsedBeforeTheTakeHadEnded(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	op := w.dieAt("SyncDefinition.before", func() (vps.Operation, error) {
		return w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
	}, func() {})
	w.must(w.host.Write(id, "vda", 0, 'b', 4096))
	w.must(w.host.KillGuest(id))
	w.must(w.host.Redefine(id))
	w.must(w.host.Write(id, "vda", 0, 'c', 4096))
	w.open()
	if op = w.ended(op, nil); op.Status != vps.StatusNeedsAttention || op.Error.Code != vps.CodeVPSChanged {
		t.Fatalf("%s: %+v", op.Status, op.Error)
	}
	w.sees(id, "vda", 0, 'c')
	if len(w.files()) != 1 {
		t.Errorf("left: %v", w.files())
	}
}

// TestForget: the VPS was installed again. An operator does away with what is left
// of the old snapshot; nobody else does, and not while the VPS uses any of it.
func TestForget(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off)
	w.write(id, "vda", 0, 'a')
	w.take(id, vps.TakeRequest{})
	w.restore(id)
	w.close()
	w.must(w.host.Redefine(id))
	w.must(w.host.Write(id, "vda", 0, 'c', 4096))
	w.open()
	w.awaits(id, vps.SnapshotBroken)
	for _, actor := range []vps.Actor{{Name: "panel", Way: vps.WayPanel}, {Name: "vpssnapd", Way: vps.WayExpiry}} {
		_, err := w.daemon.Snapshots.Delete(ctx, id, actor)
		w.refuses(vps.CodeVPSChanged, err)
	}
	left := w.files()
	w.delete(id)
	w.sees(id, "vda", 0, 'c')
	if now := w.files(); len(left) != 2 || !slices.Equal(now, left) {
		t.Errorf("the overlays, which may be the newest data, were %v and are %v", left, now)
	}
	for _, f := range w.finds(vps.CheckOrphanOverlay, vps.CheckOrphanOverlay) {
		if !strings.Contains(f.Detail, "newest data of web1") || f.Repairable {
			t.Errorf("found %+v", f)
		}
		w.must(os.Remove(f.Path))
	}
	w.clean(id)
	w.take(id, vps.TakeRequest{})
	w.must(os.Rename(filepath.Join(w.host.ImageDir(), "web1-vda.qcow2"), filepath.Join(w.host.ImageDir(), "elsewhere")))
	w.close()
	w.open()
	w.awaits(id, vps.SnapshotBroken)
	_, err := w.daemon.Snapshots.Delete(ctx, id, operator)
	w.refuses(vps.CodeVPSChanged, err)
	w.must(os.Rename(filepath.Join(w.host.ImageDir(), "elsewhere"), filepath.Join(w.host.ImageDir(), "web1-vda.qcow2")))
}

// TestDefinedAnew: a definition that names the base is put right, whenever it came.
func TestDefinedAnew(t *testing.T) {
	for name, redefine := range map[string]func(w *world, id string){
		"now":                       func(w *world, id string) { w.must(w.host.Redefine(id)) },
		"while the daemon was down": func(w *world, id string) { w.close(); w.must(w.host.Redefine(id)); w.open() },
		"during a restore": func(w *world, id string) {
			w.once("SetMetadata.after", func() { w.must(w.host.Redefine(id)) }) // its last effect
			w.restore(id)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps("web1", hypervisor.Running)
			w.take(id, vps.TakeRequest{})
			redefine(w, id)
			w.eventually("the definition is put right", func() bool {
				d := w.domain(id)
				return d.PersistentDisks[0].Path == d.Disks[0].Path && d.Metadata != ""
			})
			w.delete(id)
			w.clean(id)
		})
	}
}

// TestDescriptionIsNotTakenBack by an operation that had read it before.
func TestDescriptionIsNotTakenBack(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{Description: "old"})
	w.once("PointDisks.before", func() {
		_, err := w.daemon.Snapshots.DescribeSnapshot(ctx, id, "new", operator)
		w.must(err)
	})
	w.restore(id)
	if s := w.snapshot(id); s.Description != "new" {
		t.Errorf("the description is %q", s.Description)
	}
}
