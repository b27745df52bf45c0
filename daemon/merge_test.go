package daemon_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// TestMergeIsWatchedCalmly: while a merge copies, which may take hours, libvirt
// is asked now and then and not as fast as it answers.
func TestMergeIsWatchedCalmly(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{})
	w.host.MergeReadyAfter(fake.Never)
	var asked atomic.Int32
	w.host.SetHook(func(_ context.Context, point, _ string) error {
		if strings.HasPrefix(point, "MergeJob.before") {
			asked.Add(1)
		}
		return nil
	})
	op, err := w.daemon.Delete(ctx, id, operator)
	w.must(err)
	w.eventually("the merge runs", func() bool { return asked.Load() > 1 })
	before := asked.Load()
	op, err = w.daemon.WaitOperation(ctx, op.ID, 2*time.Second)
	w.must(err)
	if n := asked.Load() - before; n > 10 {
		t.Errorf("libvirt was asked %d times in 2 s", n)
	}
	w.must(w.host.FinishMerge(id, "vda"))
	w.done(op, nil)
}
