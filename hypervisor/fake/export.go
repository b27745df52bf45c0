package fake

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor"
)

// Export opens an image, and those below it, to read.
func (h *Host) Export(ctx context.Context, path, format string) (hypervisor.Export, error) {
	e := &export{}
	err := h.image(ctx, "Export", path, func() (err error) {
		// The locks are kept until Close, so that a merge is refused meanwhile, as by
		// QEMU's lock.
		e.chain, e.held, err = h.openChain(path, format)
		if err == nil {
			var top layer
			top, err = readLayer(path, format)
			e.size = top.header.Size
		}
		return err
	})
	if err != nil {
		letGo(e.held)
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return e, nil
}

// Extents tells which parts of an image hold data.
func (h *Host) Extents(ctx context.Context, path, format string, visit func(offset, length int64)) error {
	err := h.image(ctx, "Extents", path, func() error {
		chain, held, err := h.openChain(path, format)
		if err != nil {
			return err
		}
		defer letGo(held)
		var writes []record
		// A lower layer shows through wherever the upper ones have nothing.
		for _, c := range chain {
			l, err := readLayer(c.Path, c.Format)
			if err != nil {
				return err
			}
			writes = append(writes, l.writes...)
		}
		slices.SortFunc(writes, func(a, b record) int { return cmp.Compare(a.Offset, b.Offset) })
		end := int64(0)
		// Each range once: QEMU's extents do not overlap.
		for _, w := range writes {
			if from := max(end, w.Offset); w.Offset+w.Length > from {
				end = w.Offset + w.Length
				visit(from, end-from)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot tell where %s holds data: %w", path, err)
	}
	return nil
}

// openChain opens an image, and those below it, against writers.
func (h *Host) openChain(path, format string) ([]hypervisor.Layer, []*os.File, error) {
	chain, err := headerChain(path, format)
	if err != nil {
		return nil, nil, err
	}
	all, err := h.loadAll()
	if err != nil {
		return nil, nil, err
	}
	var paths []string
	for _, c := range chain {
		for _, d := range all {
			// A writer would change what is read; on the real host qemu-nbd does not get
			// its lock.
			if d.writes(c.Path) {
				return nil, nil, fmt.Errorf("%w: %s writes to %s", hypervisor.ErrBusy, d.Name, c.Path)
			}
		}
		paths = append(paths, c.Path)
	}
	held, err := hold(unix.LOCK_SH, paths...)
	return chain, held, err
}

// export is an image open to read.
type export struct {
	chain []hypervisor.Layer
	size  int64

	mu   sync.Mutex
	held []*os.File // nil when closed
}

func (e *export) Size() int64 { return e.size }

func (e *export) ReadAt(p []byte, offset int64) (int, error) {
	// A download reads while CutOff closes.
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.held == nil {
		return 0, os.ErrClosed
	}
	if offset < 0 || offset >= e.size {
		return 0, io.EOF
	}
	data, err := readChain(e.chain, offset, min(int64(len(p)), e.size-offset))
	// Short only at the end of the disk.
	if n := copy(p, data); err != nil || n == len(p) {
		return n, err
	}
	return len(data), io.EOF
}

func (e *export) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	letGo(e.held)
	e.held = nil
	return nil
}
