package bus_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"vpssnapd/daemon"
	"vpssnapd/daemon/daemontest"
	"vpssnapd/daemon/guest"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/notify"
	"vpssnapd/daemon/snapshot"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
	"vpssnapd/systemd/bus"
	"vpssnapd/systemd/bus/bustest"
)

const (
	serverName = "org.vpssnapd1"
	manager    = "/org/vpssnapd1"
	nobody     = 65534
)

// testBus is a system bus of the test's own.
type testBus struct{ *bustest.Bus }

func newBus(t *testing.T) *testBus {
	t.Helper()
	b := &testBus{bustest.New(t, "../../packaging/dbus/org.vpssnapd1.conf")}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", b.Address)
	return b
}

// polkit answers as it is told, and keeps what it was asked.
type polkit struct {
	mu        sync.Mutex
	permitted bool
	challenge bool
	asked     []asked
}

type asked struct {
	subject string
	action  string
	flags   uint32
}

func (s *site) polkit() *polkit {
	s.t.Helper()
	p := &polkit{}
	conn := s.bus.As(0)
	check(s.t, conn.Export(p, "/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority"))
	reply, err := conn.RequestName("org.freedesktop.PolicyKit1", dbus.NameFlagDoNotQueue)
	check(s.t, err)
	if reply != dbus.RequestNameReplyPrimaryOwner {
		s.t.Fatal("no name for polkit")
	}
	return p
}

type subject struct {
	Kind    string
	Details map[string]dbus.Variant
}

type authorization struct {
	Authorized, Challenge bool
	Details               map[string]string
}

// CheckAuthorization is the method of polkit's authority.
func (p *polkit) CheckAuthorization(
	s subject, action string, _ map[string]string, flags uint32, _ string,
) (authorization, *dbus.Error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	who, _ := s.Details["name"].Value().(string)
	p.asked = append(p.asked, asked{s.Kind + " " + who, action, flags})
	return authorization{p.permitted, p.challenge, map[string]string{}}, nil
}

func (p *polkit) set(permitted, challenge bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.permitted, p.challenge, p.asked = permitted, challenge, nil
}

func (p *polkit) last() asked {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.asked) == 0 {
		return asked{}
	}
	return p.asked[len(p.asked)-1]
}

// host is a fake host with the VPS web1, and the real daemon on it.
type host struct {
	t      *testing.T
	fake   *fake.Host
	daemon *daemon.Daemon
	log    *daemontest.Buffer
	web1   string
	path   dbus.ObjectPath // of web1
	end    func()          // stops serving
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, log: &daemontest.Buffer{}}
	var err error
	h.fake, err = fake.Open(t.TempDir())
	check(t, err)
	h.web1, err = h.fake.Define("web1", hypervisor.Disk{Target: "vda", SizeBytes: 1 << 20})
	check(t, err)
	check(t, h.fake.SetAgent(h.web1, fake.AgentAnswers))
	check(t, h.fake.Start(t.Context(), h.web1, false))
	h.path = dbus.ObjectPath(manager + "/vps/" + strings.ReplaceAll(h.web1, "-", "_"))
	h.daemon, err = daemon.Open(context.Background(), daemon.Config{
		Host: h.fake, StateDir: t.TempDir(), Version: "test",
		Settings: daemon.Settings{
			Offer:    vps.Offer{ID: "snapshot", Price: vps.Price{Amount: 299, Currency: "EUR", Period: vps.PeriodMonth}},
			Notify:   notify.Policy{Grace: time.Hour},
			Snapshot: snapshot.Policy{UndoKeep: time.Hour, AgentWait: time.Second},
			Guest:    guest.Policy{FreezeLimit: time.Second},
			Merge:    merge.Policy{Limit: 2},
		},
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	check(t, err)
	t.Cleanup(func() { check(t, errors.Join(h.daemon.Close(), h.fake.Close())) })
	return h
}

// serve serves the daemon until the test ends, as around changes it; nil: as it is.
func (h *host) serve(around func(*bus.Services)) {
	h.t.Helper()
	d := h.daemon
	services := bus.Services{
		Overview:   d.Overview,
		Options:    d.Options,
		Snapshots:  d.Snapshots,
		Vouchers:   d.Vouchers,
		Operations: d.Operations,
		Events:     d.Journal,
	}
	if around != nil {
		around(&services)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		bus.Serve(
			ctx,
			bus.Config{
				Services: services,
				Version:  "1.2.3",
				Logger:   slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
			},
		)
	}()
	h.end = sync.OnceFunc(func() { cancel(); <-ended })
	h.t.Cleanup(func() {
		h.end()
		if h.t.Failed() {
			h.t.Log(h.log.String())
		}
	})
}

// site is a host that is served on a bus.
type site struct {
	*host
	bus *testBus
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{host: newHost(t), bus: newBus(t)}
	s.serve(nil)
	s.ready()
	return s
}

// ready waits until the daemon has its name.
func (s *site) ready() {
	s.t.Helper()
	conn := s.bus.As(0)
	eventually(s.t, "the name is taken", func() bool {
		var has bool
		return conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, serverName).Store(&has) == nil && has
	})
}

// caller is a user of the host.
type caller struct {
	t     *testing.T
	conn  *dbus.Conn
	flags dbus.Flags
}

func (s *site) as(uid int) *caller { return &caller{t: s.t, conn: s.bus.As(uid)} }

func (c *caller) call(path dbus.ObjectPath, method string, args ...any) *dbus.Call {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	dot := strings.LastIndexByte(method, '.')
	// By hand: the library's own way to call drops the flag for passwords.
	msg := &dbus.Message{Type: dbus.TypeMethodCall, Flags: c.flags, Body: args, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath: variant(path), dbus.FieldDestination: variant(serverName),
		dbus.FieldInterface: variant(method[:dot]), dbus.FieldMember: variant(method[dot+1:]),
	}}
	if len(args) > 0 {
		msg.Headers[dbus.FieldSignature] = variant(dbus.SignatureOf(args...))
	}
	return <-c.conn.SendWithContext(ctx, msg, make(chan *dbus.Call, 1)).Done
}

// must is a call that has to succeed, and stores what it returns.
func (c *caller) must(path dbus.ObjectPath, method string, args []any, to ...any) {
	c.t.Helper()
	if err := c.call(path, method, args...).Store(to...); err != nil {
		c.t.Fatalf("%s %v: %v", method, args, err)
	}
}

// refused is the name of the error of a call.
func (c *caller) refused(path dbus.ObjectPath, method string, args ...any) string {
	c.t.Helper()
	err := c.call(path, method, args...).Err
	var e dbus.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Name
	}
	return err.Error()
}

// finish waits for the end of an operation.
func (c *caller) finish(operation dbus.ObjectPath) (status string) {
	c.t.Helper()
	c.must(operation, serverName+".Operation.Wait", []any{uint32(25)}, &status)
	return status
}

func (c *caller) property(path dbus.ObjectPath, iface, name string) dbus.Variant {
	c.t.Helper()
	var v dbus.Variant
	c.must(path, "org.freedesktop.DBus.Properties.Get", []any{serverName + "." + iface, name}, &v)
	return v
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 20 s: %s", what)
}
