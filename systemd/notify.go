// Package systemd holds the unit files and the code that talks to systemd: its
// notifications and watchdog, the sockets that it passes, the journal, and logind's
// inhibitors. Outside systemd all of it does nothing, or what any program would do.
package systemd

import (
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/coreos/go-systemd/v22/daemon"
)

const (
	// startStep is how much more time to start is asked for at once.
	startStep = 30 * time.Second
	// startAtMost is when a start that does not end is left to systemd's time-out: a
	// large database on a slow disk takes minutes, never this long.
	startAtMost = 15 * time.Minute
)

// Starting asks systemd for more time to start, until the function that it returns
// is called.
func Starting(what string) (done func()) {
	stop, ended := make(chan struct{}), make(chan struct{})
	// systemd forgets the request after its time; so it is repeated.
	go func() {
		defer close(ended)
		more := time.NewTicker(startStep / 3)
		defer more.Stop()
		for began := time.Now(); time.Since(began) < startAtMost; {
			notify("EXTEND_TIMEOUT_USEC="+micros(startStep), status(what))
			select {
			case <-stop:
				return
			case <-more.C:
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(stop)
		<-ended
	})
}

// Ready tells systemd that requests are answered now, after a start or a reload.
func Ready() { notify(daemon.SdNotifyReady) }

// Reloading tells systemd that the configuration is read again; Ready ends that.
func Reloading() {
	notify(daemon.SdNotifyReloading, strings.TrimSpace(daemon.SdNotifyMonotonicUsec()))
}

// Stopping tells systemd that no more requests are taken.
func Stopping(what string) { notify(daemon.SdNotifyStopping, status(what)) }

// status is the line that systemctl status shows.
func status(text string) string {
	return "STATUS=" + strings.Map(func(r rune) rune {
		if unicode.IsControl(r) { // a new line would begin another assignment
			return '?'
		}
		return r
	}, text)
}

// notify sends assignments. A failure changes nothing for us: systemd's own
// time-outs deal with a notification that was lost.
func notify(assignments ...string) { _, _ = daemon.SdNotify(false, strings.Join(assignments, "\n")) }
