package daemon_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// askedHost counts how often each image is asked for its header.
type askedHost struct {
	hypervisor.Host
	mu    sync.Mutex
	asked map[string]int
	// late is how many more times an image gives no answer in time.
	late map[string]int
	// hung is how many more times an image lies on a mount that does not answer.
	hung map[string]int
}

// Stat fails as hypervisor/qemuimg does for a mount that does not answer.
func (h *askedHost) Stat(ctx context.Context, path string) (hypervisor.File, error) {
	h.mu.Lock()
	hung := h.hung[path] > 0
	if hung {
		h.hung[path]--
	}
	h.mu.Unlock()
	if hung {
		return hypervisor.File{}, hypervisor.ErrUnavailable
	}
	return h.Host.Stat(ctx, path)
}

func (h *askedHost) Inspect(ctx context.Context, path, format string) (hypervisor.Image, error) {
	h.mu.Lock()
	h.asked[path]++
	late := h.late[path] > 0
	if late {
		h.late[path]--
	}
	h.mu.Unlock()
	if late {
		return hypervisor.Image{}, context.DeadlineExceeded
	}
	return h.Host.Inspect(ctx, path, format)
}

func (h *askedHost) times(path string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.asked[path]
}

// TestHeadersAreRemembered: a deletion asks the images of VPSes that are off what they
// lie on, but only those that have changed since: also when one was written in
// place, or replaced, and has become a linked clone of what is to be merged.
func TestHeadersAreRemembered(t *testing.T) {
	asked := &askedHost{asked: map[string]int{}}
	w := newWorld(t, func(c *daemon.Config) {
		asked.Host = c.Host
		c.Host = asked
	})
	id := w.vps("web1", hypervisor.Running)
	w.vps("web2", hypervisor.Off)
	base, other := w.image("web1"), w.image("web2")
	past := time.Now().Add(-time.Hour)
	w.must(os.Chtimes(other, past, past))
	for range 2 {
		w.take(id, vps.TakeRequest{})
		w.delete(id)
	}
	if n := asked.times(other); n != 1 {
		t.Errorf("the image of a VPS that is off was asked %d times in two deletions, want once", n)
	}

	plain, err := os.ReadFile(other)
	w.must(err)
	w.vps(
		"clone", hypervisor.Off,
		hypervisor.Disk{Target: "vda", SizeBytes: 8 * mib, Chain: []hypervisor.Layer{{Path: base, Format: "qcow2"}}},
	)
	linked, err := os.ReadFile(w.image("clone"))
	w.must(err)
	w.must(os.WriteFile(w.image("clone"), plain, 0o600))
	size := max(len(plain), len(linked))
	plain, linked = padded(plain, size), padded(linked, size)
	for _, change := range []struct {
		how  string
		make func() error
	}{
		{"written in place", func() error { return os.WriteFile(other, linked, 0o600) }},
		{"replaced", func() error {
			if err := os.WriteFile(other+".new", linked, 0o600); err != nil {
				return err
			}
			return os.Rename(other+".new", other)
		}},
	} {
		w.must(os.WriteFile(other, plain, 0o600))
		w.must(os.Chtimes(other, past, past))
		w.take(id, vps.TakeRequest{})
		w.delete(id) // it remembers the image as it is

		w.take(id, vps.TakeRequest{})
		w.must(change.make())
		w.must(os.Chtimes(other, past, past)) // as rsync does
		op, err := w.daemon.Snapshots.Delete(ctx, id, operator)
		w.must(err)
		op, err = w.daemon.Operations.WaitOperation(ctx, op.ID, time.Minute)
		w.must(err)
		if op.Status != vps.StatusFailed || op.Error.Code != vps.CodeVPSChanged {
			t.Errorf("image %s: the deletion is %s (%v), want it refused", change.how, op.Status, op.Error)
		}
		w.must(os.WriteFile(other, plain, 0o600))
		w.delete(id)
	}
}

// padded is an image of the fake host with empty records at its end.
func padded(image []byte, size int) []byte {
	return append(image, bytes.Repeat([]byte("\n"), size-len(image))...)
}

// TestUnansweredIsNotUnshared: an image that could not be asked in time, on a busy
// host or on a mount that does not answer, may lie on what is to be merged: the deletion
// waits until it says so.
func TestUnansweredIsNotUnshared(t *testing.T) {
	t.Run("busy", func(t *testing.T) {
		unansweredIsNotUnshared(t, func(h *askedHost, image string) { h.late[image] = 1 })
	})
	t.Run("hung mount", func(t *testing.T) {
		unansweredIsNotUnshared(t, func(h *askedHost, image string) { h.hung[image] = 1 })
	})
}

func unansweredIsNotUnshared(t *testing.T, fall func(h *askedHost, image string)) {
	asked := &askedHost{asked: map[string]int{}, late: map[string]int{}, hung: map[string]int{}}
	w := newWorld(t, func(c *daemon.Config) {
		asked.Host = c.Host
		c.Host = asked
	})
	id := w.vps("web1", hypervisor.Running)
	base := w.image("web1")
	w.take(id, vps.TakeRequest{})
	w.vps(
		"clone", hypervisor.Off,
		hypervisor.Disk{Target: "vda", SizeBytes: 8 * mib, Chain: []hypervisor.Layer{{Path: base, Format: "qcow2"}}},
	)
	image := w.image("clone")
	asked.mu.Lock()
	fall(asked, image)
	asked.mu.Unlock()
	op, err := w.daemon.Snapshots.Delete(ctx, id, operator)
	w.must(err)
	op, err = w.daemon.Operations.WaitOperation(ctx, op.ID, time.Minute)
	w.must(err)
	if op.Status != vps.StatusFailed || op.Error.Code != vps.CodeVPSChanged {
		t.Errorf("the deletion is %s (%v), want it refused", op.Status, op.Error)
	}
}

// TestCloneThroughALink: a linked clone may name what it lies on by another path.
func TestCloneThroughALink(t *testing.T) {
	for name, state := range map[string]hypervisor.State{"running": hypervisor.Running, "off": hypervisor.Off} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			id := w.vps("web1", hypervisor.Running)
			base := w.image("web1")
			w.take(id, vps.TakeRequest{})
			link := filepath.Join(t.TempDir(), "images")
			w.must(os.Symlink(filepath.Dir(base), link))
			w.vps("clone", state, hypervisor.Disk{Target: "vda", SizeBytes: 8 * mib,
				Chain: []hypervisor.Layer{{Path: filepath.Join(link, filepath.Base(base)), Format: "qcow2"}}})
			op := w.ended(w.daemon.Snapshots.Delete(ctx, id, operator))
			if op.Status != vps.StatusFailed || op.Error.Code != vps.CodeVPSChanged {
				t.Errorf("the deletion is %s (%v), want it refused", op.Status, op.Error)
			}
		})
	}
}

// image is the first image of a VPS, by its name.
func (w *world) image(name string) string {
	w.t.Helper()
	all, err := w.host.List(ctx)
	w.must(err)
	for _, dom := range all {
		if dom.Name == name {
			return dom.PersistentDisks[0].Path
		}
	}
	w.t.Fatalf("there is no VPS %s", name)
	return ""
}
