package daemon

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// While a merge copies with the VPS off it holds the images, and a QEMU that is
// started then ends with an error about locks. So libvirt's hook and the merge
// agree by a file: the merge holds its lock for as long as it copies; the hook
// writes into it, and then waits for the lock. The merge sees that, ends, and goes
// on once the VPS runs. Whichever comes first, one of them sees the other.

const (
	// startLook is how often a merge looks whether its VPS is about to start.
	startLook = 100 * time.Millisecond
	// startWait is how long a VPS may take from the hook's word until it is on.
	startWait = 30 * time.Second
)

// errStarting: the VPS is about to start, and the merge has let go of its images.
var errStarting = errors.New("the VPS is being started")

func mergingFile(stateDir, id string) string { return filepath.Join(stateDir, "merging-"+id) }

// makeWay asks a merge to let go of the images of a VPS that is about to start, and
// returns when nothing holds them.
func makeWay(ctx context.Context, db *store.Store, stateDir, vpsID string) error {
	op, err := db.ActiveOperation(ctx, vpsID)
	if errors.Is(err, sql.ErrNoRows) || err == nil && op.Kind != vps.KindDelete && op.Kind != vps.KindTake {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the record cannot be read: %w", err)
	}
	f, err := openLocked(ctx, mergingFile(stateDir, op.VPS), unix.LOCK_SH, "start")
	if err != nil {
		return err
	}
	return f.Close()
}

// openLocked writes a word into a file, if any, and returns it with its lock, as soon
// as that is free. hasStarted removes the file when it likes: who has the lock of one
// that was removed meanwhile keeps nobody away, and begins anew.
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

// isAt says whether an open file is the one that has that name now.
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
		case <-time.After(startLook / 5):
		}
	}
	return nil
}

// makingWay copies with the VPS off. errStarting: the copying was ended, or not
// begun, because the VPS is being started.
func (d *Daemon) makingWay(ctx context.Context, id string, copying func(context.Context) error) error {
	f, err := openLocked(ctx, mergingFile(d.StateDir, id), unix.LOCK_EX, "")
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
			case <-time.After(startLook):
			}
		}
		stop(errStarting)
	}()
	if asked(f) {
		err = errStarting
	} else {
		err = copying(working)
	}
	started := err != nil && asked(f)
	stop(nil)
	<-watched
	if !started {
		return err
	}
	return errors.Join(errStarting, f.Truncate(0))
}

// asked says whether the hook has written into the file, and not too long ago: it
// asks for its VPS at each start, also when nothing is copied.
func asked(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Size() > 0 && time.Since(info.ModTime()) < startWait
}

// hasStarted forgets what the hook wrote: the VPS is on, and when it goes off again
// it is not being started any more. Mostly there is no such file. One that is locked
// stays: an operation's end may come when the next one of the VPS merges already, and
// a hook that found no file would not wait for that.
func (d *Daemon) hasStarted(id string) {
	f, err := os.OpenFile(mergingFile(d.StateDir, id), os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && isAt(f, f.Name()) {
		_ = os.Remove(f.Name())
	}
}

// mergeEitherWay merges while QEMU runs, or with the VPS off as off does it, and
// goes from the one to the other as the VPS does.
func (d *Daemon) mergeEitherWay(ctx context.Context, r *operation.Run, set mergeSet, off func(context.Context, hypervisor.Domain) error) error {
	for {
		dom, done, err := d.mergeRunning(ctx, r, set)
		if done || err != nil {
			return err
		}
		if dom.MigratedAway {
			return operation.Park(errMigrated(dom))
		}
		err = d.makingWay(ctx, r.Op.VPS, func(ctx context.Context) error { return off(ctx, dom) })
		if !errors.Is(err, errStarting) {
			return err
		}
		d.Logger.Info("merge makes way for the VPS, which is being started", "operation", r.Op.ID, "vps", r.Op.VPSName)
		if err := d.awaitStart(ctx, r.Op.VPS); err != nil {
			return err
		}
	}
}

// awaitStart returns when the VPS is on, or has had time enough for it.
func (d *Daemon) awaitStart(ctx context.Context, id string) error {
	late := time.NewTimer(startWait)
	defer late.Stop()
	for {
		changed := d.inventory.changes(id)
		dom, err := d.inventory.domain(ctx, id)
		if err != nil || dom.State != hypervisor.Off {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-late.C:
			return nil
		case <-changed:
		}
	}
}
