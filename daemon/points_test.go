//go:build failpoints

package daemon_test

import (
	"context"
	"flag"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

var update = flag.Bool("update", false, "write failpoint/points.txt anew")

// TestFailpointsAreListed visits every failpoint of every operation and compares
// them with the list in failpoint/points.txt: none may be there that is not
// visited, and a new step or effect must be entered (go test -tags failpoints
// -run TestFailpointsAreListed ./daemon -update).
func TestFailpointsAreListed(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]bool{}
	failpoint.Observe(func(_ context.Context, name string) {
		mu.Lock()
		seen[name] = true
		mu.Unlock()
	})
	defer failpoint.Observe(nil)
	for _, c := range crashCases {
		for _, state := range []hypervisor.State{hypervisor.Running, hypervisor.Paused, hypervisor.Off} {
			w := newWorld(t, c.config)
			id := w.vps("web1", state, c.disks...)
			w.must(w.host.Edit(id, func(d *hypervisor.Domain) { d.NVRAM = w.nvram() }))
			c.prepare(w, id)
			if op := w.ended(c.begin(w, id)); op.Status != vps.StatusSucceeded && !c.fails {
				t.Fatalf("%s ended as %s: %v", c.name, op.Status, op.Error)
			}
			if hasSnapshot(w, id) {
				w.delete(id)
			}
			w.close()
		}
	}
	expire(t)
	undone(t)
	moved(t)
	forgotten(t)

	const list = "failpoint/points.txt"
	got := strings.Join(slices.Sorted(maps.Keys(seen)), "\n") + "\n"
	if *update {
		if err := os.WriteFile(list, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(want)) {
		if !seen[name] {
			t.Errorf("%s is listed and was not visited", name)
		}
	}
	for name := range seen {
		if !slices.Contains(strings.Fields(string(want)), name) {
			t.Errorf("%s is not listed", name)
		}
	}
}

// expire lets an undo and an option end.
func expire(t *testing.T) {
	w := newWorld(t, func(c *daemon.Config) { c.Settings.Snapshot.UndoKeep, c.Settings.Notify.Grace = time.Hour, 0 })
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{})
	w.restore(id)
	w.setClock(time.Now().Add(2 * time.Hour))
	_, err := w.daemon.Options.PutOption(ctx, id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "order-2"}, operator)
	w.must(err)
	w.eventually("the undo is gone", func() bool { return w.snapshot(id).UndoUntil == nil })
	_, err = w.daemon.Options.CancelOption(ctx, id, true, operator)
	w.must(err)
	w.eventually("the option is released", func() bool {
		v, err := w.daemon.Overview.ShowVPS(ctx, id)
		return err == nil && v.Option == nil
	})
	w.close()
}

// moved lets a VPS migrate to another host and come back.
func moved(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{})
	w.must(w.host.Depart(id))
	w.letGo(id)
	w.must(w.host.Arrive(id))
	w.adopted(id)
}

// forgotten lets libvirt forget the switches of takes, one of a VPS that then goes off.
func forgotten(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	op := w.forget(id, vps.TakeRequest{})
	w.open()
	w.ended(op, nil)
	op = w.forget(id, vps.TakeRequest{})
	w.config = func(c *daemon.Config) {
		host := c.Host.(*fake.Host)
		host.SetHook(func(_ context.Context, at, _ string) error {
			if at == "TakeBackSwitch.before" {
				return host.KillGuest(id)
			}
			return nil
		})
	}
	w.open()
	w.ended(op, nil)
	w.close()
}

// undone lets a take and a restore fail before anything irrevocable.
func undone(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.host.FailNext("SwitchToOverlays.before", hypervisor.ErrBusy)
	op, err := w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
	if op = w.ended(op, err); op.Status != vps.StatusFailed {
		t.Fatalf("the take ended as %s", op.Status)
	}
	w.take(id, vps.TakeRequest{})
	w.host.FailNext("CreateOverlay.after", hypervisor.ErrNoSpace)
	op, err = w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
	if op = w.ended(op, err); op.Status != vps.StatusFailed {
		t.Fatalf("the restore ended as %s", op.Status)
	}
	w.close()
}

// TestEveryEffectHasPoints: a method that is new in hypervisor.Host must be
// entered here as a reading or as an effect with points.
func TestEveryEffectHasPoints(t *testing.T) {
	reads := []string{
		"Info",
		"List",
		"Domain",
		"Glance",
		"Events",
		"PingAgent",
		"MergeJob",
		"TryExchange", // leaves nothing behind, and what it left another try removes
		"SaveDefinition",
		"CheckStart",
		"Inspect",
		"Unused",
		"Export",
		"Extents",
		"SameAsBase",
		"AwaitRoom",
		"CutShort",
		"Named",
		"Pools",
		"Files",
		"Stat",
		"Space",
		"Close",
	}
	effects := []string{
		"Freeze",
		"Thaw",
		"SwitchToOverlays", "TakeBackSwitch",
		"AllowMerge",
		"StartMerge",
		"SetMergeSpeed",
		"Pivot",
		"AbortMerge",
		"PointDisks",
		"SyncDefinition",
		"SetMetadata",
		"Suspend",
		"Resume",
		"PowerOff",
		"Start",
		"RemoveManagedSave",
		"CreateOverlay",
		"Copy",
		"MergeOffline",
		"Rebase",
		"Exchange",
		"Remove",
	}
	host := reflect.TypeFor[hypervisor.Host]()
	for i := range host.NumMethod() {
		if name := host.Method(i).Name; !slices.Contains(reads, name) && !slices.Contains(effects, name) {
			t.Errorf("%s is neither a reading nor an effect with failpoints", name)
		}
	}
}
