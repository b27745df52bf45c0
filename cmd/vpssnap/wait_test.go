package main

import (
	"bytes"
	"regexp"
	"slices"
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

func (s *screen) refreshes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.buf.String(), cursorUp)
}

const (
	cursorUp  = "\x1b[A"
	eraseLine = "\x1b[K"
)

var colour = regexp.MustCompile("\x1b\\[[0-9;]*m")

// lines is what a terminal shows, from what the bar may send it.
func (s *screen) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines, at := []string{""}, 0
	for sent := colour.ReplaceAllString(s.buf.String(), ""); sent != ""; {
		var ok bool
		if sent, ok = strings.CutPrefix(sent, cursorUp); ok {
			at--
		} else if sent, ok = strings.CutPrefix(sent, eraseLine); ok {
			lines[at] = ""
		} else if sent, ok = strings.CutPrefix(sent, "\n"); ok {
			if at++; at == len(lines) {
				lines = append(lines, "")
			}
		} else {
			end := strings.IndexAny(sent, "\x1b\n")
			lines[at] += sent[:end]
			sent = sent[end:]
		}
	}
	return slices.DeleteFunc(lines, func(l string) bool { return l == "" })
}

func TestProgressBar(t *testing.T) {
	out := &screen{}
	a := &app{stderr: out}
	op := api.Operation{VPSName: "web1\x1b[2J", Status: api.OperationStatusRunning, Step: "copying"}
	seen, stop := a.bar(op)
	op.Progress = api.Progress{DoneBytes: 1 << 30, TotalBytes: 4 << 30, Percent: 25}
	seen(op)
	deadline := time.Now().Add(10 * time.Second)
	// Some refreshes later there is still one line.
	for !out.shows("1.0 GiB of 4.0 GiB") || out.refreshes() < 4 {
		if time.Now().After(deadline) {
			t.Fatalf("the bar shows %q", out.buf.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if lines := out.lines(); len(lines) != 1 || len([]rune(lines[0])) > 80 {
		t.Errorf("the terminal shows %q", lines)
	}
	stop()
	if lines := out.lines(); len(lines) != 0 {
		t.Errorf("the bar left %q on the terminal", lines)
	}
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
