package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"vpssnapd/hypervisor"
)

// headers remembers what qcow2 images of this host said that they lie on: before a
// merge every VPS that is off is asked, and to ask takes a process each.
type headers struct {
	asking keyedMutex // by path: many deletions that begin at once ask once
	mu     sync.Mutex
	by     map[string]header
}

// header is what an image lies on, and the file that said so.
type header struct {
	file    hypervisor.File
	backing string
	format  string
}

// headerSettled is how old a file's last change must be for its header to be
// remembered. The clock of a file system ticks: a change right after the reading
// would have left the same time.
const headerSettled = 2 * time.Second

// mostHeaders is how many are remembered before all are forgotten: VPSes come and go.
const mostHeaders = 10_000

// backing is what the qcow2 image at path lies on, and the format of that; "" for
// nothing, or for an image that cannot be read: it cannot be started either. An
// image that was changed or replaced since it was asked is asked again. An error
// means that it could not be asked now.
func (d *Daemon) backing(ctx context.Context, path string) (backing, format string, err error) {
	release, err := d.headers.asking.acquire(ctx, path)
	if err != nil {
		return "", "", err
	}
	defer release()
	file, err := d.Config.Host.Stat(ctx, path)
	if err != nil {
		d.headers.forget(path)
		return "", "", ifNotAsked(err)
	}
	if known, ok := d.headers.of(path); ok && sameFile(known.file, file) {
		return known.backing, known.format, nil
	}
	img, err := d.Config.Host.Inspect(ctx, path, "qcow2")
	if err != nil {
		d.headers.forget(path)
		return "", "", ifNotAsked(err)
	}
	if time.Since(file.Modified) > headerSettled {
		d.headers.keep(path, header{file, img.Backing, img.BackingFormat})
	}
	return img.Backing, img.BackingFormat, nil
}

// ifNotAsked is err when the host had no time or no room to ask an image, which says
// nothing about the image.
func ifNotAsked(err error) error {
	for _, why := range []error{context.DeadlineExceeded, context.Canceled, syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE} {
		if errors.Is(err, why) {
			return fmt.Errorf("%w: %w", hypervisor.ErrUnavailable, err)
		}
	}
	return nil
}

// sameFile says that a file was neither replaced nor written to, not even by somebody
// who set its time of modification back, as rsync does.
func sameFile(a, b hypervisor.File) bool {
	return a.Inode == b.Inode && a.Size == b.Size && a.Modified.Equal(b.Modified) && a.Changed.Equal(b.Changed)
}

func (h *headers) of(path string) (header, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	known, ok := h.by[path]
	return known, ok
}

func (h *headers) keep(path string, what header) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.by == nil || len(h.by) >= mostHeaders {
		h.by = map[string]header{}
	}
	h.by[path] = what
}

func (h *headers) forget(path string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.by, path)
}
