package daemon_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// TestNothingFlushedIsLost lets the guest write and flush a new value at every
// point of a take, a replace and a delete at which its processors run, kills
// QEMU and the daemon at each point in turn (FAULTS row 7, FAULTS row 9, FAULTS
// rows 18-20), and wants the last acknowledged value back. Without the suspend around the pivot, or
// with a stale overlay merged again, it is gone.
func TestNothingFlushedIsLost(t *testing.T) {
	for _, c := range crashCases {
		if c.name != "take" && c.name != "replace" && !strings.HasPrefix(c.name, "delete") {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for n := 0; writtenThroughout(t, c, n) && !t.Failed(); n++ {
			}
		})
	}
}

// place is where the writing guest writes, apart from what the cases use.
const place = 1 << 20

func writtenThroughout(t *testing.T, c crashCase, n int) bool {
	t.Helper()
	w := newWorld(t, c.config)
	id := w.vps("web1", hypervisor.Running, c.disks...)
	c.prepare(w, id)
	var mu sync.Mutex
	var acknowledged byte
	count, point := 0, ""
	struck := make(chan struct{})
	host := w.host
	host.SetHook(func(ctx context.Context, at, _ string) error {
		mu.Lock()
		if point == "" && host.Write(id, "vda", place, acknowledged+1, 4096) == nil {
			acknowledged++
		}
		mine := point == "" && isEffect(at) && count == n
		if mine {
			point = at
		}
		if isEffect(at) {
			count++
		}
		mu.Unlock()
		if !mine {
			return nil
		}
		host.Cut()
		close(struck)
		<-ctx.Done()
		return ctx.Err()
	})
	before := w.newest(id)
	op, err := begin(c, w, id, struck, killBoth)
	if err == nil {
		select {
		case <-struck:
		case <-w.finished(op.ID):
		}
	}
	mu.Lock()
	reached, want := point, acknowledged
	mu.Unlock()
	if reached == "" {
		return false
	}
	t.Logf("point %d: %s, %d acknowledged", n, reached, want)
	w.crash()
	if err := w.host.KillGuest(id); err != nil && !errors.Is(err, hypervisor.ErrOff) {
		t.Fatal(err)
	}
	w.open()
	if op = w.newest(id); op.ID != before.ID {
		if op = w.ended(op, nil); op.Status == vps.StatusNeedsAttention {
			t.Errorf("ended as %s: %+v", op.Status, op.Error)
		}
	}
	w.sees(id, "vda", place, want)
	return true
}
