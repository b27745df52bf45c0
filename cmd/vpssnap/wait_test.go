package main

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"

	"vpssnapd/api"
)

// screen is a terminal that can be read while it is written to.
type screen struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *screen) shows(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.buf.String(), text)
}

func TestProgressBar(t *testing.T) {
	out := &screen{}
	a := &app{stderr: out}
	op := api.Operation{VPSName: "web1\x1b[2J", Status: api.OperationStatusRunning, Step: "copying"}
	seen, stop := a.bar(op)
	op.Progress = api.Progress{DoneBytes: 1 << 30, TotalBytes: 4 << 30, Percent: 25}
	seen(op)
	deadline := time.Now().Add(10 * time.Second)
	for !out.shows("1.0 GiB of 4.0 GiB") {
		if time.Now().After(deadline) {
			t.Fatalf("the bar shows %q", out.buf.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	if out.shows("\x1b[2J") {
		t.Error("a name reached the terminal as it is")
	}
}

func TestProgressBarThatEndsAtOnce(t *testing.T) {
	ended := make(chan struct{})
	go func() {
		_, stop := (&app{stderr: &screen{}}).bar(api.Operation{})
		stop()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the bar does not stop")
	}
}
