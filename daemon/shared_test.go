package daemon_test

import (
	"os"
	"path/filepath"
	"testing"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// TestImageWithTwoNames: two VPSes use one image, each by a name of its own. It gets
// no snapshot, and one that there is is not restored.
func TestImageWithTwoNames(t *testing.T) {
	for name, link := range map[string]func(string, string) error{
		"symbolic link": os.Symlink, "hard link": os.Link,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps("web1", hypervisor.Off)
			twin := filepath.Join(t.TempDir(), "twin")
			w.must(link(w.image("web1"), twin))
			other, err := w.host.Define("web2", hypervisor.Disk{Target: "vda", Path: twin, SizeBytes: 8 * mib})
			w.must(err)
			known := func() {
				w.eventually(
					"the daemon knows web2",
					func() bool { _, err := w.daemon.Overview.ShowVPS(ctx, other); return err == nil },
				)
			}
			known()
			_, err = w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
			w.refuses(vps.CodeUnsupportedDisk, err)
			w.must(w.host.Undefine(other))
			w.eventually("web2 is gone", func() bool {
				_, err := w.daemon.Overview.ShowVPS(ctx, other)
				return vps.CodeOf(err) == vps.CodeNotFound
			})
			w.take(id, vps.TakeRequest{})
			other, err = w.host.Define("web2", hypervisor.Disk{Target: "vda", Path: twin, SizeBytes: 8 * mib})
			w.must(err)
			known()
			_, err = w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
			w.refuses(vps.CodeVPSChanged, err)
		})
	}
}
