// Package startlock is the file by which libvirt's hook and a merge agree.
//
// While a merge copies with the VPS off it holds the images, and a QEMU that is
// started then ends with an error about locks. So the merge holds the lock of a file
// for as long as it copies (Hold); the hook writes into it, and then waits for the
// lock (Ask). The merge sees that, ends, and goes on once the VPS runs (Forget).
// Whichever comes first, one of them sees the other.
package startlock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// look is how often a merge looks whether its VPS is about to start.
const look = 100 * time.Millisecond

// StartWait is how long a VPS may take from the hook's word until it is on.
const StartWait = 30 * time.Second

// ErrStarting means that the VPS is about to start, and that the images were let go.
var ErrStarting = errors.New("the VPS is being started")

func path(dir, vpsID string) string { return filepath.Join(dir, "merging-"+vpsID) }

// Ask asks a merge to let go of the images of a VPS that is about to start, and
// returns when nothing holds them.
func Ask(ctx context.Context, dir, vpsID string) error {
	f, err := openLocked(ctx, path(dir, vpsID), unix.LOCK_SH, "start")
	if err != nil {
		return err
	}
	return f.Close()
}

// Hold does something with the images of a VPS that is off. ErrStarting: it was
// ended, or not begun, because the VPS is being started.
func Hold(ctx context.Context, dir, vpsID string, do func(context.Context) error) error {
	f, err := openLocked(ctx, path(dir, vpsID), unix.LOCK_EX, "")
	if err != nil {
		return fmt.Errorf("merge not begun: %w", err)
	}
	defer f.Close()
	working, stop := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for !asked(f) {
			select {
			case <-working.Done():
				return
			case <-time.After(look):
			}
		}
		stop(ErrStarting)
	}()
	if asked(f) {
		err = ErrStarting
	} else {
		err = do(working)
	}
	started := err != nil && asked(f)
	stop(nil)
	<-watched
	if !started {
		return err
	}
	return errors.Join(ErrStarting, f.Truncate(0))
}

// Forget drops what the hook wrote: the VPS is on, and when it goes off again it is
// not being started any more. Mostly there is no such file. One that is locked
// stays: an operation's end may come when the next one of the VPS merges already,
// and a hook that found no file would not wait for that.
func Forget(dir, vpsID string) {
	f, err := os.OpenFile(path(dir, vpsID), os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && isAt(f, f.Name()) {
		_ = os.Remove(f.Name())
	}
}

// openLocked writes a word into a file, if any, and returns it with its lock, as soon
// as that is free. Forget removes the file when it likes: the lock of a file that was
// removed meanwhile keeps nobody away, so the whole is tried again.
func openLocked(ctx context.Context, path string, how int, word string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if _, err = f.WriteString(word); err == nil {
			err = lockWithin(ctx, f, how)
		}
		if err == nil && isAt(f, path) {
			return f, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}

// isAt reports whether an open file is the one that has that name now.
func isAt(f *os.File, path string) bool {
	opened, err1 := f.Stat()
	named, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(opened, named)
}

// lockWithin takes the lock of a file, as soon as it is free.
func lockWithin(ctx context.Context, f *os.File, how int) error {
	for unix.Flock(int(f.Fd()), how|unix.LOCK_NB) != nil {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not let go of: %w", f.Name(), ctx.Err())
		case <-time.After(look / 5):
		}
	}
	return nil
}

// asked reports whether the hook has written into the file, and not too long ago: it
// asks for its VPS at each start, also when nothing is copied.
func asked(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Size() > 0 && time.Since(info.ModTime()) < StartWait
}
