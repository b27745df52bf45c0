package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/jedib0t/go-pretty/v6/text"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

func watching(ref string, terminal bool) (w *watch, out, problems *bytes.Buffer) {
	out, problems = new(bytes.Buffer), new(bytes.Buffer)
	a := &app{stdout: out, stderr: problems, output: choice{value: "table"}}
	return &watch{a: a, ref: ref, terminal: terminal, seen: map[string]string{}}, out, problems
}

func merging(percent int) api.VPS {
	return api.VPS{
		ID:       "id-1",
		Name:     "web\x1b1",
		State:    api.VPSStateRunning,
		Snapshot: &api.Snapshot{State: api.SnapshotStateDeleting},
		Operation: &api.Operation{Kind: api.OperationKindDelete, Status: api.OperationStatusRunning, Step: "merge",
			Progress: api.Progress{Percent: percent, DoneBytes: int64(percent) << 20, TotalBytes: 100 << 20}},
	}
}

// Elsewhere than on a terminal there is a line for what has changed, and for each
// tenth of the way.
func TestWatchPrintsChanges(t *testing.T) {
	text.DisableColors()
	w, out, problems := watching("", false)
	for percent := range 35 {
		if err := w.show([]api.VPS{merging(percent)}, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.show(nil, ""); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 4 ||
		!strings.HasSuffix(
			lines[3], "web?1         running, no option, snapshot deleting, delete running: merging the disks, 30 %",
		) {
		t.Errorf("printed\n%s", out)
	}
	if problems.String() != "vpssnap: id-1 is gone\n" {
		t.Errorf("said %q", problems)
	}
}

// A daemon that does not answer is told of once; what it refuses ends the watch.
func TestWatchGoesOnWithoutTheDaemon(t *testing.T) {
	w, _, problems := watching("", false)
	away := &client.UnreachableError{Address: "/run/s", Err: errors.New("no such file")}
	for range 3 {
		if err := w.complain(nil, away); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Count(problems.String(), "\n") != 1 || !strings.Contains(problems.String(), "/run/s") {
		t.Errorf("said %q", problems)
	}
	if err := w.complain(nil, &client.Error{Code: api.CodeForbidden}); client.CodeOf(err) != api.CodeForbidden {
		t.Errorf("a refusal gives %v", err)
	}
}

// On a terminal the picture takes the place of the last one, cut to the screen.
func TestWatchDraws(t *testing.T) {
	text.EnableColors()
	defer text.DisableColors()
	w, out, _ := watching("", true)
	if err := w.show([]api.VPS{merging(40)}, "no answer"); err != nil {
		t.Fatal(err)
	}
	shown := out.String()
	if !strings.HasPrefix(shown, screenTop) || !strings.HasSuffix(shown, eraseBelow) || strings.Contains(shown, "web\x1b") {
		t.Errorf("sent %q", shown)
	}
	plain := colour.ReplaceAllString(shown, "")
	for _, part := range []string{"no answer", "web?1: deleting the snapshot, merging the disks, 40 %, 40 MiB of 100 MiB", "web?1  running  -"} {
		if !strings.Contains(plain, part) {
			t.Errorf("%q is not in\n%s", part, plain)
		}
	}
	tall := strings.Repeat(text.FgRed.Sprint(strings.Repeat("x", 100))+"\n", 50)
	lines := strings.Split(strings.TrimSuffix(strings.TrimPrefix(fit(tall, 20, 10), screenTop), eraseBelow), "\r\n")
	if len(lines) != 10 || strings.Count(lines[0], "x") != 20 || !strings.Contains(lines[0], "\x1b[0m") {
		t.Errorf("cut to\n%q", lines)
	}
}
