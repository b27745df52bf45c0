package bus_test

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"vpssnapd/daemon/vps"
	"vpssnapd/systemd/bus"
)

// The bus is away when the daemon starts, comes, goes and comes again.
func TestBusComesAndGoes(t *testing.T) {
	b := newBus(t)
	b.Stop()
	s := &site{host: newHost(t), bus: b}
	s.serve(nil)
	eventually(
		t, "the daemon says that there is no bus",
		func() bool { return strings.Contains(s.log.String(), "not on D-Bus for now") },
	)
	for range 2 {
		b.Start()
		s.ready()
		var found dbus.ObjectPath
		s.as(0).must(manager, "org.vpssnapd1.Manager.GetVPS", []any{"web1"}, &found)
		b.Stop()
		eventually(t, "the daemon notices", func() bool {
			log := s.log.String()
			return strings.Count(log, "not on D-Bus for now") > strings.Count(log, "msg=\"on D-Bus\"")
		})
	}
	b.Start()
	s.ready()
	if n := strings.Count(s.log.String(), "no such file"); n > 3 {
		t.Errorf("it says %d times that there is no bus:\n%s", n, s.log.String())
	}
}

// A second daemon does without the name, says so, and takes it over later.
func TestTwoDaemons(t *testing.T) {
	s := newSite(t)
	second := newHost(t)
	second.serve(nil)
	eventually(
		t, "the second says so",
		func() bool { return strings.Contains(second.log.String(), "another vpssnapd has it") },
	)
	s.end()
	eventually(t, "the second has the name", func() bool { return strings.Contains(second.log.String(), `msg="on D-Bus"`) })
	var found dbus.ObjectPath
	s.as(0).must(manager, "org.vpssnapd1.Manager.GetVPS", []any{"web1"}, &found)
	if found != second.path {
		t.Errorf("web1 is %s", found)
	}
}

// Both are embedded by these names: the interfaces have methods called like them.
type (
	operations = bus.Operations
	events     = bus.Events
)

// waiting says when somebody waits for an operation.
type waiting struct {
	operations
	begun chan struct{}
}

func (w waiting) WaitOperation(ctx context.Context, id string, limit time.Duration) (vps.Operation, error) {
	w.begun <- struct{}{}
	return w.operations.WaitOperation(ctx, id, limit)
}

// A stop of the daemon answers its waiters; the operation goes on with the next one.
func TestStopAnswersWhoWaits(t *testing.T) {
	s := &site{host: newHost(t), bus: newBus(t)}
	begun := make(chan struct{})
	s.serve(func(d *bus.Services) { d.Operations = waiting{d.Operations, begun} })
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
	var operation dbus.ObjectPath
	root.must(s.path, vpsI+".Take", []any{options{}}, &operation)
	answer := make(chan *dbus.Call, 1)
	root.conn.Object(serverName, operation).Go("org.vpssnapd1.Operation.Wait", 0, answer, uint32(300))
	<-begun
	s.end()
	var waited string
	check(t, (<-answer).Store(&waited))
	if waited != "running" && waited != "pending" {
		t.Errorf("the wait ended with %s", waited)
	}
}

// talkative has no end of events.
type talkative struct{ events }

func (d talkative) Events(ctx context.Context, after int64) (vps.EventPage, error) {
	page, err := d.events.Events(ctx, after)
	full := vps.Event{
		ID:        page.After,
		Type:      vps.EventSpaceCritical,
		EventData: vps.EventData{Space: &vps.SpaceEvent{Path: strings.Repeat("/x", 1000)}},
	}
	page.Events = []vps.Event{full}
	return page, err
}

// A bus that hangs does not keep the daemon from stopping.
func TestStopWithoutTheBus(t *testing.T) {
	s := &site{host: newHost(t), bus: newBus(t)}
	s.serve(func(d *bus.Services) { d.Events = talkative{d.Events} })
	s.ready()
	check(t, s.bus.Signal(syscall.SIGSTOP))
	defer func() { check(t, s.bus.Signal(syscall.SIGCONT)) }()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.end()
	}()
	select {
	case <-stopped:
	case <-time.After(30 * time.Second):
		t.Error("the daemon does not stop")
	}
}
