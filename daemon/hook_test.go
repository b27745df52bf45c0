package daemon_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"vpssnapd/daemon/hook"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// TestBeforeStart: what libvirt's hook answers, with no daemon there.
func TestBeforeStart(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	base := w.domain(id).Disks[0].Path
	start := func(refused bool, image string) {
		t.Helper()
		err := hook.BeforeStart(ctx, w.stateDir, id, "web1", []string{image})
		if refused != (vps.CodeOf(err) == vps.CodeVPSChanged) || err != nil && !refused {
			t.Errorf("start on %s: %v, refused should be %v", filepath.Base(image), err, refused)
		}
	}
	start(false, base)

	// A take that has switched and cannot end: the guest's data is in the overlay.
	stuck := true
	w.host.SetHook(func(_ context.Context, at, _ string) error {
		if at == "SyncDefinition.before" && stuck {
			return fmt.Errorf("%w: read-only file system", hypervisor.ErrPersistence)
		}
		return nil
	})
	op := w.ended(w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator))
	overlay := w.domain(id).Disks[0].Path
	start(true, base)
	start(false, overlay)
	stuck = false
	_, err := w.daemon.Operations.ResumeOperation(ctx, op.ID, operator)
	w.done(op, err)
	start(true, base)
	start(false, overlay)

	// The VPS is installed again on a disk of the same name.
	w.must(os.Rename(base, base+".old"))
	w.must(os.WriteFile(base, nil, 0o600))
	start(false, base)
	w.must(os.Rename(base+".old", base))
	w.close()
	w.open() // which heals the snapshot, if it was looked at while its base was away
	w.awaits(id, vps.SnapshotAvailable)

	w.delete(id)
	start(false, base)
}
