package daemon_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// TestPausesDoNotAddUp (FAULTS row 42): a guest runs between the pivots of its disks, and
// its longest pause is on record.
func TestPausesDoNotAddUp(t *testing.T) {
	const many = 16
	var disks []hypervisor.Disk
	for i := range many {
		disks = append(disks, hypervisor.Disk{Target: fmt.Sprintf("vd%c", 'a'+i), SizeBytes: mib})
	}
	for _, c := range []struct {
		name  string
		state hypervisor.State
		// pauses is how often the guest is let run again.
		pauses int
	}{
		{"running", hypervisor.Running, many},
		{"paused by its owner", hypervisor.Paused, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			id := w.vps("web1", c.state, disks...)
			w.take(id, vps.TakeRequest{})
			w.write(id, "vda", 0, 'b')
			var mu sync.Mutex
			var acts []string
			w.host.SetHook(func(_ context.Context, at, _ string) error {
				mu.Lock()
				defer mu.Unlock()
				if act, done := strings.CutSuffix(at, ".after"); done && slices.Contains([]string{"Suspend", "Pivot", "Resume"}, act) {
					acts = append(acts, act)
				}
				return nil
			})
			op := w.delete(id)
			w.host.SetHook(nil)
			count := func(what string) (n int) {
				for _, act := range acts {
					if act == what {
						n++
					}
				}
				return n
			}
			if count("Pivot") != many || count("Resume") != c.pauses {
				t.Errorf("it was done: %v", acts)
			}
			op, err := w.daemon.Operations.Operation(ctx, op.ID)
			w.must(err)
			if paused := op.LongestPauseMS > 0; paused != (c.pauses > 0) {
				t.Errorf("the longest pause is %d ms", op.LongestPauseMS)
			}
			if got := w.state(id); got != c.state {
				t.Errorf("the guest is %s", got)
			}
		})
	}
}
