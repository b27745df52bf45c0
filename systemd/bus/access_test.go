package bus_test

import (
	"context"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"

	"vpssnapd/daemon/vps"
	"vpssnapd/systemd/bus"
)

const (
	accessDenied = "org.freedesktop.DBus.Error.AccessDenied"
	needPassword = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
	invalidArgs  = "org.freedesktop.DBus.Error.InvalidArgs"
)

// everyCall is each method that needs an action of polkit, with arguments that do
// no harm if it is let through.
func everyCall(s *site) []struct {
	path   dbus.ObjectPath
	method string
	args   []any
	action string
} {
	operation := dbus.ObjectPath(manager + "/operation/op_0")
	const properties = "org.freedesktop.DBus.Properties."
	return []struct {
		path   dbus.ObjectPath
		method string
		args   []any
		action string
	}{
		{manager, "org.vpssnapd1.Manager.ListVPS", nil, "read"},
		{manager, "org.vpssnapd1.Manager.GetVPS", []any{"web1"}, "read"},
		{manager, "org.vpssnapd1.Manager.ListOperations", []any{"", "", uint32(10)}, "read"},
		{manager, "org.vpssnapd1.Manager.GetOperation", []any{"op-0"}, "read"},
		{manager, "org.vpssnapd1.Manager.ListStorage", nil, "admin"},
		{manager, properties + "Get", []any{"org.vpssnapd1.Manager", "Version"}, "read"},
		{s.path, properties + "GetAll", []any{vpsI}, "read"},
		{s.path, properties + "Set", []any{vpsI, "Name", variant("web2")}, "read"},
		{s.path, vpsI + ".Show", nil, "read"},
		{s.path, vpsI + ".Take", []any{options{}}, "snapshot"},
		{s.path, vpsI + ".Restore", []any{"", options{}}, "snapshot"},
		{s.path, vpsI + ".UndoRestore", nil, "snapshot"},
		{s.path, vpsI + ".Delete", nil, "snapshot"},
		{s.path, vpsI + ".Describe", []any{""}, "snapshot"},
		{s.path, vpsI + ".Vouch", []any{""}, "admin"},
		{s.path, vpsI + ".GetOption", nil, "read"},
		{s.path, vpsI + ".SetOption", []any{"ended", options{}}, "option"},
		{s.path, vpsI + ".CancelOption", []any{false}, "option"},
		{operation, "org.vpssnapd1.Operation.Wait", []any{uint32(0)}, "read"},
		{operation, "org.vpssnapd1.Operation.Cancel", nil, "snapshot"},
		{operation, "org.vpssnapd1.Operation.Resume", nil, "admin"},
	}
}

// TestPolkitDecides makes every call as an unprivileged user.
func TestPolkitDecides(t *testing.T) {
	s := newSite(t)
	user, polkit := s.as(nobody), s.polkit()
	name := user.conn.Names()[0]
	for _, c := range everyCall(s) {
		want := asked{"system-bus-name " + name, "org.vpssnapd1." + c.action, 0}

		polkit.set(false, false)
		if got := user.refused(c.path, c.method, c.args...); got != accessDenied || polkit.last() != want {
			t.Errorf("%s, when polkit says no: %s; it was asked %+v", c.method, got, polkit.last())
		}
		polkit.set(false, true)
		if got := user.refused(c.path, c.method, c.args...); got != needPassword {
			t.Errorf("%s, without the password that polkit wants: %s", c.method, got)
		}
		// A user at a terminal who types a wrong one.
		user.flags, want.flags = dbus.FlagAllowInteractiveAuthorization, 1
		if got := user.refused(c.path, c.method, c.args...); got != accessDenied || polkit.last() != want {
			t.Errorf("%s, with a wrong password: %s; polkit was asked %+v", c.method, got, polkit.last())
		}
		polkit.set(true, false)
		user.flags, want.flags = 0, 0
		if got := user.refused(c.path, c.method, c.args...); got == accessDenied || got == needPassword ||
			polkit.last() != want {
			t.Errorf("%s, when polkit says yes: %s; it was asked %+v", c.method, got, polkit.last())
		}
	}
	s.activate()
	var operation dbus.ObjectPath
	user.must(s.path, vpsI+".Take", []any{options{}}, &operation)
	if got := user.finish(operation); got != "succeeded" {
		t.Errorf("the take: %s", got)
	}
	var who struct{ Name, Way string }
	check(t, user.property(operation, "Operation", "Actor").Store(&who))
	if who.Name != "nobody" || who.Way != "operator" {
		t.Errorf("the take is recorded as done by %+v", who)
	}
}

// Who only looks at the tree is told of no VPS, and asked for no password.
func TestIntrospectionGivesNothingAway(t *testing.T) {
	s := newSite(t)
	user, polkit := s.as(nobody), s.polkit()
	polkit.set(false, true)
	user.flags = dbus.FlagAllowInteractiveAuthorization
	tree := func(c *caller) (text string) {
		c.must(manager+"/vps", "org.freedesktop.DBus.Introspectable.Introspect", nil, &text)
		return text
	}
	last := string(s.path[strings.LastIndex(string(s.path), "/")+1:])
	if strings.Contains(tree(user), last) || polkit.last().flags != 0 {
		t.Errorf("a stranger sees the VPS in the tree, or was asked: %+v", polkit.last())
	}
	polkit.set(true, false)
	if !strings.Contains(tree(user), last) || !strings.Contains(tree(s.as(0)), last) {
		t.Error("who may look does not see the VPS in the tree")
	}
}

// Without polkit root may everything, and nobody else anything.
func TestWithoutPolkit(t *testing.T) {
	s := newSite(t)
	user, root := s.as(nobody), s.as(0)
	for _, c := range everyCall(s) {
		if got := user.refused(c.path, c.method, c.args...); got != accessDenied {
			t.Errorf("%s by nobody: %s", c.method, got)
		}
		if got := root.refused(c.path, c.method, c.args...); got == accessDenied {
			t.Errorf("%s by root: %s", c.method, got)
		}
	}
}

// The policy of the bus lets nobody else have the name, and hear the signals.
func TestBusPolicy(t *testing.T) {
	s := newSite(t)
	s.end()
	user := s.as(nobody)
	if _, err := user.conn.RequestName(serverName, dbus.NameFlagDoNotQueue); err == nil ||
		!strings.Contains(err.Error(), "not allowed") {
		t.Errorf("nobody gets the name: %v", err)
	}
	s.serve(nil)
	s.ready()
	heard, barred := s.listen(s.as(0)), s.listen(user)
	s.activate()
	heard.until(t, "VPS without snapshot")
	// What the bus had for nobody has come before its answer to this.
	check(t, user.conn.BusObject().Call("org.freedesktop.DBus.GetId", 0).Err)
	for len(barred.signals) > 0 {
		if sig := <-barred.signals; !strings.HasPrefix(sig.Name, "org.freedesktop.DBus.Name") {
			t.Errorf("nobody hears %s %v", sig.Name, sig.Body)
		}
	}
}

// One user cannot take all of the daemon's time; root and others get through.
func TestOneUserHasSoManyCalls(t *testing.T) {
	s := &site{host: newHost(t), bus: newBus(t)}
	begun := make(chan struct{}, 64)
	s.serve(func(d *bus.Services) { d.Operations = waiting{d.Operations, begun} })
	s.ready()
	s.activate()
	release := make(chan struct{})
	s.fake.SetHook(func(_ context.Context, at, _ string) error {
		if at == "CreateOverlay.before" {
			<-release
		}
		return nil
	})
	op, err := s.daemon.Snapshots.Take(t.Context(), s.web1, vps.TakeRequest{}, vps.Actor{Name: "test", Way: vps.WayOperator})
	check(t, err)
	user := s.as(nobody)
	s.polkit().set(true, false)
	path := dbus.ObjectPath(manager + "/operation/" + strings.ReplaceAll(op.ID, "-", "_"))
	answers := make(chan *dbus.Call, 64)
	for range cap(answers) {
		user.conn.Object(serverName, path).Go("org.vpssnapd1.Operation.Wait", 0, answers, uint32(300))
	}
	for range cap(answers) {
		<-begun
	}
	if got := user.refused(s.path, vpsI+".Show"); got != "org.vpssnapd1.Error.RateLimited" {
		t.Errorf("one call too many: %s", got)
	}
	if got := s.as(0).refused(s.path, vpsI+".Show"); got != "" {
		t.Errorf("root: %s", got)
	}
	close(release)
	for range cap(answers) {
		check(t, (<-answers).Err)
	}
	if got := user.refused(s.path, vpsI+".Show"); got != "" {
		t.Errorf("after the waits: %s", got)
	}
}

func TestHostileCalls(t *testing.T) {
	s := newSite(t)
	root := s.as(0)
	const noSuch = manager + "/vps/00000000_0000_0000_0000_000000000000"
	long := strings.Repeat("é", 501)
	for _, c := range []struct {
		path   dbus.ObjectPath
		method string
		args   []any
		want   string
	}{
		// Wrong types, which must not be converted.
		{s.path, vpsI + ".Take", nil, invalidArgs},
		{s.path, vpsI + ".Take", []any{"x"}, invalidArgs},
		{s.path, vpsI + ".Take", []any{options{}, "more"}, invalidArgs},
		{s.path, vpsI + ".Take", []any{map[string]string{"description": "x"}}, invalidArgs},
		{s.path, vpsI + ".Describe", []any{int64(65)}, invalidArgs},
		{s.path, vpsI + ".CancelOption", []any{"true"}, invalidArgs},
		{manager, "org.vpssnapd1.Manager.GetVPS", []any{variant("web1")}, invalidArgs},
		{s.path, vpsI + ".Take", []any{options{"description": variant(int64(65))}}, "org.vpssnapd1.Error.Invalid"},
		{s.path, vpsI + ".Take", []any{options{"description": variant(variant("x"))}}, "org.vpssnapd1.Error.Invalid"},
		{s.path, vpsI + ".Take", []any{options{"replace": variant("true")}}, "org.vpssnapd1.Error.Invalid"},
		{s.path, vpsI + ".Take", []any{options{"frob": variant("x")}}, "org.vpssnapd1.Error.Invalid"},
		{s.path, vpsI + ".SetOption", []any{"active", options{"price": variant("free")}}, "org.vpssnapd1.Error.Invalid"},
		{s.path, vpsI + ".SetOption", []any{"active", options{"price": variant(options{"amount": variant("1")})}}, "org.vpssnapd1.Error.Invalid"},
		// What REST refuses is refused here, too: it is the daemon that does.
		{s.path, vpsI + ".Take", []any{options{"quiesce": variant("maybe")}}, "org.vpssnapd1.Error.Invalid"},
		{s.path, vpsI + ".Take", []any{options{"description": variant("a\nb")}}, "org.vpssnapd1.Error.Invalid"},
		{s.path, vpsI + ".Take", []any{options{"description": variant(long)}}, "org.vpssnapd1.Error.Invalid"},
		{s.path, vpsI + ".Describe", []any{"\x1b[2J"}, "org.vpssnapd1.Error.Invalid"},
		{s.path, vpsI + ".Restore", []any{"x", options{"power_after": variant("sideways")}}, "org.vpssnapd1.Error.Invalid"},
		{s.path, vpsI + ".SetOption", []any{"ended", options{}}, "org.vpssnapd1.Error.Invalid"},
		{s.path, vpsI + ".SetOption", []any{"active", options{"ends_at": variant("tomorrow")}}, "org.vpssnapd1.Error.Invalid"},
		{s.path, vpsI + ".SetOption", []any{"active", options{"price": variant(options{})}}, "org.vpssnapd1.Error.Invalid"},
		{s.path, vpsI + ".SetOption", []any{"active", options{"contact_email": variant("jo")}}, "org.vpssnapd1.Error.Invalid"},
		{s.path, vpsI + ".SetOption", []any{"active", options{"locale": variant("../fr")}}, "org.vpssnapd1.Error.Invalid"},
		{manager, "org.vpssnapd1.Manager.ListOperations", []any{"", "", uint32(1 << 31)}, "org.vpssnapd1.Error.Invalid"},
		// What there is not.
		{noSuch, vpsI + ".Take", []any{options{}}, "org.vpssnapd1.Error.NotFound"},
		{noSuch, "org.freedesktop.DBus.Properties.GetAll", []any{vpsI}, "org.vpssnapd1.Error.NotFound"},
		{manager, "org.vpssnapd1.Manager.GetVPS", []any{"../../etc/passwd"}, "org.vpssnapd1.Error.NotFound"},
		{manager, "org.vpssnapd1.Manager.GetVPS", []any{""}, "org.vpssnapd1.Error.NotFound"},
		{manager, "org.vpssnapd1.Manager.ListOperations", []any{"web9", "", uint32(1)}, "org.vpssnapd1.Error.NotFound"},
		{manager, "org.vpssnapd1.Manager.GetOperation", []any{"op-' OR 1=1"}, "org.vpssnapd1.Error.NotFound"},
		{manager + "/operation/op_0", "org.vpssnapd1.Operation.Wait", []any{uint32(1 << 31)}, "org.vpssnapd1.Error.NotFound"},
		{manager + "/operation/op_0", "org.vpssnapd1.Operation.Resume", nil, "org.vpssnapd1.Error.NotFound"},
		{manager + "/vps/web1", vpsI + ".Show", nil, "org.freedesktop.DBus.Error.NoSuchObject"},
		{"/etc/passwd", vpsI + ".Show", nil, "org.freedesktop.DBus.Error.NoSuchObject"},
		{"/", vpsI + ".Show", nil, "org.freedesktop.DBus.Error.UnknownInterface"},
		{manager, vpsI + ".Take", []any{options{}}, "org.freedesktop.DBus.Error.UnknownInterface"},
		{s.path, vpsI + ".Frob", nil, "org.freedesktop.DBus.Error.UnknownMethod"},
		{s.path, "org.freedesktop.DBus.Properties.Get", []any{vpsI, "Frob"}, "org.freedesktop.DBus.Error.UnknownProperty"},
		{s.path, "org.freedesktop.DBus.Properties.Get", []any{"org.vpssnapd1.Manager", "Version"}, "org.freedesktop.DBus.Error.UnknownInterface"},
		{s.path, "org.freedesktop.DBus.Properties.Set", []any{vpsI, "Name", variant("x")}, "org.freedesktop.DBus.Error.PropertyReadOnly"},
	} {
		if got := root.refused(c.path, c.method, c.args...); got != c.want {
			t.Errorf("%s %v at %s: %s, want %s", c.method, c.args, c.path, got, c.want)
		}
	}
	if strings.Contains(s.log.String(), "panic") {
		t.Error("something panicked")
	}
	var list []struct {
		Path                              dbus.ObjectPath
		ID, Name, State, Option, Snapshot string
	}
	root.must(manager, "org.vpssnapd1.Manager.ListVPS", nil, &list)
	if len(list) != 1 || list[0].Option != "" || list[0].Snapshot != "" {
		t.Errorf("something was done: %+v", list)
	}
}
