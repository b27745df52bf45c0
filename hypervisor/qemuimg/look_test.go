package qemuimg

import (
	"context"
	"errors"
	"os"
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

// TestHungMountIsToldAndNamed: each call on a file system that does not answer returns,
// names it, and does not keep those to other directories waiting (FAULTS row 46).
func TestHungMountIsToldAndNamed(t *testing.T) {
	t.Parallel()
	images, base := open(t), filepath.Join(t.TempDir(), "base")
	writeBase(t, base, mib, 1)
	merge := func(dir string) hypervisor.OfflineMerge {
		return hypervisor.OfflineMerge{Overlay: filepath.Join(dir, "overlay"), Base: base, BaseFormat: "raw"}
	}
	for name, call := range map[string]func(ctx context.Context, dir, file string) error{
		"Stat":      func(ctx context.Context, _, file string) error { _, err := images.Stat(ctx, file); return err },
		"Files":     func(ctx context.Context, dir, _ string) error { _, err := images.Files(ctx, dir); return err },
		"Space":     func(ctx context.Context, dir, _ string) error { _, err := images.Space(ctx, dir); return err },
		"AwaitRoom": func(ctx context.Context, dir, _ string) error { return images.AwaitRoom(ctx, dir) },
		"Inspect": func(ctx context.Context, _, file string) error {
			_, err := images.Inspect(ctx, file, "raw")
			return err
		},
		"Unused":   func(ctx context.Context, _, file string) error { return images.Unused(ctx, file, "raw") },
		"Exchange": func(ctx context.Context, _, file string) error { return images.Exchange(ctx, file, file+"2") },
		"Remove":   func(ctx context.Context, _, file string) error { return images.Remove(ctx, file, 1) },
		"Copy to":  func(ctx context.Context, _, file string) error { _, err := images.Copy(ctx, base, file); return err },
		"Copy from": func(ctx context.Context, _, file string) error {
			_, err := images.Copy(ctx, file, base+"2")
			return err
		},
		"Rebase": func(ctx context.Context, _, file string) error { return images.Rebase(ctx, file, base, "raw") },
		"Export": func(ctx context.Context, _, file string) error { _, err := images.Export(ctx, file, "raw"); return err },
		"Extents": func(ctx context.Context, _, file string) error {
			return images.Extents(ctx, file, "raw", func(int64, int64) {})
		},
		"CreateOverlay": func(ctx context.Context, _, file string) error {
			overlay := hypervisor.Overlay{Path: file, Base: base, BaseFormat: "raw", SizeBytes: mib}
			_, err := images.CreateOverlay(ctx, overlay)
			return err
		},
		"MergeOffline": func(ctx context.Context, dir, _ string) error {
			return images.MergeOffline(ctx, merge(dir), nil)
		},
		"SameAsBase": func(ctx context.Context, dir, _ string) error {
			_, err := images.SameAsBase(ctx, merge(dir))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, answer := hung(t)
			for range 100 { // all but the first find its call under way: with a thread for each there would be too many
				err := call(t.Context(), dir, filepath.Join(dir, "file"))
				if !errors.Is(err, hypervisor.ErrUnavailable) || !strings.Contains(err.Error(), dir) {
					t.Fatalf("got %v", err)
				}
			}
			if _, err := images.Stat(t.Context(), base); err != nil {
				t.Errorf("another directory: %v", err)
			}
			answer()
			await(t, "the directory to be free again", func() bool {
				_, err := images.Space(t.Context(), dir)
				return err == nil
			})
		})
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

// TestFewCallsHangAtOnce: however many ask, few threads are lost to one directory.
func TestFewCallsHangAtOnce(t *testing.T) {
	t.Parallel()
	images := open(t)
	dir, answer := hung(t)
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			if _, err := images.Space(t.Context(), dir); !errors.Is(err, hypervisor.ErrUnavailable) {
				t.Errorf("got %v", err)
			}
		})
	}
	all.Wait()
	images.storage.mu.Lock()
	threads := len(images.storage.dirs[dir].looks)
	images.storage.mu.Unlock()
	if threads != looksAtOnce {
		t.Errorf("%d calls hang", threads)
	}
	answer()
	await(t, "the calls to end", func() bool {
		images.storage.mu.Lock()
		defer images.storage.mu.Unlock()
		return len(images.storage.dirs) == 0
	})
}

// TestAnAbandonedChangeIsOutwaited: what is read after a change that nobody waited for
// must be what came of it, so nothing is read before it has ended.
func TestAnAbandonedChangeIsOutwaited(t *testing.T) {
	t.Parallel()
	images := open(t)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	goOn, begun := make(chan struct{}), make(chan struct{})
	changed := make(chan error, 1)
	go func() {
		_, err := change(ctx, &images.storage, []string{filepath.Join(dir, "late")}, func(context.Context) (int, error) {
			close(begun)
			<-goOn
			return 0, os.WriteFile(filepath.Join(dir, "late"), nil, 0o600)
		})
		changed <- err
	}()
	<-begun
	cancel()
	if err := <-changed; !errors.Is(err, hypervisor.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if _, err := images.Files(t.Context(), dir); !errors.Is(err, hypervisor.ErrUnavailable) {
		t.Errorf("it could be looked at: %v", err)
	}
	if err := images.Remove(t.Context(), filepath.Join(dir, "other"), 1); !errors.Is(err, hypervisor.ErrUnavailable) {
		t.Errorf("it could be changed: %v", err)
	}
	close(goOn)
	await(t, "the change to end", func() bool {
		files, err := images.Files(t.Context(), dir)
		if err == nil && len(files) != 1 {
			t.Fatalf("it was read before the change had ended: %v", files)
		}
		return err == nil
	})
}

// TestTheOutcomeIsKnownWhereItCanBe: the end of a context takes no outcome away that is
// there a moment later.
func TestTheOutcomeIsKnownWhereItCanBe(t *testing.T) {
	t.Parallel()
	images := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	n, err := change(ctx, &images.storage, []string{"/tmp"}, func(context.Context) (int, error) {
		cancel()
		return 7, nil
	})
	if n != 7 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}

// TestANeighbourOnAHungMountHoldsNobodyUp: one image of a directory is a link into a
// file system that does not answer. The others are served.
func TestANeighbourOnAHungMountHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	images, dir := open(t), t.TempDir()
	away, _ := hung(t)
	link, mine := filepath.Join(dir, "link"), filepath.Join(dir, "mine")
	writeBase(t, mine, mib, 1)
	if err := os.Symlink(filepath.Join(away, "image"), link); err != nil {
		t.Fatal(err)
	}
	if _, err := images.Stat(t.Context(), link); !errors.Is(err, hypervisor.ErrUnavailable) || !strings.Contains(err.Error(), away) {
		t.Errorf("got %v", err)
	}
	if _, err := images.Stat(t.Context(), mine); err != nil {
		t.Errorf("its neighbour: %v", err)
	}
}

// await polls until done: nothing tells of a call that nobody waits for.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for until := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestAHungMountEndsAChange: a change whose file system stops to answer while it goes on
// is given up although its caller has all the time; a copy that goes on is not.
func TestAHungMountEndsAChange(t *testing.T) {
	t.Parallel()
	images := open(t)
	dir, away := t.TempDir(), t.TempDir()
	goOn := make(chan struct{})
	t.Cleanup(func() { close(goOn) })
	_, err := change(t.Context(), &images.storage, []string{filepath.Join(away, "a"), filepath.Join(dir, "b")},
		func(context.Context) (int, error) {
			end, err := lab.HangDirectory(dir)
			if err != nil {
				return 0, err
			}
			t.Cleanup(func() { _ = end() })
			<-goOn
			return 0, nil
		})
	var storage *hypervisor.StorageError
	if !errors.As(err, &storage) || storage.Dir != dir {
		t.Fatalf("got %v", err)
	}
	if _, err := images.Stat(t.Context(), filepath.Join(dir, "b")); !errors.Is(err, hypervisor.ErrUnavailable) {
		t.Errorf("it could be looked at: %v", err)
	}
}

// TestOtherNamesOfAHungDirectory: what is left alone under one name is left alone under
// each other.
func TestOtherNamesOfAHungDirectory(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]func(t *testing.T, dir string) string{
		"a link to the file": func(t *testing.T, dir string) string {
			return link(t, filepath.Join(dir, "file"), filepath.Join(t.TempDir(), "link"))
		},
		"a link to the directory": func(t *testing.T, dir string) string {
			return filepath.Join(link(t, dir, filepath.Join(t.TempDir(), "link")), "file")
		},
		"a relative link": func(t *testing.T, dir string) string {
			beside := filepath.Join(filepath.Dir(dir), "beside")
			return filepath.Join(link(t, filepath.Base(dir), beside), "file")
		},
		"two links": func(t *testing.T, dir string) string {
			first := link(t, dir, filepath.Join(t.TempDir(), "first"))
			return filepath.Join(link(t, first, filepath.Join(t.TempDir(), "second")), "file")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			images, dir := open(t), filepath.Join(t.TempDir(), "images")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			path := other(t, dir)
			goOn := make(chan struct{})
			defer close(goOn)
			ctx, cancel := context.WithCancel(t.Context())
			_, err := change(ctx, &images.storage, []string{path}, func(context.Context) (int, error) {
				cancel()
				<-goOn
				return 0, nil
			})
			if !errors.Is(err, hypervisor.ErrUnavailable) {
				t.Fatalf("got %v", err)
			}
			for _, path := range []string{path, filepath.Join(dir, "file")} {
				if err := images.Remove(t.Context(), path, 1); !errors.Is(err, hypervisor.ErrUnavailable) {
					t.Errorf("%s could be changed: %v", path, err)
				}
			}
		})
	}
}

func link(t *testing.T, target, name string) string {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
	return name
}
