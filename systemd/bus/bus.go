// Package bus serves the daemon on the D-Bus system bus as org.vpssnapd1, for
// Cockpit and scripts on the host. org.vpssnapd1.xml is the contract. The package
// has no rule about snapshots: it asks polkit who may call, and the daemon for
// everything else, as the REST server does.
package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/godbus/dbus/v5"
)

// name is what the daemon is called on the bus. The number is the version of the
// interfaces, as in systemd's names.
const name = "org.vpssnapd1"

const (
	// retryEvery is how often a bus is looked for while there is none.
	retryEvery = time.Second
	// connectWithin is how long a bus may take to answer.
	connectWithin = 30 * time.Second
	// endWithin is how long calls may go on when the daemon stops.
	endWithin = 2 * time.Second
)

// Services are what is served, a capability each; each interface stands beside its
// calls. A ref is the id or the name of a VPS. Errors that a caller may read are
// *vps.Error. The bus needs no method that is not here, so each can be replaced by
// itself in a test.
type Services struct {
	Overview   Overview
	Options    Options
	Snapshots  Snapshots
	Vouchers   Vouchers
	Operations Operations
	Events     Events
}

// Config says what is served.
type Config struct {
	Services Services
	Logger   *slog.Logger
	Version  string
}

// server serves on one bus after the other.
type server struct {
	Config
	calls *inFlight
	// closing ends when the daemon stops; it ends waits.
	closing context.Context
}

// Serve answers on the system bus until ctx ends. While there is no bus, or the name
// cannot be had, it says so once and goes on trying; the rest of the daemon does not
// depend on it. D-Bus is a convenience of the host: REST and the hook work without it.
func Serve(ctx context.Context, c Config) {
	// In a goroutine, because a bus that hangs must not keep the daemon from stopping.
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		(&server{Config: c, calls: newInFlight(), closing: ctx}).serve(ctx)
	}()
	<-ctx.Done()
	select {
	case <-ended:
	case <-time.After(2 * endWithin):
		// Neither writing to it nor closing the connection would return.
		c.Logger.Warn("the system bus hangs; not waiting for it")
	}
}

// serve keeps the name on the bus, again and again when the bus restarts. It says an error
// once, not at each attempt.
func (s *server) serve(ctx context.Context) {
	said := ""
	// dbus-daemon is restarted by upgrades; nothing of ours depends on one connection.
	for ctx.Err() == nil {
		served, err := s.session(ctx)
		if served {
			said = ""
		}
		if err != nil && err.Error() != said && ctx.Err() == nil {
			said = err.Error()
			s.Logger.Warn("not on D-Bus for now; everything else works", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryEvery):
		}
	}
}

// session is one connection to a bus; served reports whether it had the name.
func (s *server) session(ctx context.Context) (served bool, err error) {
	// Not ctx: calls that are being answered when it ends get their answer.
	life, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	conn, err := s.connect(ctx, life, cut)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	s.Logger.Info("on D-Bus", "name", name)
	err = s.follow(ctx, conn)
	if ctx.Err() != nil {
		s.end(conn)
		return true, nil
	}
	return true, err
}

// connect gives up after a while, or when ctx ends; the connection itself lives as
// long as life.
func (s *server) connect(ctx, life context.Context, cut func()) (*dbus.Conn, error) {
	limit, done := context.WithTimeout(ctx, connectWithin)
	defer done()
	inTime := context.AfterFunc(limit, cut)
	defer inTime()
	objects := &objects{server: s}
	// The handler comes first: a call may arrive as soon as the name is ours.
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(life), dbus.WithHandler(objects))
	if err != nil {
		return nil, fmt.Errorf("cannot connect to the system bus: %w", err)
	}
	objects.conn.Store(conn)
	// DoNotQueue: a second daemon should fail now, and not take over some day.
	reply, err := conn.RequestName(name, dbus.NameFlagDoNotQueue)
	switch {
	case err != nil:
		err = fmt.Errorf("cannot have the name %s (is its policy in dbus-1/system.d?): %w", name, err)
	case reply != dbus.RequestNameReplyPrimaryOwner:
		err = fmt.Errorf("cannot have the name %s: another vpssnapd has it", name)
	default:
		return conn, nil
	}
	return nil, errors.Join(err, conn.Close())
}

// end takes no more calls, and lets those in progress finish. The library sends the
// answer of a call only after we have left it, and tells nobody: one more trip to the
// bus and back gives it the time. Without, one in a hundred who waited for an operation
// got no answer.
func (s *server) end(conn *dbus.Conn) {
	_, _ = conn.ReleaseName(name) // the bus does it, too, when the connection ends
	limit, done := context.WithTimeout(context.Background(), endWithin)
	defer done()
	// The name is released first, so that no more calls come while those under way end.
	select {
	case <-s.calls.stop():
		_ = conn.BusObject().CallWithContext(limit, "org.freedesktop.DBus.GetId", 0).Err
	case <-limit.Done():
		s.Logger.Warn("D-Bus calls were cut off")
	}
}

// errBusGone: the bus has ended, as when it is restarted.
var errBusGone = errors.New("the system bus has gone")
