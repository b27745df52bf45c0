package systemd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// held says whether an inhibitor is held: logind looks at the other end of its pipe.
func held(t *testing.T, logind *os.File) bool {
	t.Helper()
	if err := logind.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	_, err := logind.Read(make([]byte, 1))
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return errors.Is(err, os.ErrDeadlineExceeded)
}

func TestInhibitorIsHeldWhileAnybodyNeedsIt(t *testing.T) {
	var logind *os.File
	asked := 0
	i := &Inhibitor{log: slog.New(slog.DiscardHandler), open: func(string) (*os.File, error) {
		asked++
		theirs, ours, err := os.Pipe()
		logind = theirs
		return ours, err
	}}
	first := i.Hold(t.Context(), "restore of web1")
	second := i.Hold(t.Context(), "delete of web2")
	first()
	first() // once is enough
	if asked != 1 || !held(t, logind) {
		t.Errorf("asked %d times; held: %v", asked, held(t, logind))
	}
	second()
	if held(t, logind) {
		t.Error("the host is kept up by nobody")
	}
	i.Hold(t.Context(), "take of web3")()
	if asked != 2 || held(t, logind) {
		t.Error("the second time it was not asked for, or not given back")
	}
}

// TestWithoutLogind: everything goes on, and that is said once.
func TestWithoutLogind(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+t.TempDir()+"/none")
	var log bytes.Buffer
	i := NewInhibitor(slog.New(slog.NewTextHandler(&log, nil)))
	for range 3 {
		i.Hold(t.Context(), "take of web1")()
		i.missed = i.missed.Add(-2 * askAgain) // long ago
	}
	if n := strings.Count(log.String(), "logind gives no inhibitor"); n != 1 {
		t.Errorf("said %d times: %s", n, log.String())
	}
}

// TestNothingIsBegunInAShutdown: when the host goes down already, a step waits for our
// own end instead of being cut.
func TestNothingIsBegunInAShutdown(t *testing.T) {
	i := &Inhibitor{log: slog.New(slog.DiscardHandler), open: func(string) (*os.File, error) {
		return nil, dbus.Error{Name: underWay}
	}}
	ctx, cancel := context.WithCancel(t.Context())
	begun := make(chan func())
	go func() { begun <- i.Hold(ctx, "restore of web1") }()
	select {
	case <-begun:
		t.Error("it is begun")
	case <-time.After(100 * time.Millisecond):
	}
	cancel()
	release := <-begun
	release()
}
