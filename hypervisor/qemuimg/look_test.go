package qemuimg

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/lab"
)

// hung is a directory that does not answer until the test says so, at its end at the
// latest.
func hung(t *testing.T) (dir string, answer func()) {
	t.Helper()
	dir = t.TempDir()
	end, err := lab.HangDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	answer = sync.OnceFunc(func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(answer)
	return dir, answer
}

// TestHungMountIsNamed (FAULTS row 46): each look at a file system that does not answer
// returns and names it, at once from the second on; other directories are served meanwhile,
// and this one is again when it answers.
func TestHungMountIsNamed(t *testing.T) {
	t.Parallel()
	images := open(t)
	dir, answer := hung(t)
	looks := map[string]func() error{
		"Space":     func() error { _, err := images.Space(t.Context(), dir); return err },
		"Stat":      func() error { _, err := images.Stat(t.Context(), filepath.Join(dir, "file")); return err },
		"Files":     func() error { _, err := images.Files(t.Context(), dir); return err },
		"AwaitRoom": func() error { return images.AwaitRoom(t.Context(), dir) },
	}
	for name, look := range looks {
		for range 100 { // with a thread for each there would soon be too many
			if err := look(); !errors.Is(err, hypervisor.ErrUnavailable) || !strings.Contains(err.Error(), dir) {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	if _, err := images.Space(t.Context(), t.TempDir()); err != nil {
		t.Errorf("another directory: %v", err)
	}
	answer()
	for end := time.Now().Add(time.Minute); looks["Space"]() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it answers again, and is not asked")
		}
	}
	images.looks.mu.Lock()
	defer images.looks.mu.Unlock()
	if n := len(images.looks.hung); n != 0 {
		t.Errorf("%d directories are remembered", n)
	}
}

// TestLookEndsWithItsCaller: who has no more time is not kept waiting for the limit.
func TestLookEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	images := open(t)
	dir, _ := hung(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := images.Space(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
