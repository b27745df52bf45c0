package daemon_test

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/daemon/hook"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// toBeMerged is a VPS that is off, and has written since its snapshot.
func toBeMerged(t *testing.T) (w *world, id string) {
	w = newWorld(t, nil)
	id = w.vps("web1", hypervisor.Off)
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 0, 'a')
	return w, id
}

// TestMergeMakesWayForAStart: a VPS that is started while its merge copies with it
// off is not kept waiting, and the merge goes on with it on.
func TestMergeMakesWayForAStart(t *testing.T) {
	for _, replace := range []bool{false, true} {
		w, id := toBeMerged(t)
		base := w.snapshot(id).Disks[0]
		w.host.HangNext("MergeOffline.half")
		w.host.MergeReadyAfter(2)
		var op vps.Operation
		var err error
		if replace {
			op, err = w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{Replace: true}, operator)
		} else {
			op, err = w.daemon.Snapshots.Delete(ctx, id, operator)
		}
		w.must(err)
		w.eventually("the merge copies", func() bool { return w.host.Unused(ctx, base.Base, base.BaseFormat) != nil })
		starting, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		w.must(hook.BeforeStart(starting, w.stateDir, id, "web1", nil))
		w.must(w.host.Start(ctx, id, false))
		w.write(id, "vda", mib, 'b')
		w.done(op, nil)
		w.sees(id, "vda", 0, 'a')
		w.sees(id, "vda", mib, 'b')
		if replace {
			w.delete(id)
		}
		w.clean(id)
		if left, _ := filepath.Glob(filepath.Join(w.stateDir, "merging-*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		w.close()
	}
}

// TestNothingToMakeWayFor: the start of a VPS of which nothing is merged leaves no
// file and waits for nobody.
func TestNothingToMakeWayFor(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off)
	w.must(hook.BeforeStart(ctx, w.stateDir, id, "web1", nil))
	w.take(id, vps.TakeRequest{})
	w.must(hook.BeforeStart(ctx, w.stateDir, id, "web1", nil))
	w.must(hook.BeforeStart(ctx, t.TempDir(), "../evil", "web1", nil))
	if left, _ := filepath.Glob(filepath.Join(w.stateDir, "merging-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// lockedFile puts another file in the place of what hook and merge agree by, as when it
// was removed and made again. It is locked from the first.
func (w *world) lockedFile(path, word string, how int) *os.File {
	w.t.Helper()
	f, err := os.CreateTemp(filepath.Dir(path), "locked-*")
	w.must(err)
	_, err = f.WriteString(word)
	w.must(err)
	w.must(unix.Flock(int(f.Fd()), how))
	w.must(os.Rename(f.Name(), path))
	return f
}

func size(f *os.File) int64 {
	info, err := f.Stat()
	if err != nil {
		return -1
	}
	return info.Size()
}

// TestStartWaitsForTheMergeThatHoldsTheFile: what the hook had opened was removed before
// it had the lock, and another merge holds what is there now.
func TestStartWaitsForTheMergeThatHoldsTheFile(t *testing.T) {
	w, id := toBeMerged(t)
	copies, replaced := make(chan struct{}), make(chan struct{})
	w.host.SetHook(func(ctx context.Context, point, _ string) error {
		if point != "MergeOffline.half" {
			return nil
		}
		w.host.SetHook(nil)
		close(copies)
		<-replaced // a copy that is slow to end keeps the lock until then
		<-ctx.Done()
		return ctx.Err()
	})
	op, err := w.daemon.Snapshots.Delete(ctx, id, operator)
	w.must(err)
	<-copies
	path := filepath.Join(w.stateDir, "merging-"+id)
	first, err := os.Open(path)
	w.must(err)
	defer first.Close()
	started := make(chan error, 1)
	go func() { started <- hook.BeforeStart(ctx, w.stateDir, id, "web1", nil) }()
	w.eventually("the hook has asked", func() bool { return size(first) > 0 })
	second := w.lockedFile(path, "", unix.LOCK_EX)
	close(replaced)
	w.eventually("the hook has asked again", func() bool {
		select {
		case err := <-started:
			t.Fatalf("the VPS is started while another merge holds its images: %v", err)
		default:
		}
		return size(second) > 0
	})
	w.must(second.Close())
	w.must(<-started)
	w.must(w.host.Start(ctx, id, false))
	w.done(op, nil)
	w.clean(id)
}

// TestMergeWaitsForTheStartThatHoldsTheFile is the same for the merge.
func TestMergeWaitsForTheStartThatHoldsTheFile(t *testing.T) {
	w, id := toBeMerged(t)
	path := filepath.Join(w.stateDir, "merging-"+id)
	first := w.lockedFile(path, "", unix.LOCK_SH)
	var copied atomic.Bool
	w.host.SetHook(func(_ context.Context, point, _ string) error {
		if point == "MergeOffline.before" {
			copied.Store(true)
		}
		return nil
	})
	op, err := w.daemon.Snapshots.Delete(ctx, id, operator)
	w.must(err)
	w.eventually("the merge waits", func() bool { return opened(path) > 1 })
	second := w.lockedFile(path, "start", unix.LOCK_SH)
	w.must(first.Close())
	w.eventually("the merge waits again", func() bool { return copied.Load() || opened(path) > 1 })
	w.must(w.host.Start(ctx, id, false))
	w.must(second.Close())
	w.done(op, nil)
	if copied.Load() {
		t.Error("it was merged while the VPS was being started")
	}
	w.clean(id)
}

// TestEndOfAnOperationLeavesTheMergesFile: the next operation of the VPS may merge when
// the end of the one before it is seen to.
func TestEndOfAnOperationLeavesTheMergesFile(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Off)
	path := filepath.Join(w.stateDir, "merging-"+id)
	merging := w.lockedFile(path, "", unix.LOCK_EX)
	w.take(id, vps.TakeRequest{})
	w.close()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("a hook would not find that it is merged: %v", err)
	}
	w.must(merging.Close())
	w.open()
	w.delete(id)
	w.close()
	if _, err := os.Stat(path); err == nil {
		t.Error("left behind")
	}
}

// opened counts the descriptors of this process for a file.
func opened(path string) (n int) {
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); to == path {
			n++
		}
	}
	return n
}
