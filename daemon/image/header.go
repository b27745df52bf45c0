package image

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"vpssnapd/daemon/work"
	"vpssnapd/hypervisor"
)

// headerCache remembers what qcow2 images of this host said that they lie on: before a
// merge every VPS that is off is asked, and to ask takes a process each.
type headerCache struct {
	asking work.KeyedLock // by path: many deletions that begin at once ask once
	mu     sync.Mutex
	by     map[string]header
}

// header is what an image lies on, and the file that said so.
type header struct {
	file  hypervisor.File
	image hypervisor.Image
}

// headerSettled is how old a file's last change must be for its header to be
// remembered. The clock of a file system ticks: a change right after the reading
// would have left the same time.
const headerSettled = 2 * time.Second

// mostHeaders is how many are remembered before all are forgotten: VPSes come and go.
const mostHeaders = 10_000

// header is what the qcow2 image at path says of itself; nothing for an image that cannot
// be read: it cannot be started either. An image that was changed or replaced since it was
// asked is asked again. An error means that it could not be asked now.
func (i *Images) header(ctx context.Context, path string) (img hypervisor.Image, err error) {
	release, err := i.headers.asking.Lock(ctx, path)
	if err != nil {
		return img, err
	}
	defer release()
	file, err := i.host.Stat(ctx, path)
	if err != nil {
		i.headers.forget(path)
		return img, ifNotAsked(err)
	}
	if known, ok := i.headers.of(path); ok && unchanged(known.file, file) {
		return known.image, nil
	}
	img, err = i.host.Inspect(ctx, path, "qcow2")
	if err != nil {
		i.headers.forget(path)
		return img, ifNotAsked(err)
	}
	if time.Since(file.Modified) > headerSettled {
		i.headers.keep(path, header{file, img})
	}
	return img, nil
}

// ifNotAsked is err when the host had no time or no room to ask an image, or its mount
// does not answer, which says nothing about the image.
func ifNotAsked(err error) error {
	if errors.Is(err, hypervisor.ErrUnavailable) {
		return err
	}
	for _, why := range []error{context.DeadlineExceeded, context.Canceled, syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE} {
		if errors.Is(err, why) {
			return fmt.Errorf("%w: %w", hypervisor.ErrUnavailable, err)
		}
	}
	return nil
}

// unchanged reports whether a file was neither replaced nor written to, not even by somebody
// who set its time of modification back, as rsync does.
func unchanged(a, b hypervisor.File) bool {
	return a.Inode == b.Inode && a.Size == b.Size && a.Modified.Equal(b.Modified) && a.Changed.Equal(b.Changed)
}

func (h *headerCache) of(path string) (header, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	known, ok := h.by[path]
	return known, ok
}

func (h *headerCache) keep(path string, what header) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.by == nil || len(h.by) >= mostHeaders {
		h.by = map[string]header{}
	}
	h.by[path] = what
}

func (h *headerCache) forget(path string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.by, path)
}
