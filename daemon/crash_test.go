package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// crashCase is one operation, what must be so before and what may be so after.
type crashCase struct {
	name    string
	disks   []hypervisor.Disk      // nil: one
	config  func(c *daemon.Config) // nil: as in every world
	prepare func(w *world, id string)
	begin   func(w *world, id string) (vps.Operation, error)
	parts   int // how many sweep it side by side; 0: one
	// fails: it does when nothing strikes.
	fails bool
	// done and undone check the bytes and the record after it succeeded or failed.
	done, undone func(w *world, id string)
}

var ctx = context.Background()

func hasSnapshot(w *world, id string) bool {
	_, err := w.daemon.Snapshots.Snapshot(ctx, id)
	return err == nil
}

var crashCases = []crashCase{
	{
		name:    "take",
		prepare: func(w *world, id string) { w.write(id, "vda", 0, 'a') },
		begin: func(w *world, id string) (vps.Operation, error) {
			return w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
		},
		done: func(w *world, id string) {
			w.sees(id, "vda", 0, 'a')
			w.write(id, "vda", 0, 'b')
			w.restore(id)
			w.sees(id, "vda", 0, 'a')
		},
		undone: func(w *world, id string) {
			w.sees(id, "vda", 0, 'a')
			if hasSnapshot(w, id) {
				w.t.Error("a failed take left a snapshot")
			}
			w.clean(id)
			w.take(id, vps.TakeRequest{})
		},
	},
	{
		name: "restore",
		prepare: func(w *world, id string) {
			w.write(id, "vda", 0, 'a')
			w.take(id, vps.TakeRequest{})
			w.write(id, "vda", 0, 'b')
		},
		begin: func(w *world, id string) (vps.Operation, error) {
			return w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
		},
		done: func(w *world, id string) {
			w.sees(id, "vda", 0, 'a')
			w.done(w.daemon.Snapshots.UndoRestore(ctx, id, operator))
			w.sees(id, "vda", 0, 'b')
		},
		undone: func(w *world, id string) { w.sees(id, "vda", 0, 'b'); w.restore(id); w.sees(id, "vda", 0, 'a') },
	},
	{
		name: "undo",
		prepare: func(w *world, id string) {
			w.write(id, "vda", 0, 'a')
			w.take(id, vps.TakeRequest{})
			w.write(id, "vda", 0, 'b')
			w.restore(id)
		},
		begin: func(w *world, id string) (vps.Operation, error) {
			return w.daemon.Snapshots.UndoRestore(ctx, id, operator)
		},
		done:   func(w *world, id string) { w.sees(id, "vda", 0, 'b') },
		undone: func(w *world, id string) { w.sees(id, "vda", 0, 'a') },
	},
	{
		name:  "restore in vain",
		fails: true,
		prepare: func(w *world, id string) {
			w.write(id, "vda", 0, 'a')
			w.take(id, vps.TakeRequest{})
			w.write(id, "vda", 0, 'b')
			w.host.FailNext("RemoveManagedSave.before", syscall.EROFS) // the VPS is off by then
		},
		begin: func(w *world, id string) (vps.Operation, error) {
			return w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
		},
		done: func(w *world, id string) { w.sees(id, "vda", 0, 'a') }, // the failure died with the daemon
		undone: func(w *world, id string) {
			w.sees(id, "vda", 0, 'b')
			again := vps.RestoreRequest{Confirm: w.snapshot(id).ID}
			if w.ended(w.daemon.Snapshots.Restore(ctx, id, again, operator)).Status == vps.StatusFailed { // it fails only now
				w.sees(id, "vda", 0, 'b')
				w.restore(id)
			}
			w.sees(id, "vda", 0, 'a')
		},
	},
	{
		name: "delete",
		prepare: func(w *world, id string) {
			w.write(id, "vda", 0, 'a')
			w.take(id, vps.TakeRequest{})
			w.write(id, "vda", 0, 'b')
			w.restore(id)
			w.write(id, "vda", 4096, 'c')
			w.write(id, "vda", 8192, 'd')
		},
		begin: func(w *world, id string) (vps.Operation, error) { return w.daemon.Snapshots.Delete(ctx, id, operator) },
		done: func(w *world, id string) {
			if hasSnapshot(w, id) {
				w.t.Error("the snapshot is still there")
			}
		},
		undone: func(w *world, id string) { w.sees(id, "vda", 0, 'a'); w.sees(id, "vda", 4096, 'c') },
	},
	{
		name:  "delete two disks",
		disks: []hypervisor.Disk{{Target: "vda", SizeBytes: 8 * mib}, {Target: "vdb", SizeBytes: 8 * mib}},
		prepare: func(w *world, id string) {
			w.take(id, vps.TakeRequest{})
			w.write(id, "vda", 0, 'b')
			w.write(id, "vdb", 0, 'c')
		},
		begin: func(w *world, id string) (vps.Operation, error) { return w.daemon.Snapshots.Delete(ctx, id, operator) },
		done: func(w *world, id string) {
			if hasSnapshot(w, id) {
				w.t.Error("the snapshot is still there")
			}
			w.sees(id, "vda", 0, 'b')
			w.sees(id, "vdb", 0, 'c')
		},
		undone: func(w *world, id string) { w.sees(id, "vda", 0, 'b'); w.sees(id, "vdb", 0, 'c') },
	},
	{
		name:  "delete outrun",
		parts: 4,
		config: func(c *daemon.Config) {
			c.Settings.Merge = merge.Policy{
				Limit:        2,
				Bandwidth:    1 << 20,
				StalledAfter: time.Millisecond,
				Help:         true,
				LongestStop:  20 * time.Millisecond,
			}
		},
		prepare: func(w *world, id string) {
			w.write(id, "vda", 0, 'a')
			w.take(id, vps.TakeRequest{})
			w.write(id, "vda", 0, 'b')
			w.host.OutrunMerges()
			w.host.MergeReadyAfter(4) // more looks than one stop has time for
		},
		begin: func(w *world, id string) (vps.Operation, error) { return w.daemon.Snapshots.Delete(ctx, id, operator) },
		done: func(w *world, id string) {
			if hasSnapshot(w, id) {
				w.t.Error("the snapshot is still there")
			}
			w.sees(id, "vda", 0, 'b')
		},
		undone: func(w *world, id string) { w.sees(id, "vda", 0, 'b') },
	},
	{
		name: "replace",
		prepare: func(w *world, id string) {
			w.write(id, "vda", 0, 'a')
			w.take(id, vps.TakeRequest{})
			w.write(id, "vda", 4096, 'b')
			w.restore(id)
			w.write(id, "vda", 4096, 'c')
		},
		begin: func(w *world, id string) (vps.Operation, error) {
			return w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{Replace: true}, operator)
		},
		done: func(w *world, id string) {
			w.write(id, "vda", 4096, 'd')
			w.restore(id)
			w.sees(id, "vda", 0, 'a')
			w.sees(id, "vda", 4096, 'c')
		},
		undone: func(w *world, id string) {
			w.sees(id, "vda", 4096, 'c')
			w.restore(id)
			w.sees(id, "vda", 0, 'a')
			w.sees(id, "vda", 4096, 0)
		},
	},
}

// TestKilledAnywhere kills the daemon before and after every single thing that
// each operation does to the host, and checks what a new daemon makes of it
// (FAULTS rows 1-12): old or new, whole, nothing left behind, the guest as it was.
func TestKilledAnywhere(t *testing.T) {
	for _, c := range crashCases {
		for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Paused, hypervisor.Off} {
			t.Run(c.name+"/"+string(state), func(t *testing.T) { sweep(t, c, state, killDaemon) })
		}
	}
}

// TestGuestAndDaemonKilledAnywhere kills QEMU together with the daemon (FAULTS rows 18-20).
func TestGuestAndDaemonKilledAnywhere(t *testing.T) {
	for _, c := range crashCases {
		t.Run(c.name, func(t *testing.T) { sweep(t, c, hypervisor.Running, killBoth) })
	}
}

// TestLibvirtLostAnywhere takes libvirt away at every point, with the daemon
// alive, and brings it back (FAULTS rows 14-15).
func TestLibvirtLostAnywhere(t *testing.T) {
	for _, c := range crashCases {
		for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Off} {
			t.Run(c.name+"/"+string(state), func(t *testing.T) { sweep(t, c, state, loseLibvirt) })
		}
	}
}

// sweep strikes at each point in turn. An operation that mostly waits is swept in parts, side
// by side.
func sweep(t *testing.T, c crashCase, state hypervisor.State, how death) {
	t.Parallel()
	parts := max(1, c.parts)
	for first := range parts {
		t.Run(fmt.Sprintf("%d of %d", first+1, parts), func(t *testing.T) {
			t.Parallel()
			n := first
			for killedAt(t, c, state, n, how) && !t.Failed() {
				n += parts
			}
			if n < 10 && !t.Failed() {
				t.Fatalf("only %d points were visited", n)
			}
		})
	}
}

// isEffect leaves out the readings that the daemon also makes beside an operation:
// counted, they would shift the points between two runs, and some be missed.
func isEffect(at string) bool {
	return !strings.HasPrefix(at, "Domain.") && !strings.HasPrefix(at, "Glance.") && !strings.HasPrefix(at, "List.")
}

type death int

const (
	killDaemon death = iota
	killBoth
	loseLibvirt
)

// killedAt runs one operation in a fresh world, lets fate strike at the n-th
// point, recovers, and checks. It returns false when there is no n-th point.
func killedAt(t *testing.T, c crashCase, state hypervisor.State, n int, how death) bool {
	t.Helper()
	w := newWorld(t, c.config)
	id := w.vps("web1", state, c.disks...)
	c.prepare(w, id)

	var mu sync.Mutex
	count, point := 0, ""
	struck := make(chan struct{})
	host := w.host
	host.SetHook(func(ctx context.Context, at, _ string) error {
		mu.Lock()
		mine := isEffect(at) && count == n && point == ""
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
		if how == loseLibvirt {
			host.Disconnect()
			w.eventually(
				"the loss is noticed",
				func() bool { _, err := w.daemon.Overview.ListVPS(context.Background()); return err != nil },
			)
			close(struck)
			if strings.HasSuffix(at, ".after") {
				return fmt.Errorf("%w: connection lost", hypervisor.ErrUnavailable)
			}
			return nil
		}
		host.Cut()
		close(struck)
		<-ctx.Done() // the rest of this daemon's life never happens
		return ctx.Err()
	})
	before := w.newest(id)
	op, err := begin(c, w, id, struck, how)
	if err == nil {
		select {
		case <-struck:
		case <-w.finished(op.ID):
		}
	}
	mu.Lock()
	reached := point
	if reached == "" {
		point = "none" // what follows the operation's end comes too late
	}
	mu.Unlock()
	if reached == "" {
		return false
	}
	<-struck // not by the operation, but by what follows its end
	t.Logf("point %d: %s", n, reached)
	switch how {
	case loseLibvirt:
		host.SetHook(nil)
		host.Connect()
		w.eventually("libvirt is read again", func() bool { _, err := w.daemon.Overview.ListVPS(ctx); return err == nil })
	default:
		w.crash()
		if how == killBoth {
			if err := w.host.KillGuest(id); err != nil && !errors.Is(err, hypervisor.ErrOff) {
				t.Fatal(err)
			}
		}
		w.open()
	}
	if err != nil {
		if op = w.newest(id); op.ID == before.ID {
			c.undone(w, id) // it died before the intent was durable
			return true
		}
	}
	check(w, c, id, op, state, how)
	return true
}

// begin asks for the operation; fate may strike before the answer, which only a daemon
// that lives on surely gives.
func begin(c crashCase, w *world, id string, struck <-chan struct{}, how death) (vps.Operation, error) {
	type answer struct {
		op  vps.Operation
		err error
	}
	asked, answered := make(chan struct{}), make(chan answer, 1)
	go func() {
		close(asked)
		op, err := c.begin(w, id)
		answered <- answer{op, err}
	}()
	select {
	case a := <-answered:
		return a.op, a.err
	case <-struck: // perhaps by something else that this daemon does
	}
	<-asked // of this daemon, and not of the one that follows
	var late <-chan time.Time
	if how != loseLibvirt {
		late = time.After(200 * time.Millisecond)
	}
	select {
	case a := <-answered:
		return a.op, a.err
	case <-late:
		return vps.Operation{}, context.Canceled // it hangs in the request itself, or is slow
	}
}

// newest is the operation of a VPS that was asked for last.
func (w *world) newest(id string) vps.Operation {
	w.t.Helper()
	page, err := w.daemon.Operations.Operations(ctx, vps.OperationQuery{VPS: id, Limit: 1})
	w.must(err)
	if len(page.Operations) == 0 {
		return vps.Operation{}
	}
	return page.Operations[0]
}

// finished is closed when the operation has ended.
func (w *world) finished(id string) <-chan struct{} {
	done := make(chan struct{})
	d := w.daemon
	go func() {
		defer close(done)
		_, _ = d.Operations.WaitOperation(ctx, id, 20*time.Second)
	}()
	return done
}

func check(w *world, c crashCase, id string, op vps.Operation, state hypervisor.State, how death) {
	w.t.Helper()
	op = w.ended(op, nil)
	w.eventually("the guest is thawed", func() bool { g, err := w.host.Guest(id); return err == nil && !g.Frozen })
	if how != killBoth {
		w.eventually(fmt.Sprintf("the VPS is %s again", state), func() bool { return w.state(id) == state })
	}
	switch op.Status {
	case vps.StatusSucceeded:
		c.done(w, id)
	case vps.StatusFailed:
		c.undone(w, id)
	default:
		w.t.Errorf("ended as %s at %s: %+v", op.Status, op.Step, op.Error)
		return
	}
	if hasSnapshot(w, id) {
		w.delete(id)
	}
	w.clean(id)
	if c.name == "delete" {
		w.sees(id, "vda", 0, 'a')
		w.sees(id, "vda", 4096, 'c')
		w.sees(id, "vda", 8192, 'd')
	}
}
