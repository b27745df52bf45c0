package systemd

import (
	"context"
	"testing"

	"github.com/godbus/dbus/v5"
)

// manager remembers what it was asked.
type manager struct {
	dbus.BusObject
	method string
	args   []any
}

func (m *manager) CallWithContext(_ context.Context, method string, _ dbus.Flags, args ...any) *dbus.Call {
	m.method, m.args = method, args
	return &dbus.Call{}
}

// TestScopeIsAskedForAsDocumented: org.freedesktop.systemd1(5) has the types.
func TestScopeIsAskedForAsDocumented(t *testing.T) {
	var m manager
	if err := startScope(t.Context(), &m, 4711, 20); err != nil {
		t.Fatal(err)
	}
	if got := dbus.SignatureOf(m.args...).String(); m.method != "org.freedesktop.systemd1.Manager.StartTransientUnit" ||
		got != "ssa(sv)a(sa(sv))" {
		t.Errorf("%s(%s)", m.method, got)
	}
	types := map[string]string{
		"Description": "s",
		"Slice":       "s",
		"PIDs":        "au",
		"CPUWeight":   "t",
		"IOWeight":    "t",
		"CollectMode": "s",
	}
	properties, _ := m.args[2].([]property)
	for _, p := range properties {
		if got := p.Value.Signature().String(); got != types[p.Name] {
			t.Errorf("%s has the type %q", p.Name, got)
		}
		delete(types, p.Name)
	}
	if len(types) > 0 || m.args[0] != "vpssnapd-merge-4711.scope" {
		t.Errorf("missing %v of %v", types, m.args[0])
	}
}
