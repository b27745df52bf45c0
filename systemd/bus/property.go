package bus

import (
	"context"

	"github.com/godbus/dbus/v5"
)

// properties reads those of an object, as last known: clients read them often. Never
// with a question to libvirt: desktop tools read all properties of all objects.
func (o *object) properties(ctx context.Context) (dict, error) {
	s := o.objects.server
	switch o.iface {
	case vpsInterface:
		v, err := s.Services.Overview.KnownVPS(ctx, o.id)
		if err != nil {
			return nil, err
		}
		return vpsProperties(v), nil
	case operationInterface:
		op, err := s.Services.Operations.Operation(ctx, o.id)
		if err != nil {
			return nil, err
		}
		return operationProperties(op), nil
	}
	return dict{"Version": dbus.MakeVariant(s.Version)}, nil
}

// getAll answers GetAll. An empty interface means all interfaces, by the D-Bus
// specification.
func (s *server) getAll(c *call) ([]any, error) {
	switch iface := c.args[0].(string); iface {
	case c.iface, "":
		all, err := c.properties(c.ctx)
		return []any{all}, err
	case propertiesInterface, introspectInterface:
		return []any{dict{}}, nil // they have none
	default:
		return nil, noInterface(iface)
	}
}

// get answers Get with one property of those that GetAll would give.
func (s *server) get(c *call) ([]any, error) {
	iface, wanted := c.args[0].(string), c.args[1].(string)
	if iface != c.iface && iface != "" {
		return nil, noInterface(iface)
	}
	all, err := c.properties(c.ctx)
	if err != nil {
		return nil, err
	}
	v, ok := all[wanted]
	if !ok {
		return nil, dbus.NewError(
			"org.freedesktop.DBus.Error.UnknownProperty", []any{"there is no property " + text(wanted)},
		)
	}
	return []any{v}, nil
}

func noInterface(iface string) error {
	e := dbus.MakeUnknownInterfaceError(text(iface))
	return &e
}

// set answers Set: every property is read-only.
func (s *server) set(*call) ([]any, error) {
	return nil, dbus.NewError(
		"org.freedesktop.DBus.Error.PropertyReadOnly",
		[]any{"no property can be set; there are methods for what can be changed"},
	)
}
