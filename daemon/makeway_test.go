package daemon_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// TestMergeMakesWayForAStart: a VPS that is started while its merge copies with it
// off is not kept waiting, and the merge goes on with it on.
func TestMergeMakesWayForAStart(t *testing.T) {
	for _, replace := range []bool{false, true} {
		w := newWorld(t, nil)
		id := w.vps("web1", hypervisor.Off)
		w.take(id, vps.TakeRequest{})
		w.write(id, "vda", 0, 'a')
		base := w.snapshot(id).Disks[0]
		w.host.HangNext("MergeOffline.half")
		w.host.MergeReadyAfter(2)
		var op vps.Operation
		var err error
		if replace {
			op, err = w.daemon.Take(ctx, id, vps.TakeRequest{Replace: true}, operator)
		} else {
			op, err = w.daemon.Delete(ctx, id, operator)
		}
		w.must(err)
		w.eventually("the merge copies", func() bool { return w.host.Unused(ctx, base.Base, base.BaseFormat) != nil })
		hook, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		w.must(daemon.BeforeStart(hook, w.stateDir, id, "web1", nil))
		w.must(w.host.Start(ctx, id, false))
		w.write(id, "vda", mib, 'b')
		w.done(op, nil)
		w.sees(id, "vda", 0, 'a')
		w.sees(id, "vda", mib, 'b')
		if replace {
			w.delete(id)
		}
		w.clean(id)
		if left, _ := filepath.Glob(filepath.Join(w.stateDir, "merging-*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		w.close()
	}
}

// TestNothingToMakeWayFor: the start of a VPS of which nothing is merged leaves no
// file and waits for nobody.
func TestNothingToMakeWayFor(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off)
	w.must(daemon.BeforeStart(ctx, w.stateDir, id, "web1", nil))
	w.take(id, vps.TakeRequest{})
	w.must(daemon.BeforeStart(ctx, w.stateDir, id, "web1", nil))
	w.must(daemon.BeforeStart(ctx, t.TempDir(), "../evil", "web1", nil))
	if left, _ := filepath.Glob(filepath.Join(w.stateDir, "merging-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
