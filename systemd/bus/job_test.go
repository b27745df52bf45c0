package bus_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"vpssnapd/daemon/vps"
	"vpssnapd/systemd/bus"
)

type options = map[string]dbus.Variant

func variant(v any) dbus.Variant { return dbus.MakeVariant(v) }

const vpsI = "org.vpssnapd1.VPS"

// TestMainJob is what Cockpit does for an operator: everything over the bus.
func TestMainJob(t *testing.T) {
	s := newSite(t)
	root := s.as(0)
	news := s.listen(root)

	type listed struct {
		Path                              dbus.ObjectPath
		ID, Name, State, Option, Snapshot string
	}
	var list []listed
	root.must(manager, "org.vpssnapd1.Manager.ListVPS", nil, &list)
	if len(list) != 1 || list[0] != (listed{s.path, s.web1, "web1", "running", "", ""}) {
		t.Fatalf("listed: %+v", list)
	}
	var found dbus.ObjectPath
	root.must(manager, "org.vpssnapd1.Manager.GetVPS", []any{"web1"}, &found)
	if found != s.path {
		t.Errorf("web1 is %s, not %s", found, s.path)
	}

	if got := root.refused(s.path, vpsI+".Take", options{}); got != "org.vpssnapd1.Error.OptionRequired" {
		t.Errorf("a take without the option: %s", got)
	}
	option := options{}
	root.must(s.path, vpsI+".SetOption", []any{"active", options{
		"order_ref": variant("A-1"), "locale": variant("fr"), "ends_at": variant("2099-01-31T00:00:00Z"),
		"price": variant(options{"amount": variant(int64(500)), "currency": variant("CHF"), "period": variant("year")}),
	}}, &option)
	price, _ := option["price"].Value().(map[string]dbus.Variant)
	if option["state"].Value() != "active" || option["ends_at"].Value() != "2099-01-31T00:00:00Z" ||
		price["amount"].Value() != int64(500) {
		t.Errorf("the option: %v", option)
	}

	var operation dbus.ObjectPath
	root.must(
		s.path, vpsI+".Take",
		[]any{options{"description": variant("before the upgrade"), "quiesce": variant("require")}}, &operation,
	)
	if got := root.finish(operation); got != "succeeded" {
		t.Fatalf("the take: %s", got)
	}
	if got := root.refused(s.path, vpsI+".Take", options{}); got != "org.vpssnapd1.Error.SnapshotExists" {
		t.Errorf("a second take: %s", got)
	}
	snapshot, _ := root.property(s.path, "VPS", "Snapshot").Value().(map[string]dbus.Variant)
	if snapshot["state"].Value() != "available" || snapshot["description"].Value() != "before the upgrade" {
		t.Errorf("the snapshot: %v", snapshot)
	}
	root.must(s.path, vpsI+".Describe", []any{"another"})

	err := root.call(s.path, vpsI+".Restore", "", options{}).Err
	if err == nil || !strings.Contains(err.Error(), "web1") {
		t.Errorf("a restore that was not confirmed does not say what would be lost: %v", err)
	}
	if got := root.refused(s.path, vpsI+".Restore", "", options{}); got != "org.vpssnapd1.Error.ConfirmationRequired" {
		t.Errorf("a restore that was not confirmed: %s", got)
	}
	root.must(s.path, vpsI+".Restore", []any{snapshot["id"].Value(), options{"power_after": variant("running")}}, &operation)
	if got := root.finish(operation); got != "succeeded" {
		t.Fatalf("the restore: %s", got)
	}
	root.must(s.path, vpsI+".UndoRestore", nil, &operation)
	if got := root.finish(operation); got != "succeeded" {
		t.Fatalf("the undo: %s", got)
	}
	root.must(s.path, vpsI+".Delete", nil, &operation)
	if got := root.finish(operation); got != "succeeded" {
		t.Fatalf("the delete: %s", got)
	}
	if p := root.property(operation, "Operation", "Percent").Value(); p != uint32(100) {
		t.Errorf("%v %% of what is done", p)
	}
	root.must(s.path, vpsI+".CancelOption", []any{true}, &option)
	if option["state"].Value() != "released" {
		t.Errorf("the option that was cancelled: %v", option)
	}

	// The journal has it as done by root, an operator.
	page, err := s.daemon.Journal.Messages(t.Context(), vps.MessageQuery{VPS: s.web1})
	check(t, err)
	for _, m := range page.Messages {
		if m.Kind == vps.MessageOperationStarted && (m.Actor != vps.Actor{Name: "root", Way: vps.WayOperator}) {
			t.Errorf("%s by %+v", m.Text, m.Actor)
		}
	}
	// And those who listen have heard of it.
	news.until(t, "delete succeeded")
	for _, want := range []string{"take pending", "take running", "take succeeded", "restore succeeded", "undo_restore succeeded"} {
		if !slices.Contains(news.seen, want) {
			t.Errorf("no signal of %q in %q", want, news.seen)
		}
	}
	news.until(t, "VPS without snapshot")
	for _, want := range []string{"VPS available", "operation 100 %"} {
		if !slices.Contains(news.seen, want) {
			t.Errorf("no change of properties %q in %q", want, news.seen)
		}
	}
}

// listener hears the signals of the daemon.
type listener struct {
	signals chan *dbus.Signal
	seen    []string
}

func (s *site) listen(c *caller) *listener {
	s.t.Helper()
	check(s.t, c.conn.AddMatchSignal(dbus.WithMatchSender(serverName)))
	l := &listener{signals: make(chan *dbus.Signal, 1000)}
	c.conn.Signal(l.signals)
	return l
}

// until reads signals up to the one that is wanted.
func (l *listener) until(t *testing.T, want string) {
	t.Helper()
	for limit := time.After(20 * time.Second); !slices.Contains(l.seen, want); {
		select {
		case sig := <-l.signals:
			l.note(sig)
		case <-limit:
			t.Fatalf("no signal %q; there were %q", want, l.seen)
		}
	}
}

func (l *listener) note(sig *dbus.Signal) {
	switch sig.Name {
	case "org.vpssnapd1.Manager.OperationChanged":
		l.seen = append(l.seen, sig.Body[3].(string)+" "+sig.Body[4].(string))
	case "org.vpssnapd1.Manager.SpaceAlarm":
		l.seen = append(l.seen, "space "+sig.Body[0].(string)+" "+sig.Body[1].(string))
	case "org.freedesktop.DBus.Properties.PropertiesChanged":
		changed := sig.Body[1].(map[string]dbus.Variant)
		if sig.Body[0] == vpsI {
			snapshot := changed["Snapshot"].Value().(map[string]dbus.Variant)
			word, ok := snapshot["state"].Value().(string)
			if !ok {
				word = "without snapshot"
			}
			l.seen = append(l.seen, "VPS "+word)
		} else if p := changed["Percent"].Value(); p == uint32(100) {
			l.seen = append(l.seen, "operation 100 %")
		}
	default:
		l.seen = append(l.seen, sig.Name)
	}
}

func TestSpaceAlarm(t *testing.T) {
	s := &site{host: newHost(t), bus: newBus(t)}
	extra := make(chan vps.Event, 1)
	s.serve(func(d *bus.Services) { d.Events = alarming{d.Events, extra} })
	s.ready()
	news := s.listen(s.as(0))
	extra <- vps.Event{Type: vps.EventSpaceCritical, EventData: vps.EventData{
		Space: &vps.SpaceEvent{Level: vps.SpaceCritical, Path: "/srv/images", TotalBytes: 100, FreeBytes: 1, FullInSeconds: 60}}}
	s.activate()
	news.until(t, "space critical /srv/images")
}

// copying is a daemon whose operations get on by a megabyte whenever they are looked at.
type copying struct {
	operations
	done atomic.Int64
}

func (c *copying) Operation(ctx context.Context, id string) (vps.Operation, error) {
	op, err := c.operations.Operation(ctx, id)
	op.Progress = vps.Progress{DoneBytes: c.done.Add(1 << 20), TotalBytes: 1 << 30, Note: "the VPS writes as fast"}
	return op, err
}

// Who follows an operation hears how far it is, without asking.
func TestProgress(t *testing.T) {
	s := &site{host: newHost(t), bus: newBus(t)}
	s.serve(func(d *bus.Services) { d.Operations = &copying{operations: d.Operations} })
	s.ready()
	s.activate()
	release := make(chan struct{})
	defer close(release)
	s.fake.SetHook(func(_ context.Context, at, _ string) error {
		if at == "CreateOverlay.before" {
			<-release
		}
		return nil
	})
	root := s.as(0)
	news := s.listen(root)
	var operation dbus.ObjectPath
	root.must(s.path, vpsI+".Take", []any{options{}}, &operation)
	var done []uint64
	for limit := time.After(20 * time.Second); len(done) < 6; {
		select {
		case sig := <-news.signals:
			if sig.Path != operation {
				continue
			}
			changed := sig.Body[1].(map[string]dbus.Variant)
			if changed["TotalBytes"].Value() != uint64(1<<30) || changed["Note"].Value() != "the VPS writes as fast" {
				t.Errorf("the change is %v", changed)
			}
			done = append(done, changed["DoneBytes"].Value().(uint64))
		case <-limit:
			t.Fatalf("only %d were told", done)
		}
	}
	if !slices.IsSorted(done) {
		t.Errorf("told in another order: %d", done)
	}
}

// endless is a daemon that tells nobody of the end of an operation, as one whose listeners
// have missed events. It counts how often each operation is asked for.
type endless struct {
	operations
	events
	mu    sync.Mutex
	asked map[string]int
	gone  string // an operation that is kept no more
}

func (e *endless) Events(ctx context.Context, after int64) (vps.EventPage, error) {
	page, err := e.events.Events(ctx, after)
	page.Events = slices.Clone(page.Events)
	for i, told := range page.Events {
		if told.Operation != nil && told.Operation.Status.Final() {
			page.Events[i] = vps.Event{ID: told.ID, At: told.At, Type: vps.EventMessage}
		}
	}
	return page, err
}

func (e *endless) Operation(ctx context.Context, id string) (vps.Operation, error) {
	e.mu.Lock()
	e.asked[id]++
	gone := e.gone == id
	e.mu.Unlock()
	if gone {
		return vps.Operation{}, vps.Errorf(vps.CodeNotFound, "no such operation")
	}
	return e.operations.Operation(ctx, id)
}

func (e *endless) count(id string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.asked[id]
}

// What has ended is not looked at for ever, although nobody told of the end; nor does one that
// is kept no more keep the others from being told of.
func TestEndedOperationsAreNotPolled(t *testing.T) {
	for _, pruned := range []bool{false, true} {
		s := &site{host: newHost(t), bus: newBus(t)}
		e := &endless{asked: map[string]int{}}
		s.serve(func(d *bus.Services) {
			e.operations, e.events = d.Operations, d.Events
			d.Operations, d.Events = e, e
		})
		s.ready()
		s.activate()
		release := make(chan struct{})
		defer close(release)
		s.fake.SetHook(func(_ context.Context, at, _ string) error {
			if at == "AllowMerge.before" {
				<-release
			}
			return nil
		})
		root := s.as(0)
		begin := func(method string, args ...any) string {
			var path dbus.ObjectPath
			root.must(s.path, vpsI+method, args, &path)
			return strings.ReplaceAll(string(path)[strings.LastIndexByte(string(path), '/')+1:], "_", "-")
		}
		took := begin(".Take", options{})
		if pruned {
			e.mu.Lock()
			e.gone = took
			e.mu.Unlock()
		}
		if _, err := s.daemon.Operations.WaitOperation(t.Context(), took, 20*time.Second); err != nil {
			t.Fatal(err)
		}
		runs := begin(".Delete")
		eventually(t, "only the deletion is looked at", func() bool {
			before, since := e.count(took), e.count(runs)
			eventually(t, "the deletion is looked at three times", func() bool { return e.count(runs) >= since+3 })
			return e.count(took) == before
		})
	}
}

// activate activates the option of web1.
func (h *host) activate() {
	h.t.Helper()
	_, err := h.daemon.Options.PutOption(
		h.t.Context(), h.web1, vps.OptionOrder{State: vps.OptionActive}, vps.Actor{Name: "test", Way: vps.WayOrder},
	)
	check(h.t, err)
}

// alarming adds to the daemon's events one of a file system.
type alarming struct {
	events
	extra chan vps.Event
}

// Events gives an extra event out once, with the id of the last one.
func (a alarming) Events(ctx context.Context, after int64) (vps.EventPage, error) {
	page, err := a.events.Events(ctx, after)
	if err == nil && len(page.Events) == 0 {
		select {
		case e := <-a.extra:
			e.ID = page.After
			page.Events = []vps.Event{e}
		default:
		}
	}
	return page, err
}
