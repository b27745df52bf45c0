package daemon_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// forget begins a take and has daemon and libvirt die when QEMU has switched and libvirt
// has not written it down; then the guest writes.
func (w *world) forget(id string, r vps.TakeRequest) vps.Operation {
	w.t.Helper()
	r.Quiesce = vps.QuiesceNever // for a guest that is frozen does not write
	return w.dieAt("SwitchToOverlays.half", func() (vps.Operation, error) {
		return w.daemon.Snapshots.Take(ctx, id, r, operator)
	}, func() {
		w.must(w.host.ForgetSwitch(id))
		w.write(id, "vda", 4096, 'b')
	})
}

// TestForgottenSwitchIsTakenBack (FAULTS row 44 b): the guest goes on with all that it
// wrote, the take can be asked for again, and nothing is left behind.
func TestForgottenSwitchIsTakenBack(t *testing.T) {
	two := []hypervisor.Disk{{Target: "vda", SizeBytes: 8 * mib}, {Target: "vdb", SizeBytes: 8 * mib, Format: "raw"}}
	for _, c := range []struct {
		name  string
		state hypervisor.State
		disks []hypervisor.Disk
		// replaces: it was to replace an older snapshot.
		replaces bool
		// then is what happens before the next daemon comes.
		then func(w *world, id string)
	}{
		{name: "running", state: hypervisor.Running},
		{name: "paused", state: hypervisor.Paused},
		{name: "two disks", state: hypervisor.Running, disks: two},
		{name: "replace", state: hypervisor.Running, replaces: true},
		{name: "a panel defines it anew", state: hypervisor.Running, then: func(w *world, id string) {
			w.must(w.host.Redefine(id))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps("web1", c.state, c.disks...)
			w.write(id, "vda", 0, 'a')
			if c.replaces {
				w.take(id, vps.TakeRequest{})
			}
			op := w.forget(id, vps.TakeRequest{Replace: c.replaces})
			if c.then != nil {
				c.then(w, id)
			}
			w.open()
			if op = w.ended(op, nil); op.Status != vps.StatusFailed || op.Error.Code != vps.CodeHypervisorUnavailable {
				t.Fatalf("%s: %+v", op.Status, op.Error)
			}
			if got := w.state(id); got != c.state {
				t.Errorf("the guest is %s", got)
			}
			w.sees(id, "vda", 0, 'a')
			w.sees(id, "vda", 4096, 'b')
			if !c.replaces {
				w.clean(id)
				w.take(id, vps.TakeRequest{})
			}
			w.write(id, "vda", 0, 'c')
			w.restore(id)
			w.sees(id, "vda", 0, 'a')
			w.delete(id)
			w.must(w.host.KillGuest(id))
			w.sees(id, "vda", 0, 'a')
			w.clean(id)
		})
	}
}

// killedIn opens a daemon, which takes up an operation, and kills it at the nth effect. It
// returns the point, "" when the operation ended before.
func (w *world) killedIn(nth int, op vps.Operation) (point string) {
	struck := make(chan string, 1)
	var count atomic.Int32
	w.config = func(c *daemon.Config) {
		host := c.Host.(*fake.Host)
		host.SetHook(func(ctx context.Context, at, _ string) error {
			if !isEffect(at) || count.Add(1) != int32(nth) {
				return nil
			}
			host.Cut()
			struck <- at
			<-ctx.Done()
			return ctx.Err()
		})
	}
	opened := w.tryOpen()
	w.config = nil
	if opened == nil {
		select {
		case point = <-struck:
		case <-w.finished(op.ID):
			w.host.SetHook(nil)
			return ""
		}
		w.close()
	}
	return point
}

// TestTakingBackIsKilledAnywhere kills daemon, or daemon and QEMU, before and after each
// thing that is done to take a forgotten switch back.
func TestTakingBackIsKilledAnywhere(t *testing.T) {
	for _, guest := range []bool{false, true} {
		for n := 1; ; n++ {
			w := newWorld(t, nil)
			id := w.vps("web1", hypervisor.Running)
			w.write(id, "vda", 0, 'a')
			op := w.forget(id, vps.TakeRequest{})
			point := w.killedIn(n, op)
			if point != "" {
				if guest {
					w.must(w.host.KillGuest(id))
				}
				w.open()
			}
			what := fmt.Sprintf("killed at %d, %s, the guest too: %v", n, point, guest)
			op = w.ended(op, nil)
			w.sees(id, "vda", 0, 'a')
			w.sees(id, "vda", 4096, 'b')
			switch {
			case op.Status == vps.StatusSucceeded && guest: // which went off before anything was taken back
				w.delete(id)
			case op.Status != vps.StatusFailed:
				t.Fatalf("%s: %s: %+v", what, op.Status, op.Error)
			}
			_ = w.host.KillGuest(id) // unless it is off
			w.sees(id, "vda", 4096, 'b')
			w.clean(id)
			if t.Failed() {
				t.Fatal(what)
			}
			w.close()
			if point == "" {
				break
			}
		}
	}
}
