package qemuimg

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// removals are the removed files whose room is still to come back (see Remove).
type removals struct {
	mu      sync.Mutex
	pending map[chan struct{}]uint64 // what is closed at the end, and the file system
}

// close closes a file of that file system beside the work.
func (r *removals) close(fd int, device uint64) {
	done := make(chan struct{})
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending == nil {
		r.pending = map[chan struct{}]uint64{}
	}
	r.pending[done] = device
	go func() {
		_ = unix.Close(fd) // nothing was written through it
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.pending, done)
		close(done)
	}()
}

// on lists the removals that go on on a device.
func (r *removals) on(device uint64) (pending []chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for done, on := range r.pending {
		if on == device {
			pending = append(pending, done)
		}
	}
	return pending
}

// AwaitRoom waits for the files that Remove has not closed yet.
func (i *Images) AwaitRoom(ctx context.Context, dir string) error {
	what := fmt.Sprintf("cannot await the room in %q", dir)
	if err := checkPath(dir); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	st, err := lookAt(ctx, &i.storage, dir, func() (st unix.Stat_t, err error) { return st, unix.Stat(dir, &st) })
	if err != nil {
		return fileError(what, err)
	}
	for _, done := range i.removals.on(st.Dev) {
		select {
		case <-done:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		}
	}
	return nil
}
