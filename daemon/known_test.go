package daemon_test

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// TestNameGivenAway: a domain defined under the name of another that is gone. The
// UUID wins, and the name is refused as long as the other has something here.
func TestNameGivenAway(t *testing.T) {
	w := newWorld(t, nil)
	old := w.vps("web1", hypervisor.Off)
	w.take(old, vps.TakeRequest{})
	disk := w.disk(old)
	w.must(w.host.Undefine(old))
	w.eventually(
		"the VPS is gone",
		func() bool { _, err := w.daemon.Overview.ShowVPS(ctx, old); return vps.CodeOf(err) == vps.CodeNotFound },
	)
	f := w.finds(vps.CheckVPSGone)[0]
	if f.VPSName != "web1" || f.VPS != old || f.Repairable {
		t.Errorf("found %+v", f)
	}
	other, err := w.host.Define("web1", hypervisor.Disk{Target: "vda", SizeBytes: mib, Format: "raw"})
	w.must(err)
	w.eventually("the other VPS is known", func() bool { _, err := w.daemon.Overview.ShowVPS(ctx, other); return err == nil })
	if f := w.finds(vps.CheckVPSRedefined)[0]; !strings.Contains(f.Detail, other) {
		t.Errorf("found %+v", f)
	}

	for what, call := range map[string]func(ref string) error{
		"show": func(ref string) error { _, err := w.daemon.Overview.ShowVPS(ctx, ref); return err },
		"restore": func(ref string) error {
			_, err := w.daemon.Snapshots.Restore(ctx, ref, vps.RestoreRequest{}, operator)
			return err
		},
		"option": func(ref string) error { _, err := w.daemon.Options.Option(ctx, ref); return err },
		"messages": func(ref string) error {
			_, err := w.daemon.Journal.Messages(ctx, vps.MessageQuery{VPS: ref})
			return err
		},
		"order": func(ref string) error {
			_, err := w.daemon.Options.PutOption(ctx, ref, vps.OptionOrder{State: vps.OptionActive}, operator)
			return err
		},
	} {
		if err := call("web1"); vps.CodeOf(err) != vps.CodeVPSChanged {
			t.Errorf("%s by the name: %v", what, err)
		}
	}
	if v, err := w.daemon.Overview.ShowVPS(ctx, other); err != nil || v.Snapshot != nil || v.Option != nil {
		t.Errorf("the other VPS: %+v, %v", v, err)
	}
	if s, err := w.daemon.Snapshots.Snapshot(ctx, old); err != nil || s.State != vps.SnapshotAvailable {
		t.Errorf("the record of the old one by its id: %+v, %v", s, err)
	}

	// The old one is given up by an operator and nobody else: its record goes, then its option, and the name is clear.
	w.repairs(vps.CheckVPSRedefined)
	_, err = w.daemon.Snapshots.Delete(ctx, old, vps.Actor{Name: "panel", Way: vps.WayPanel})
	w.refuses(vps.CodeNotFound, err)
	_, err = w.daemon.Snapshots.Delete(ctx, "web1", operator)
	w.refuses(vps.CodeVPSChanged, err)
	w.delete(old)
	if _, err := w.daemon.Snapshots.Snapshot(ctx, old); vps.CodeOf(err) != vps.CodeNotFound {
		t.Errorf("the record of a snapshot that was given up: %v", err)
	}
	for _, path := range []string{disk.Base, disk.Overlay} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("a file of a VPS that may come back: %v", err)
		}
	}
	w.repairs(vps.CheckVPSRedefined, vps.CheckOrphanOverlay) // its option is left
	w.must(os.Remove(disk.Overlay))
	_, err = w.daemon.Options.CancelOption(ctx, old, true, operator)
	w.must(err)
	w.finds()
	_, err = w.daemon.Overview.ShowVPS(ctx, "web1")
	w.must(err)
}

// TestNameFreedAtOnce: a VPS that is gone is forgotten without delay: a panel defines
// the next one under its name in the same moment, and asks for that by name.
func TestNameFreedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		id := w.vps("web1", hypervisor.Off)
		synctest.Wait()
		w.must(w.host.Undefine(id))
		synctest.Wait() // no time goes by
		if all, err := w.daemon.Overview.ListVPS(ctx); err != nil || len(all) > 0 {
			t.Errorf("still known: %+v (%v)", all, err)
		}
	})
}

// TestNamesOutliveTheDaemon: a record without its VPS is named after a restart too,
// and a VPS that was renamed gives its name free.
func TestNamesOutliveTheDaemon(t *testing.T) {
	w := newWorld(t, nil)
	gone, renamed := w.vps("gone", hypervisor.Off), w.vps("before", hypervisor.Off)
	w.must(w.host.Edit(renamed, func(d *hypervisor.Domain) { d.Name = "after" }))
	w.eventually(
		"the new name is known", func() bool { _, err := w.daemon.Overview.ShowVPS(ctx, "after"); return err == nil },
	)
	w.vps("before", hypervisor.Off, hypervisor.Disk{Target: "vda", Path: "/nowhere/at-all", SizeBytes: 1})
	w.close()
	w.must(w.host.Undefine(gone))
	w.open()
	if f := w.finds(vps.CheckVPSGone)[0]; f.VPSName != "gone" || f.VPS != gone {
		t.Errorf("found %+v", f)
	}
}

// TestGivenUp: an operator pointed the VPS at its base on purpose and put the
// overlay aside. A repair does not give the snapshot up for that, the operator does.
func TestGivenUp(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off)
	w.write(id, "vda", 0, 'a')
	w.take(id, vps.TakeRequest{})
	d := w.disk(id)
	w.must(os.Rename(d.Overlay, d.Overlay+".given-up"))
	// It is no orphan under its new name: the record names the file (FAULTS row 33).
	w.finds(vps.CheckMissingOverlay)
	w.repairs(vps.CheckMissingOverlay) // the definition still names it
	w.must(w.host.PointDisks(ctx, id, []hypervisor.DiskSource{{Target: "vda", Path: d.Base, Format: d.BaseFormat}}))
	w.repairs(vps.CheckMissingOverlay, vps.CheckDefinitionNamesBase)
	if s := w.snapshot(id); s.State != vps.SnapshotBroken {
		t.Errorf("the snapshot is %s", s.State)
	}
	w.delete(id)
	w.finds(vps.CheckOrphanOverlay)
	w.sees(id, "vda", 0, 'a')
	w.must(os.Remove(d.Overlay + ".given-up"))
	w.finds()
	w.clean(id)
	w.take(id, vps.TakeRequest{})
	w.finds()
}

// TestAdopted: a VPS that comes with a snapshot in its definition gets its record
// without being asked, where the files prove it; leftover metadata is taken away.
func TestAdopted(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.write(id, "vda", 0, 'a')
	w.take(id, vps.TakeRequest{Description: "kept"})
	w.write(id, "vda", 0, 'b')
	dom, err := w.host.Domain(ctx, id)
	w.must(err)
	w.loseRecord()
	w.open()
	w.adopted(id)
	w.finds()
	if s := w.snapshot(id); s.State != vps.SnapshotAvailable || s.Description != "kept" {
		t.Errorf("adopted %+v", s)
	}
	w.restore(id)
	w.sees(id, "vda", 0, 'a')
	w.delete(id)

	// Its old definition is put back by a panel: the snapshot is gone for good.
	w.must(w.host.SetMetadata(ctx, id, dom.Metadata))
	f := w.finds(vps.CheckUnrecordedSnapshot)[0]
	if !strings.Contains(f.Detail, "not there") {
		t.Errorf("found %+v", f)
	}
	w.repairs()
	w.clean(id)

	// A clone made with the whole definition of another VPS does not get its snapshot.
	clone := w.vps("clone", hypervisor.Off)
	w.activate(id)
	w.take(id, vps.TakeRequest{})
	dom, err = w.host.Domain(ctx, id)
	w.must(err)
	w.must(w.host.SetMetadata(ctx, clone, dom.Metadata))
	if f := w.finds(vps.CheckUnrecordedSnapshot)[0]; f.VPSName != "clone" || !strings.Contains(f.Detail, "copied") {
		t.Errorf("found %+v", f)
	}
	w.repairs()
	if _, err := w.daemon.Snapshots.Snapshot(ctx, clone); vps.CodeOf(err) != vps.CodeNotFound {
		t.Errorf("the clone has a snapshot: %v", err)
	}
}

// TestOutdatedDefinition: a definition from the time of a snapshot that is gone
// names a file with old data. Nothing is done about it, but it is told.
func TestOutdatedDefinition(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off)
	w.take(id, vps.TakeRequest{})
	d := w.disk(id)
	w.must(os.Link(d.Overlay, d.Overlay+".kept"))
	w.delete(id)
	w.must(os.Rename(d.Overlay+".kept", d.Overlay))
	w.must(w.host.PointDisks(ctx, id, []hypervisor.DiskSource{{Target: "vda", Path: d.Overlay, Format: "qcow2"}}))
	f := w.finds(vps.CheckStaleOverlay)[0]
	if f.Repairable || f.Disk != "vda" || !strings.Contains(f.Detail, d.Base) {
		t.Errorf("found %+v", f)
	}
	w.repairs(vps.CheckStaleOverlay)
	if _, err := os.Stat(d.Overlay); err != nil {
		t.Errorf("a file in use was removed: %v", err)
	}
}
