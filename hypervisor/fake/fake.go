// Package fake is a KVM host made of small files, for tests. It keeps domains,
// images and jobs in a directory, so that they outlive the process that opened
// it, as guests outlive the daemon. Images are real files with real inodes, but
// hold a list of writes instead of a disk.
//
// Besides hypervisor.Host it offers the hands of guests, of operators and of
// fate. Several Hosts may be open on one directory: each has its own connection
// and faults, and all in one process see the same events.
package fake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/feed"
)

var _ hypervisor.Host = (*Host)(nil)

// Host is a fake KVM host and a connection to it.
type Host struct {
	dir    string
	lock   *os.File
	events *feed.Feed
	deaf   context.CancelFunc // ends the delivery of events

	mu        sync.Mutex // one user of lock in this process
	seen      map[string]glance
	faultMu   sync.Mutex
	faults    faults
	closeOnce sync.Once
}

// Open opens the host that lives in dir, or begins a new one there.
func Open(dir string) (*Host, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open fake host: %w", err)
	}
	for _, d := range []string{filepath.Join(dir, "images"), filepath.Join(dir, "domains")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("cannot open fake host: %w", err)
		}
	}
	// The file is empty; what counts is the lock on it, which a killed process loses by
	// itself.
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open fake host: %w", err)
	}
	background, deaf := context.WithCancel(context.Background())
	h := &Host{dir: dir, lock: lock, events: feed.New(), deaf: deaf}
	go h.events.Deliver(background)
	h.faults.connected = true
	// Space tells the truth unless a test says otherwise.
	h.faults.free = -1
	join(h)
	h.events.Put(hypervisor.Event{Kind: hypervisor.EventConnected})
	return h, nil
}

// Close gives up the connection: Domains calls are ErrUnavailable from now on.
// The hands still work.
func (h *Host) Close() error {
	h.closeOnce.Do(func() {
		h.faultMu.Lock()
		h.faults.connected, h.faults.closed = false, true
		h.faultMu.Unlock()
		leave(h)
		h.deaf()
	})
	return nil
}

// ImageDir is the directory for images.
func (h *Host) ImageDir() string { return filepath.Join(h.dir, "images") }

// locked runs f while nobody else, in any process, reads or changes the host. f must not
// call a method of the host that locks too.
func (h *Host) locked(f func() error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	// The mutex first: flock is per open file, so it does not keep goroutines apart.
	if err := flock(h.lock, unix.LOCK_EX); err != nil {
		return fmt.Errorf("cannot lock fake host: %w", err)
	}
	err := f()
	return errors.Join(err, flock(h.lock, unix.LOCK_UN))
}

// flock is unix.Flock, taken up again after a signal.
func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
