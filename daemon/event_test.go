package daemon_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// heard reads all events after one, as a listener does.
func (w *world) heard(after int64) []vps.Event {
	w.t.Helper()
	w.eventually("every event is read", func() bool { return w.daemon.Journal.AllRead(ctx) })
	var all []vps.Event
	for {
		page, err := w.daemon.Journal.Events(ctx, after)
		w.must(err)
		if page.Missed {
			w.t.Fatalf("events after %d were missed", after)
		}
		if len(page.Events) == 0 {
			return all
		}
		all = append(all, page.Events...)
		after = all[len(all)-1].ID
	}
}

// lastEvent is the id of the newest event.
func (w *world) lastEvent() int64 {
	w.t.Helper()
	w.eventually("every event is read", func() bool { return w.daemon.Journal.AllRead(ctx) })
	page, err := w.daemon.Journal.Events(ctx, vps.FromNow)
	w.must(err)
	return page.After
}

func typesOf(events []vps.Event) []string {
	var types []string
	for _, e := range events {
		if e.Type != vps.EventOperationStep && (len(types) == 0 || types[len(types)-1] != string(e.Type)) {
			types = append(types, string(e.Type))
		}
	}
	return types
}

func TestEventsOfALife(t *testing.T) {
	w := newWorld(t, nil)
	start := w.lastEvent()
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{Description: "first"})
	events := w.heard(start)
	want := "option.active message operation.pending snapshot.creating message operation.running snapshot.available operation.succeeded message"
	if got := strings.Join(typesOf(events), " "); got != want {
		t.Errorf("a take told\n%s, want\n%s", got, want)
	}
	for i, e := range events {
		if e.ID != start+int64(i)+1 || e.VPS != id || e.VPSName != "web1" {
			t.Errorf("event %d is %+v", i+1, e)
		}
	}
	last := events[len(events)-1].ID
	_, err := w.daemon.Snapshots.DescribeSnapshot(ctx, id, "renamed", operator)
	w.must(err)
	w.restore(id)
	if got := strings.Join(typesOf(w.heard(last)), " "); !strings.HasPrefix(got, "snapshot.changed ") ||
		!strings.Contains(got, "snapshot.restoring") ||
		!strings.HasSuffix(got, "snapshot.available operation.succeeded message") {
		t.Errorf("a restore told %s", got)
	}
	last = w.lastEvent()
	w.delete(id)
	if got := strings.Join(typesOf(w.heard(last)), " "); !strings.Contains(got, "snapshot.deleting") ||
		!strings.Contains(got, "snapshot.gone") {
		t.Errorf("a delete told %s", got)
	}
}

// A listener misses nothing while the daemon is killed and started again, be it
// before the disks are switched, which the next daemon undoes, or after.
func TestEventsSurviveTheDaemon(t *testing.T) {
	for point, want := range map[string]string{
		"SwitchToOverlays.before": "option.active message operation.pending snapshot.creating message operation.running snapshot.gone operation.failed message",
		"SwitchToOverlays.after":  "option.active message operation.pending snapshot.creating message operation.running snapshot.available operation.succeeded message",
	} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t, nil)
			start := w.lastEvent()
			id := w.vps("web1", hypervisor.Running)
			op := w.dieAt(point, func() (vps.Operation, error) {
				return w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
			}, func() {})
			w.open()
			w.ended(op, nil)
			events := w.heard(start)
			for i, e := range events {
				if e.ID != start+int64(i)+1 {
					t.Fatalf("event %d comes behind %d", e.ID, start+int64(i))
				}
			}
			if got := strings.Join(typesOf(events), " "); got != want {
				t.Errorf("told were\n%s, want\n%s", got, want)
			}
		})
	}
}

// Everybody who listens is woken by a commit, and none reads the database for it.
func TestListenersAreWoken(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	const listeners = 100
	heard := make(chan error, listeners)
	for range listeners {
		page, err := w.daemon.Journal.Events(ctx, vps.FromNow)
		w.must(err)
		go func() {
			for {
				<-page.Changed
				next, err := w.daemon.Journal.Events(ctx, page.After)
				if err == nil && len(next.Events) == 0 {
					err = fmt.Errorf("woken for nothing")
				}
				if err != nil ||
					slices.ContainsFunc(next.Events, func(e vps.Event) bool { return e.Type == vps.EventSnapshotAvailable }) {
					heard <- err
					return
				}
				page = next
				page.After = next.Events[len(next.Events)-1].ID
			}
		}()
	}
	w.take(id, vps.TakeRequest{})
	for range listeners {
		w.must(<-heard)
	}
}

func TestEventsThatAreUnknown(t *testing.T) {
	w := newWorld(t, nil)
	w.vps("web1", hypervisor.Running)
	last := w.lastEvent()
	page, err := w.daemon.Journal.Events(ctx, last+1000)
	w.must(err)
	if !page.Missed || page.After != last || len(page.Events) != 0 {
		t.Errorf("who asks for what never was gets %+v", page)
	}
}

func TestEventOfSpace(t *testing.T) {
	w := newWorld(t, func(c *daemon.Config) { c.Settings.Space.Headroom = 1 << 30 })
	w.vps("web1", hypervisor.Running)
	start := w.lastEvent()
	w.host.SetFree(1 << 20)
	w.daemon.LookAtSpace(ctx)
	events := w.heard(start)
	e := events[len(events)-2]
	if e.Type != vps.EventSpaceCritical || e.VPS != "" || e.Space == nil || e.Space.FreeBytes != 1<<20 {
		t.Errorf("told was %+v", e)
	}
}
