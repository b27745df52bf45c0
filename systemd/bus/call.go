package bus

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/godbus/dbus/v5"

	"vpssnapd/daemon/vps"
)

const (
	// answerWithin is how long a call may take, beside waits and passwords.
	answerWithin = time.Minute
	// passwordWithin is how long a user may take to type one.
	passwordWithin = 5 * time.Minute
)

// The actions that polkit is asked about, as in packaging/polkit.
const (
	open           = ""
	actionRead     = name + ".read"
	actionSnapshot = name + ".snapshot"
	actionOption   = name + ".option"
	actionAdmin    = name + ".admin"
)

// method is one line of the table of what can be called: who may, and what it does.
// When run is called, the types of the arguments are those of the contract.
type method struct {
	action string
	run    func(s *server, c *call) ([]any, error)
}

// methods is the one table of what can be called. A test compares it with the contract
// both ways, and each action with the polkit policy.
var methods = map[string]map[string]method{
	managerInterface: {
		"ListVPS":        {actionRead, (*server).listVPS},
		"GetVPS":         {actionRead, (*server).getVPS},
		"ListOperations": {actionRead, (*server).listOperations},
		"GetOperation":   {actionRead, (*server).getOperation},
		"ListStorage":    {actionAdmin, (*server).listStorage},
	},
	vpsInterface: {
		"Show":         {actionRead, (*server).show},
		"Take":         {actionSnapshot, (*server).take},
		"Restore":      {actionSnapshot, (*server).restore},
		"UndoRestore":  {actionSnapshot, (*server).undoRestore},
		"Delete":       {actionSnapshot, (*server).delete},
		"Describe":     {actionSnapshot, (*server).describe},
		"Vouch":        {actionAdmin, (*server).vouch},
		"GetOption":    {actionRead, (*server).getOption},
		"SetOption":    {actionOption, (*server).setOption},
		"CancelOption": {actionOption, (*server).cancelOption},
	},
	operationInterface: {
		"Wait":   {actionRead, (*server).wait},
		"Cancel": {actionSnapshot, (*server).cancel},
		"Resume": {actionAdmin, (*server).resume},
	},
	propertiesInterface: {
		"Get":    {actionRead, (*server).get},
		"GetAll": {actionRead, (*server).getAll},
		"Set":    {actionRead, (*server).set},
	},
	introspectInterface: {
		// Open, because desktop tools introspect whatever they see; what it lists
		// depends on the caller.
		"Introspect": {open, (*server).introspect},
	},
}

// call is one call, of a caller who may make it.
type call struct {
	*object
	ctx   context.Context
	from  caller
	actor vps.Actor
	args  []any
	// operation is the one that the call is about, for the log.
	operation *vps.Operation
}

// bound is a method of an object.
type bound struct {
	*object
	iface, name string
	method      method
}

var _ dbus.ArgumentDecoder = (*bound)(nil)

// NumArguments and the three below it are for other ways to decode arguments than ours.
func (m *bound) NumArguments() int     { return 0 }
func (m *bound) NumReturns() int       { return 0 }
func (m *bound) ArgumentValue(int) any { return nil }
func (m *bound) ReturnValue(int) any   { return nil }

// DecodeArguments refuses what has not exactly the types of the contract. The library's
// own way would convert: a number becomes a letter. Nothing of the call has happened
// yet; who calls is asked later, in Call.
func (m *bound) DecodeArguments(_ *dbus.Conn, sender string, msg *dbus.Message, body []any) ([]any, error) {
	have, _ := msg.Headers[dbus.FieldSignature].Value().(dbus.Signature)
	described, _ := methodOf(m.iface, m.name)
	if want := signature(described, "in"); have.String() != want {
		return nil, dbus.NewError("org.freedesktop.DBus.Error.InvalidArgs",
			[]any{fmt.Sprintf("%s.%s takes arguments of the types %q, not %q", m.iface, m.name, want, have.String())})
	}
	// The sender is set by the bus, and cannot be forged by the caller.
	from := caller{name: sender, interactive: msg.Flags&dbus.FlagAllowInteractiveAuthorization != 0}
	return []any{from, body}, nil
}

// Call lets a call through when its caller may make it. The library runs each call in a
// goroutine of its own.
func (m *bound) Call(decoded ...any) ([]any, error) {
	s, start := m.objects.server, time.Now()
	c := &call{object: m.object, from: decoded[0].(caller), args: decoded[1].([]any)}
	out, err := s.carryOut(m, c)
	s.logCall(m, c, err, time.Since(start))
	if err != nil {
		return nil, busError(err)
	}
	return out, nil
}

// carryOut asks polkit, calls the method, and turns a panic into an error of that call
// alone: the daemon has disks to look after.
func (s *server) carryOut(m *bound, c *call) (out []any, err error) {
	// Deferred first, so that it also catches what the others do.
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	conn := m.objects.conn.Load()
	if conn == nil {
		return nil, errBusGone // not yet: nobody knows our name
	}
	// A stop lets calls under way end; see end.
	ctx := context.WithoutCancel(s.closing)
	// Before polkit, so that the count below is by user.
	if c.actor, err = s.identify(ctx, conn, &c.from); err != nil {
		return nil, err
	}
	// A question for a password counts as a call in progress: it may take minutes.
	leave, err := s.calls.enter(c.from.uid)
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := s.authorize(ctx, conn, c.from, m.method.action); err != nil {
		return nil, err
	}
	var cancel context.CancelFunc
	// From here on: the time that a user needs to type is not the call's.
	c.ctx, cancel = context.WithTimeout(ctx, answerWithin)
	defer cancel()
	return m.method.run(s, c)
}

// logCall writes one line per call, as the REST server does.
func (s *server) logCall(m *bound, c *call, err error, took time.Duration) {
	// Reads are many, as pages poll; what changes something is worth a line always.
	level := slog.LevelDebug
	if m.method.action != actionRead && m.method.action != open {
		level = slog.LevelInfo
	}
	line := []any{
		"method",
		m.iface + "." + m.name,
		"path",
		m.path,
		"actor",
		c.actor.Name,
		"caller",
		c.from.name,
		"took",
		took,
	}
	if err != nil {
		line = append(line, "error", err)
		// Only what nobody expected is an error of ours; refusals are the caller's.
		if busError(err).Name == errorName(vps.CodeInternal) {
			level = slog.LevelError
		}
	}
	switch {
	case c.operation != nil:
		line = append(line, c.operation.LogAttr())
	case m.object.iface == vpsInterface:
		line = append(line, "vps_uuid", m.id)
	}
	s.Logger.Log(context.Background(), level, "D-Bus call", line...)
}

// begun answers with an operation, and names it in the call's line of the log.
func (c *call) begun(op vps.Operation, err error) ([]any, error) {
	if err != nil {
		return nil, err
	}
	c.operation = &op
	return []any{operationPath(op.ID)}, nil
}
