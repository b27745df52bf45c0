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

// held reports whether an inhibitor is held: logind looks at the other end of its pipe.
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
	i := &Inhibitor{log: slog.New(slog.DiscardHandler), within: inhibitWithin, open: func(string) (*os.File, error) {
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
	i := &Inhibitor{log: slog.New(slog.DiscardHandler), within: inhibitWithin, open: func(string) (*os.File, error) {
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

// TestLogindThatDoesNotAnswer holds up nobody but those who begin, and each of them no longer
// than its own context: in a stop of the daemon nothing waited for logind may hang.
func TestLogindThatDoesNotAnswer(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan *os.File)
	i := &Inhibitor{
		log:    slog.New(slog.DiscardHandler),
		within: time.Hour,
		missed: time.Now(),
		open: func(string) (*os.File, error) {
			asked <- struct{}{}
			return <-answer, nil
		},
	}
	before := i.Hold(t.Context(), "restore of web1") // logind is not asked so soon again
	i.missed = time.Time{}
	begun := make(chan func())
	go func() { begun <- i.Hold(t.Context(), "delete of web2") }()
	<-asked

	before() // what ends is not held up
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	i.Hold(ended, "take of web3")() // nor is what was cancelled

	logind, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	answer <- ours
	release := <-begun
	if !held(t, logind) {
		t.Error("what waited for the inhibitor has begun without it")
	}
	release()
	if held(t, logind) {
		t.Error("the host is kept up by nobody")
	}
}

// TestLateLogind: nobody waits for an answer that is late, and it is not asked again
// meanwhile; when it comes at last, it counts for what goes on still, and only for that.
func TestLateLogind(t *testing.T) {
	var logind *os.File
	asked, answer := 0, make(chan struct{})
	i := &Inhibitor{log: slog.New(slog.DiscardHandler), open: func(string) (*os.File, error) {
		asked++
		<-answer
		theirs, ours, err := os.Pipe()
		logind = theirs
		return ours, err
	}}
	comes := func() {
		t.Helper()
		q := i.owed()
		answer <- struct{}{}
		for i.owed() == q {
			time.Sleep(time.Millisecond)
		}
	}
	release := i.Hold(t.Context(), "restore of web1")
	i.mu.Lock()
	i.missed = i.missed.Add(-2 * askAgain)
	i.mu.Unlock()
	i.Hold(t.Context(), "delete of web2")()
	comes()
	if asked != 1 || !held(t, logind) {
		t.Errorf("asked %d times; held: %v", asked, held(t, logind))
	}
	release()
	i.Hold(t.Context(), "take of web3")()
	comes()
	if asked != 2 || held(t, logind) {
		t.Errorf("asked %d times; held for nobody: %v", asked, held(t, logind))
	}
}

func (i *Inhibitor) owed() *question {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}
