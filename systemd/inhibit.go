package systemd

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/login1"
	"github.com/godbus/dbus/v5"
)

const (
	// inhibitWithin bounds how long a step waits for logind. It is done all the same.
	inhibitWithin = 2 * time.Second
	// goingDown is how long a step is held back when the host shuts down already.
	goingDown = time.Minute
	// askAgain is when logind, which was not there, is asked again.
	askAgain = time.Minute
	// underWay is logind's refusal of an inhibitor for a shutdown that has begun.
	underWay = "org.freedesktop.login1.OperationInProgress"
)

// Inhibitor delays a shutdown of the host, for as long as logind lets it
// (InhibitDelayMaxSec=), while somebody does what should not be cut.
type Inhibitor struct {
	log *slog.Logger
	// open asks logind for an inhibitor. It is called outside mu, and never twice at a time.
	open func(why string) (*os.File, error)
	// within bounds how long a step waits for logind. It is done all the same.
	within time.Duration

	mu     sync.Mutex
	holds  int
	asked  *question // nil when logind owes no answer
	lock   *os.File  // nil when logind does not give one
	missed time.Time // when logind last gave none; zero: it was there
}

// question is one that logind was asked. All steps that begin meanwhile wait for its answer.
type question struct {
	over      context.Context // ends with the answer, or when that is late
	end       context.CancelFunc
	goingDown atomic.Bool // logind's answer is that the host shuts down already
}

// NewInhibitor makes an Inhibitor. logind is asked at the first Hold.
func NewInhibitor(logger *slog.Logger) *Inhibitor {
	bus := &loginBus{}
	return &Inhibitor{log: logger, open: bus.inhibit, within: inhibitWithin}
}

// Hold delays a shutdown until release is called. When the host shuts down already it
// does not return before ctx ends, or a minute is over: nothing should be begun then. A
// step is never refused for want of an inhibitor: without one it is only less protected.
func (i *Inhibitor) Hold(ctx context.Context, why string) (release func()) {
	if q := i.enter(why); q != nil {
		select {
		case <-q.over.Done():
		case <-ctx.Done():
		}
		if q.goingDown.Load() {
			i.log.Info("the host shuts down: what should not be cut is not begun", "what", why)
			select {
			case <-ctx.Done():
			case <-time.After(goingDown):
			}
		}
	}
	return sync.OnceFunc(i.leave)
}

// enter counts a step, and returns what it has to wait for; nil for nothing.
func (i *Inhibitor) enter(why string) *question {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.holds++
	// One inhibitor serves all steps: logind bounds how many there may be.
	if i.lock == nil && i.asked == nil && time.Since(i.missed) > askAgain {
		q := &question{}
		q.over, q.end = context.WithCancel(context.Background())
		i.asked = q
		go i.ask(q, why)
	}
	return i.asked
}

func (i *Inhibitor) leave() {
	i.mu.Lock()
	defer i.mu.Unlock()
	// Closing the file is what gives the inhibitor back.
	if i.holds--; i.holds == 0 && i.lock != nil {
		i.lock.Close()
		i.lock = nil
	}
}

// ask asks logind and takes its answer, also a late one, which nobody waits for any more.
func (i *Inhibitor) ask(q *question, why string) {
	late := time.AfterFunc(i.within, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.asked == q {
			i.miss(context.DeadlineExceeded)
			q.end()
		}
	})
	defer late.Stop()
	// Outside the mutex: logind may take its time, and other steps go on.
	lock, err := i.open(why)
	i.mu.Lock()
	defer i.mu.Unlock()
	defer q.end()
	i.asked = nil
	var refused dbus.Error
	switch {
	case err == nil && i.holds == 0: // who wanted it has ended
		lock.Close()
	case err == nil:
		i.lock, i.missed = lock, time.Time{}
	case errors.As(err, &refused) && refused.Name == underWay:
		q.goingDown.Store(true)
	default:
		i.miss(err)
	}
}

// miss says once that the host may shut down at any moment.
func (i *Inhibitor) miss(err error) {
	// Once, and again after it was there: a host without logind is no news at every
	// step.
	if i.missed.IsZero() {
		i.log.Warn("logind gives no inhibitor: a shutdown of the host may come at any step. "+
			"Operations are taken up afterwards all the same", "error", err)
	}
	i.missed = time.Now()
}

// loginBus is the connection to logind, made when it is needed and again when it is lost.
type loginBus struct{ conn *login1.Conn }

func (b *loginBus) inhibit(why string) (*os.File, error) {
	if b.conn != nil && !b.conn.Connected() {
		b.conn.Close()
		b.conn = nil
	}
	if b.conn == nil {
		conn, err := login1.New()
		if err != nil {
			return nil, err
		}
		b.conn = conn
	}
	return b.conn.Inhibit("shutdown:sleep", "vpssnapd", why, "delay")
}
