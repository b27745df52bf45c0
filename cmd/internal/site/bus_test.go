package site_test

import (
	"testing"

	"github.com/godbus/dbus/v5"

	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
	"vpssnapd/systemd/bus/bustest"
)

// TestBus does the main job over D-Bus, with the daemon as it is started, and across
// its death.
func TestBus(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, "../../../packaging/dbus/org.vpssnapd1.conf")
	h := openHost(t, site.Options{Env: func() []string { return []string{"DBUS_SYSTEM_BUS_ADDRESS=" + b.Address} }})
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}}, "running")
	const name, vps = "org.vpssnapd1", "org.vpssnapd1.VPS."
	conn := b.As(0)
	named := func() bool {
		var has bool
		return conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, name).Store(&has) == nil && has
	}
	h.eventually("the daemon is on the bus", named)
	var path, operation dbus.ObjectPath
	h.must(conn.Object(name, "/org/vpssnapd1").Call("org.vpssnapd1.Manager.GetVPS", 0, "web1").Store(&path))
	web1 := conn.Object(name, path)
	finish := func(call *dbus.Call) {
		t.Helper()
		h.must(call.Store(&operation))
		var status string
		h.must(conn.Object(name, operation).Call("org.vpssnapd1.Operation.Wait", 0, uint32(120)).Store(&status))
		if status != "succeeded" {
			t.Fatalf("%s: %s", operation, status)
		}
	}
	type options = map[string]dbus.Variant
	finish(web1.Call(vps+"Take", 0, options{"description": dbus.MakeVariant("over D-Bus")}))

	h.must(h.KillDaemon())
	h.eventually("the name is free", func() bool { return !named() })
	h.must(h.StartDaemon(t.Context()))
	h.eventually("the daemon is on the bus again", named)

	s, err := h.Client.Snapshot(t.Context(), "web1")
	h.must(err)
	if s.Description != "over D-Bus" {
		t.Errorf("the snapshot is %+v", s)
	}
	finish(web1.Call(vps+"Restore", 0, s.ID, options{}))
	finish(web1.Call(vps+"UndoRestore", 0))
	finish(web1.Call(vps+"Delete", 0))
	h.clean("web1")
}
