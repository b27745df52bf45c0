package daemon_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// TestHostStaysUpWhileADiskIsExchanged: a shutdown is delayed from before the first step
// that should not be cut until after the last, once for each operation.
func TestHostStaysUpWhileADiskIsExchanged(t *testing.T) {
	var mu sync.Mutex
	var told []string
	tell := func(what string) {
		mu.Lock()
		told = append(told, what)
		mu.Unlock()
	}
	w := newWorld(t, func(c *daemon.Config) {
		c.Hold = func(_ context.Context, why string) func() {
			tell("hold " + why)
			return func() { tell("release " + why) }
		}
	})
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{})
	w.restore(id)
	op, err := w.daemon.Snapshots.Delete(ctx, id, operator)
	w.must(err)
	w.done(op, nil)
	want := "hold take of web1, release take of web1, hold restore of web1, release restore of web1, hold delete of web1, release delete of web1"
	mu.Lock()
	defer mu.Unlock()
	if got := strings.Join(told, ", "); got != want {
		t.Errorf("%s", got)
	}
}

// TestStatusAndHealth: the line for systemctl status says what there is, and a host whose
// libvirt is gone is told of but no reason for a new process.
func TestStatusAndHealth(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{})
	if got := w.daemon.Overview.Status(ctx); got != "1 VPS with a snapshot" {
		t.Errorf("status: %s", got)
	}
	w.must(w.daemon.Overview.Health(ctx))
	w.host.Disconnect()
	w.eventually(
		"the status tells of libvirt",
		func() bool { return strings.Contains(w.daemon.Overview.Status(ctx), "libvirt does not answer") },
	)
	within, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	w.must(w.daemon.Overview.Health(within))
}

// TestLogTellsTheStory: the log alone says of a VPS who asked, each step, and the end.
func TestLogTellsTheStory(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{})
	for _, says := range []string{"A snapshot was asked for.", "step=overlays", "step=switch", "step=metadata", "The snapshot was taken"} {
		w.eventually("the log says "+says, func() bool {
			for line := range strings.Lines(w.log.String()) {
				if strings.Contains(line, says) && strings.Contains(line, "vps=web1 vps_uuid="+id) {
					return true
				}
			}
			return false
		})
	}
}
