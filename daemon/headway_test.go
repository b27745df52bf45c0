package daemon_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// TestMergeWithoutHeadway (FAULTS row 44 c): a merge that stands still is ended and begun
// again; one that does so each time is left to an operator, with the reason, and goes on
// when he resumes it.
func TestMergeWithoutHeadway(t *testing.T) {
	two := []hypervisor.Disk{{Target: "vda", SizeBytes: 8 * mib}, {Target: "vdb", SizeBytes: 8 * mib}}
	deletes := func(w *world, id string) (vps.Operation, error) { return w.daemon.Snapshots.Delete(ctx, id, operator) }
	replaces := func(w *world, id string) (vps.Operation, error) {
		return w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{Replace: true}, operator)
	}
	for _, c := range []struct {
		name  string
		disks []hypervisor.Disk
		state hypervisor.State
		begin func(w *world, id string) (vps.Operation, error)
		// begins is how often a merge has to be begun until it moves; 0: it never does.
		begins int32
	}{
		{"moves when begun again", nil, hypervisor.Running, deletes, 2},
		{"moves when begun again, paused", nil, hypervisor.Paused, deletes, 2},
		{"one of two disks", two, hypervisor.Running, deletes, 3},
		{"a layer in the middle", nil, hypervisor.Running, replaces, 2},
		{"never moves", nil, hypervisor.Running, deletes, 0},
		{"a layer in the middle never moves", nil, hypervisor.Running, replaces, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(c *daemon.Config) { c.Settings.Merge.StalledAfter = 20 * time.Millisecond })
			id := w.vps("web1", c.state, c.disks...)
			w.write(id, "vda", 0, 'a')
			w.take(id, vps.TakeRequest{})
			w.write(id, "vda", 4096, 'b')
			host := w.host
			host.MergeReadyAfter(fake.Never)
			var begun atomic.Int32
			host.SetHook(func(_ context.Context, at, _ string) error {
				if at == "StartMerge.before" && begun.Add(1) == c.begins {
					host.MergeReadyAfter(0)
				}
				return nil
			})
			op := w.ended(c.begin(w, id))
			if c.begins == 0 {
				if op.Status != vps.StatusNeedsAttention || !strings.Contains(op.Error.Error(), "no headway") {
					t.Fatalf("%s: %+v", op.Status, op.Error)
				}
				host.SetHook(nil)
				host.MergeReadyAfter(0)
				w.must(host.AbortMerge(ctx, id, "vda"))
				op = w.ended(w.daemon.Operations.ResumeOperation(ctx, op.ID, operator))
			}
			if op.Status != vps.StatusSucceeded {
				t.Fatalf("%s: %+v", op.Status, op.Error)
			}
			w.sees(id, "vda", 0, 'a')
			w.sees(id, "vda", 4096, 'b')
			if got := w.state(id); got != c.state {
				t.Errorf("the guest is %s", got)
			}
		})
	}
}
