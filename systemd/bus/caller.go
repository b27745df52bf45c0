package bus

import (
	"context"
	"fmt"
	"os/user"
	"strconv"
	"sync"

	"github.com/godbus/dbus/v5"

	"vpssnapd/daemon/vps"
)

// caller is who sent a call.
type caller struct {
	name        string // unique on the bus, and never given to another
	uid         uint32
	interactive bool // may be asked for a password
}

const (
	polkitName = "org.freedesktop.PolicyKit1"
	polkitPath = "/org/freedesktop/PolicyKit1/Authority"
	polkitAsk  = polkitName + ".Authority.CheckAuthorization"
	// polkitMayAsk lets polkit ask the user for a password.
	polkitMayAsk uint32 = 1
)

// identify asks the bus whose process calls. What is done is recorded as done by an
// operator, as on the Unix socket. An error is AccessDenied: a caller that cannot be
// named may do nothing.
func (s *server) identify(ctx context.Context, conn *dbus.Conn, from *caller) (vps.Actor, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	// Of the bus, not of the message: the message says what its sender likes.
	err := conn.BusObject().
		CallWithContext(ctx, "org.freedesktop.DBus.GetConnectionUnixUser", 0, from.name).
		Store(&from.uid)
	if err != nil {
		return vps.Actor{}, denied("cannot tell who calls: %v", err)
	}
	uid := strconv.FormatUint(uint64(from.uid), 10)
	actor := vps.Actor{Name: "uid " + uid, Way: vps.WayOperator}
	// A user without a name is recorded by number; that is no reason to refuse.
	if u, err := user.LookupId(uid); err == nil {
		actor.Name = u.Username
	}
	return actor, nil
}

// authorize asks polkit whether the caller may do that. Root may everything, also
// on hosts without polkit; there nobody else may anything.
func (s *server) authorize(ctx context.Context, conn *dbus.Conn, from caller, action string) error {
	if from.uid == 0 || action == open {
		return nil
	}
	limit, flags := answerWithin, uint32(0)
	// Only if the caller allows it: scripts must not hang at a password prompt.
	if from.interactive {
		limit, flags = passwordWithin, polkitMayAsk
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// By the bus name and not by the process id, which may be another process by the
	// time polkit looks.
	subject := struct {
		Kind    string
		Details map[string]dbus.Variant
	}{"system-bus-name", map[string]dbus.Variant{"name": dbus.MakeVariant(from.name)}}
	var answer struct {
		Authorized, Challenge bool
		Details               map[string]string
	}
	err := conn.Object(polkitName, polkitPath).
		CallWithContext(ctx, polkitAsk, 0, subject, action, map[string]string{}, flags, "").Store(&answer)
	switch {
	// Silence is a refusal.
	case err != nil:
		return denied("only root may do this: polkit does not answer about %s (%v)", action, err)
	case answer.Authorized:
		return nil
	case answer.Challenge && !from.interactive:
		return dbus.NewError("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
			[]any{fmt.Sprintf("%s needs a password, and the call does not allow to ask for it", action)})
	}
	return denied("polkit does not permit %s; become root or a member of the group vpssnap", action)
}

func denied(format string, args ...any) error {
	return dbus.NewError("org.freedesktop.DBus.Error.AccessDenied", []any{fmt.Sprintf(format, args...)})
}

// callsOfOne is how many calls one user of the host may have in progress, so that
// nobody can take all of the daemon's time and memory. Root is not counted.
const callsOfOne = 64

// inFlight counts the calls in progress.
type inFlight struct {
	mu    sync.Mutex
	of    map[uint32]int
	all   int
	empty chan struct{} // nil until stop
}

func newInFlight() *inFlight { return &inFlight{of: map[uint32]int{}} }

// enter counts a call in, unless its user has too many at once or the daemon stops. Root is
// not counted against a limit.
func (f *inFlight) enter(uid uint32) (leave func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	// The client tries again, and finds the next daemon.
	case f.empty != nil:
		return nil, vps.Errorf(vps.CodeHypervisorUnavailable, "vpssnapd is stopping").WithRemedy("call again in a while")
	case uid != 0 && f.of[uid] >= callsOfOne:
		return nil, vps.Errorf(vps.CodeRateLimited, "user %d has %d calls in progress", uid, callsOfOne).
			WithRemedy("wait until some have ended")
	}
	f.of[uid]++
	f.all++
	return func() { f.leave(uid) }, nil
}

// leave counts a call out and tells whoever waits for the last one.
func (f *inFlight) leave(uid uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// Forgotten at 0: uids come and go, and the map must not grow.
	if f.of[uid]--; f.of[uid] == 0 {
		delete(f.of, uid)
	}
	if f.all--; f.all == 0 && f.empty != nil {
		close(f.empty)
	}
}

// stop lets no more calls in. The channel is closed when there are none.
func (f *inFlight) stop() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.empty = make(chan struct{})
	if f.all == 0 {
		close(f.empty)
	}
	return f.empty
}
