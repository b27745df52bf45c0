package systemd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// notified is systemd's end of the notifications.
type notified struct {
	t    *testing.T
	conn *net.UnixConn
}

func newNotified(t *testing.T) *notified {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return &notified{t, conn}
}

// next is the next notification; "" when none comes within the time.
func (m *notified) next(within time.Duration) string {
	m.t.Helper()
	if err := m.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		m.t.Fatal(err)
	}
	text := make([]byte, 4096)
	n, err := m.conn.Read(text)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ""
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return string(text[:n])
}

// until returns when a notification has this assignment.
func (m *notified) until(assignment string) {
	m.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		for line := range strings.Lines(m.next(10 * time.Second)) {
			if strings.TrimSuffix(line, "\n") == assignment {
				return
			}
		}
	}
	m.t.Fatalf("systemd was never told %q", assignment)
}

// patient is what systemd watches in these tests.
type patient struct{ ill atomic.Bool }

func (p *patient) Health(ctx context.Context) error {
	if p.ill.Load() {
		<-ctx.Done() // it hangs
		return ctx.Err()
	}
	return nil
}

func (p *patient) Status(context.Context) string { return "2 VPSes\nREADY=1" }

// TestWatchdogIsFedByHealthOnly: a daemon that hangs is silent, says why in the log, and
// is fed again if it recovers; the status is one line whatever a VPS is called.
func TestWatchdogIsFedByHealthOnly(t *testing.T) {
	m := newNotified(t)
	t.Setenv("WATCHDOG_USEC", strconv.Itoa(int(200*time.Millisecond/time.Microsecond)))
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	var log bytes.Buffer
	var p patient
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Supervise(ctx, &p, slog.New(slog.NewTextHandler(&log, nil)))
	}()
	m.until("WATCHDOG=1")
	m.until("STATUS=2 VPSes?READY=1")
	p.ill.Store(true)
	for fed, end := true, time.Now().Add(10*time.Second); fed; { // what was on its way
		if fed = m.next(500*time.Millisecond) != ""; time.Now().After(end) {
			t.Fatal("it is fed although it hangs")
		}
	}
	p.ill.Store(false)
	m.until("WATCHDOG=1")
	cancel()
	<-ended
	if !strings.Contains(log.String(), "event=daemon.hung") {
		t.Errorf("the log does not say so: %s", log.String())
	}
}

// TestStartAsksForTime: while it starts, systemd is told so and gives more time.
func TestStartAsksForTime(t *testing.T) {
	m := newNotified(t)
	done := Starting("recovering")
	m.until("EXTEND_TIMEOUT_USEC=30000000")
	done()
	done() // it may be said twice
	Ready()
	m.until("READY=1")
	Reloading()
	m.until("RELOADING=1")
	Stopping("ending")
	m.until("STOPPING=1")
}
