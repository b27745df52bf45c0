package qemuimg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor"
)

// MergeOffline copies what overlay holds into its base and leaves the overlay
// as it is: it stays the authority until the caller has recorded the merge, so
// qemu-img must not empty it (-d).
func (i *Images) MergeOffline(ctx context.Context, m hypervisor.OfflineMerge, progress func(done, total int64)) error {
	what := fmt.Sprintf("cannot merge %q into %q", m.Overlay, m.Base)
	if err := errors.Join(checkPath(m.Overlay), checkNames(m.Base, m.BaseFormat)); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	image, err := i.Inspect(ctx, m.Overlay, "qcow2")
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if image.Backing != m.Base || image.BackingFormat != m.BaseFormat {
		return fmt.Errorf("%s: %w: its header names %q (%s)", what, hypervisor.ErrReplaced, image.Backing, image.BackingFormat)
	}
	if err := i.checkChain(ctx, m.Overlay, "qcow2"); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	cache, err := cacheMode(m.Overlay, m.Base)
	if err != nil {
		return fileError(what, err)
	}
	report := &progressReader{total: image.VirtualSize, report: progress}
	if err := i.run(ctx, report, "commit", "-p", "-f", "qcow2", "-t", cache, "-d", m.Overlay); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := syncPath(m.Base); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if progress != nil {
		progress(image.VirtualSize, image.VirtualSize)
	}
	return nil
}

// cacheMode is "none", which keeps a merge out of the page cache, or
// "writeback" where a file system (tmpfs, some FUSE) cannot do direct I/O. The
// base is synced afterwards either way.
func cacheMode(paths ...string) (string, error) {
	for _, path := range paths {
		file, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
		if errors.Is(err, unix.EINVAL) {
			return "writeback", nil
		}
		if err != nil {
			return "", err
		}
		file.Close()
	}
	return "none", nil
}

// progressReader reads qemu-img's "(12.34/100%)" and reports bytes of the total.
type progressReader struct {
	total  int64
	report func(done, total int64)
	line   []byte
	last   int64
}

func (r *progressReader) Write(p []byte) (int, error) {
	if r.report == nil {
		return len(p), nil
	}
	for _, c := range p {
		if c != '\r' && c != '\n' {
			if len(r.line) < 128 {
				r.line = append(r.line, c)
			}
			continue
		}
		if percent, ok := parsePercent(r.line); ok {
			if done := int64(float64(r.total) / 100 * percent); done > r.last {
				r.last = done
				r.report(done, r.total)
			}
		}
		r.line = r.line[:0]
	}
	return len(p), nil
}

func parsePercent(line []byte) (float64, bool) {
	text, found := strings.CutPrefix(string(bytes.TrimSpace(line)), "(")
	if !found {
		return 0, false
	}
	text, found = strings.CutSuffix(text, "/100%)")
	if !found {
		return 0, false
	}
	percent, err := strconv.ParseFloat(text, 64)
	return percent, err == nil && percent >= 0 && percent <= 100
}
