package systemd

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
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
	// open asks logind for an inhibitor.
	open func(why string) (*os.File, error)

	mu     sync.Mutex
	holds  int
	lock   *os.File  // nil when logind does not give one
	missed time.Time // when logind last gave none; zero: it was there
}

// NewInhibitor makes an Inhibitor. logind is asked at the first Hold.
func NewInhibitor(logger *slog.Logger) *Inhibitor {
	bus := &loginBus{}
	return &Inhibitor{log: logger, open: bus.inhibit}
}

// Hold delays a shutdown until release is called. When the host shuts down already it
// does not return before ctx ends, or a minute is over: nothing should be begun then.
func (i *Inhibitor) Hold(ctx context.Context, why string) (release func()) {
	i.mu.Lock()
	if i.holds++; i.lock == nil && time.Since(i.missed) > askAgain && i.inhibit(why) == underWay {
		i.mu.Unlock()
		i.log.Info("the host shuts down: what should not be cut is not begun", "what", why)
		select {
		case <-ctx.Done():
		case <-time.After(goingDown):
		}
		i.mu.Lock()
	}
	i.mu.Unlock()
	return sync.OnceFunc(func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.holds--; i.holds == 0 && i.lock != nil {
			i.lock.Close()
			i.lock = nil
		}
	})
}

// inhibit takes the lock, if it can be had, and returns the name of logind's refusal.
func (i *Inhibitor) inhibit(why string) (refusal string) {
	type answer struct {
		lock *os.File
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		lock, err := i.open(why)
		answered <- answer{lock, err}
	}()
	late := time.NewTimer(inhibitWithin)
	defer late.Stop()
	select {
	case a := <-answered:
		i.lock = a.lock
		var refused dbus.Error
		switch {
		case a.err == nil:
			i.missed = time.Time{}
		case errors.As(a.err, &refused) && refused.Name == underWay:
			return underWay
		default:
			i.miss(a.err)
		}
	case <-late.C:
		go func() {
			if a := <-answered; a.lock != nil {
				a.lock.Close()
			}
		}()
		i.miss(context.DeadlineExceeded)
	}
	return ""
}

// miss says once that the host may shut down at any moment.
func (i *Inhibitor) miss(err error) {
	if i.missed.IsZero() {
		i.log.Warn("logind gives no inhibitor: a shutdown of the host may come at any step. Operations are taken up afterwards all the same", "error", err)
	}
	i.missed = time.Now()
}

// loginBus is the connection to logind, made when it is needed and again when it is lost.
type loginBus struct {
	mu   sync.Mutex
	conn *login1.Conn
}

func (b *loginBus) inhibit(why string) (*os.File, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
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
