package site_test

import (
	"testing"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

// TestLiveMigration moves a running VPS that has a snapshot to another host on
// the same storage, and back: the snapshot goes along, the undo of its restore
// too, and can be used on either side; the side that was left knows nothing of it
// any more (FAULTS row 31).
func TestLiveMigration(t *testing.T) {
	t.Parallel()
	images := t.TempDir()
	home := openHost(t, site.Options{Lab: lab.Options{ImageDir: images}})
	away := openHost(t, site.Options{Lab: lab.Options{ImageDir: images}})
	ctx := t.Context()
	home.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "running")
	before := home.look("web1")
	home.must(home.Lab.WriteDisk(ctx, "web1", "vda", 0, 'a', 1<<20))
	id := home.take("web1", api.TakeRequest{}).SnapshotID
	home.must(home.Lab.WriteDisk(ctx, "web1", "vda", 0, 'b', 1<<20))
	disks := home.virsh("domblklist", "web1")

	home.migrate("web1", away)
	if got := away.virsh("domblklist", "web1"); got != disks || away.state("web1") != "running" {
		t.Errorf("after the migration the VPS is %s on\n%s", away.state("web1"), got)
	}
	away.must(away.Lab.CheckDisk(ctx, "web1", "vda", 0, 'b', 1<<20))
	away.adopts("web1", id)
	home.eventually("the VPS is let go", func() bool {
		_, err := home.Client.VPS(ctx, "web1")
		r, err2 := home.Client.Checks(ctx)
		return client.CodeOf(err) == api.CodeNotFound && err2 == nil && len(r.Findings) == 0 && r.SnapshotCount == 0
	})
	away.must(away.Lab.WriteDisk(ctx, "web1", "vda", 0, 'c', 1<<20))
	away.restore("web1")
	away.must(away.Lab.CheckDisk(ctx, "web1", "vda", 0, 'a', 1<<20))

	away.migrate("web1", home)
	home.adopts("web1", id)
	home.must(home.Lab.CheckDisk(ctx, "web1", "vda", 0, 'a', 1<<20))
	home.done(home.Client.UndoRestore(ctx, "web1"))
	home.must(home.Lab.CheckDisk(ctx, "web1", "vda", 0, 'c', 1<<20))
	home.activate("web1") // makes the option of before active again
	home.take("web1", api.TakeRequest{Replace: true})
	home.delete("web1")
	home.same("after delete", "web1", before)
	home.clean("web1")
}

// adopts waits until a VPS that came from another host has its snapshot here.
func (h *host) adopts(name, snapshot string) {
	h.t.Helper()
	h.eventually("its snapshot is adopted", func() bool {
		v, err := h.Client.VPS(h.t.Context(), name)
		return err == nil && v.Persistent && v.Snapshot != nil && v.Snapshot.ID == snapshot && v.Snapshot.State == "available"
	})
}

// migrate moves a running VPS to another host, definition included. The storage
// is shared, which libvirt cannot see.
func (h *host) migrate(name string, to *host) {
	h.t.Helper()
	h.virsh("migrate", "--live", "--unsafe", "--persistent", "--undefinesource", name, to.Lab.URI(), "tcp://127.0.0.1")
}
