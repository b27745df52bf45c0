package site_test

import (
	"testing"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

// TestLiveMigration moves a running VPS that has a snapshot to another host on
// the same storage, and back: nothing of ours stands in the way, and at home its
// snapshot is there again.
func TestLiveMigration(t *testing.T) {
	t.Parallel()
	images := t.TempDir()
	home := openHost(t, site.Options{Lab: lab.Options{ImageDir: images}})
	away := openHost(t, site.Options{Lab: lab.Options{ImageDir: images}})
	ctx := t.Context()
	home.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "running")
	before := home.look("web1")
	home.must(home.Lab.WriteDisk(ctx, "web1", "vda", 0, 'a', 1<<20))
	home.take("web1", api.TakeRequest{})
	home.must(home.Lab.WriteDisk(ctx, "web1", "vda", 0, 'b', 1<<20))
	disks := home.virsh("domblklist", "web1")

	home.migrate("web1", away)
	if got := away.virsh("domblklist", "web1"); got != disks || away.state("web1") != "running" {
		t.Errorf("after the migration the VPS is %s on\n%s", away.state("web1"), got)
	}
	away.must(away.Lab.CheckDisk(ctx, "web1", "vda", 0, 'b', 1<<20))
	home.eventually("the VPS is gone", func() bool {
		_, err := home.Client.VPS(ctx, "web1")
		return client.CodeOf(err) == api.CodeNotFound
	})
	away.must(away.Lab.WriteDisk(ctx, "web1", "vda", 0, 'c', 1<<20))

	away.migrate("web1", home)
	home.eventually("the VPS is back", func() bool {
		v, err := home.Client.VPS(ctx, "web1")
		return err == nil && v.Persistent && v.Snapshot != nil && v.Snapshot.State == "available"
	})
	home.restore("web1")
	home.must(home.Lab.CheckDisk(ctx, "web1", "vda", 0, 'a', 1<<20))
	home.done(home.Client.UndoRestore(ctx, "web1"))
	home.must(home.Lab.CheckDisk(ctx, "web1", "vda", 0, 'c', 1<<20))
	home.delete("web1")
	home.same("after delete", "web1", before)
	home.clean("web1")
}

// migrate moves a running VPS to another host, definition included. The storage
// is shared, which libvirt cannot see.
func (h *host) migrate(name string, to *host) {
	h.t.Helper()
	h.virsh("migrate", "--live", "--unsafe", "--persistent", "--undefinesource", name, to.Lab.URI(), "tcp://127.0.0.1")
}
