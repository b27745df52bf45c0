package qemuimg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor"
)

// directBlock is the largest block in which QEMU writes where it does so directly.
const directBlock = 4096

// MergeOffline copies what overlay holds into its base and leaves the overlay
// as it is: it stays the authority until the caller has recorded the merge.
//
// qemu-img commit would do, but copies 64 KiB around each 4 KiB that was written,
// most of it from the base to itself. convert takes what the overlay itself holds
// and nothing else, many requests at a time: some five times as fast where a guest
// wrote here and there (make bench).
func (i *Images) MergeOffline(ctx context.Context, m hypervisor.OfflineMerge, progress func(done, total int64)) error {
	what := fmt.Sprintf("cannot merge %q into %q", m.Overlay, m.Base)
	overlay, base, err := i.checkMerge(ctx, m)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	_, err = change(ctx, &i.storage, []string{m.Overlay, m.Base}, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, i.copyIntoBase(ctx, m, overlay, base, progress)
	})
	if err != nil {
		return fileError(what, err)
	}
	return nil
}

// copyIntoBase is the work of a merge whose images were checked.
func (i *Images) copyIntoBase(
	ctx context.Context, m hypervisor.OfflineMerge, overlay, base hypervisor.Image, progress func(done, total int64),
) error {
	if err := i.growBase(ctx, base, overlay.VirtualSize); err != nil {
		return err
	}
	cache, err := cacheMode(m.Overlay, m.Base)
	if err != nil {
		return err
	}
	if m.BaseFormat == "raw" && max(base.VirtualSize, overlay.VirtualSize)%directBlock != 0 {
		cache = "writeback" // direct I/O would fill the last block, and the disk would have grown
	}
	// What the file takes up is a good guess of what is to be copied.
	total := min(overlay.VirtualSize, overlay.AllocatedSize)
	report := &progressReader{total: total, report: progress}
	err = i.runLong(ctx, report, copyDown(m, cache, unasked)...)
	if err != nil && strings.Contains(err.Error(), "'blkdebug'") { // this QEMU was built without it
		err = i.runLong(ctx, report, copyDown(m, cache, plain)...)
	}
	if err != nil {
		return err
	}
	if err := syncFileAndEntry(m.Base); err != nil {
		return err
	}
	if progress != nil {
		progress(total, total)
	}
	return nil
}

// checkMerge makes sure that the overlay lies on the base, and on nothing strange.
func (i *Images) checkMerge(ctx context.Context, m hypervisor.OfflineMerge) (overlay, base hypervisor.Image, err error) {
	if err := errors.Join(checkPlain(m.Overlay), checkPlain(m.Base), checkFormat(m.BaseFormat)); err != nil {
		return overlay, base, err
	}
	chain, err := i.checkChain(ctx, m.Overlay, "qcow2")
	if len(chain) > 0 && !chain[0].LiesOn(m.Base, m.BaseFormat) {
		return overlay, base, fmt.Errorf(
			"%w: its header names %q (%s)", hypervisor.ErrReplaced, chain[0].Backing, chain[0].BackingFormat,
		)
	}
	if err != nil {
		return overlay, base, err
	}
	return chain[0], chain[1], nil
}

// growBase makes a base as large as its overlay, if it is smaller. What is added
// reads as zeroes, as it did through the overlay.
func (i *Images) growBase(ctx context.Context, base hypervisor.Image, size int64) error {
	if base.VirtualSize >= size {
		return nil
	}
	return i.run(ctx, io.Discard, "resize", "-q", "-f", base.Format, base.Path, strconv.FormatInt(size, 10))
}

// The ways to read the file of an overlay, as prefixes of its options.
//
// QEMU sees that an overlay of ours takes up less room than its tables promise, and
// then asks the file system for each piece, twice, where it ends (lseek; 78,000 calls
// for 20,000 pieces). It does not ask of a file whose room it is not told. blkdebug
// without rules is such a file, and passes all else on.
const (
	plain   = "file.driver=file,file."
	unasked = "file.driver=blkdebug,file.image.driver=file,file.image."
)

// copyDown is what qemu-img is told, so that it copies what the overlay holds,
// zeroes included, and skips what it does not hold:
//
//   - With -B a part that the overlay leaves to its backing file is skipped.
//     Without it, convert would read that part from the base and write it back.
//   - Below the overlay the base is opened a second time, without locks, only for
//     its size. The locks of the overlay and of the target keep everybody out.
//   - Without -S 0, zeroes take no room in the base.
//   - A qcow2 base counts its references at once. Behind lazy ones a killed merge
//     leaves it dirty, and QEMU repairs nothing when the VPS is started and the merge
//     goes on live: it gave clusters away that were in use (seen with QEMU 7.2).
func copyDown(m hypervisor.OfflineMerge, cache, file string) []string {
	aio := "threads"
	if cache == "none" {
		aio = "native" // which wants direct I/O, and has no threads that could be too few
	}
	overlay, base, counts := optionValue(m.Overlay), optionValue(m.Base), ""
	if m.BaseFormat == "qcow2" {
		counts = ",lazy-refcounts=off"
	}
	args := []string{"convert", "-p", "-n", "-W", "-m", "16", "-t", cache, "-T", cache, "-B", m.Base, "-F", m.BaseFormat}
	if m.BytesPerSecond > 0 {
		args = append(args, "-r", strconv.FormatInt(m.BytesPerSecond, 10))
	}
	return append(
		args,
		"--image-opts",
		"--target-image-opts",
		fmt.Sprintf(
			"driver=qcow2,%[1]sfilename=%[2]s,%[1]saio=%[3]s,backing.driver=%[4]s,backing.file.driver=file,backing.file.filename=%[5]s,backing.file.locking=off",
			file, overlay, aio, m.BaseFormat, base,
		),
		fmt.Sprintf("driver=%s,file.driver=file,file.filename=%s,file.aio=%s%s", m.BaseFormat, base, aio, counts),
	)
}

// optionValue writes a value as QEMU's option lists want it.
func optionValue(value string) string { return strings.ReplaceAll(value, ",", ",,") }

// cacheMode is "none", which keeps a long work out of the page cache, or
// "writeback" where a file system (tmpfs, some FUSE) cannot do direct I/O. The
// base of a merge is synced afterwards either way.
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

// Write collects what qemu-img prints with -p until its line ends, and reports each.
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

// parsePercent reads " (12.34/100%)"; anything else that qemu-img prints is no progress.
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
