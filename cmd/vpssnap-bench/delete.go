package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor/lab"
)

// change is what a VPS has written since its snapshot.
type change struct {
	what   string
	size   int64 // of the disk
	block  int64
	blocks int64
	step   int64
}

// changes are what is merged: nothing, scattered blocks, and data in a row.
func (b *bench) changes() []change {
	inRow := func(size int64) change {
		return change{what: named(size) + " in a row", size: max(gib, size), block: mib, blocks: size / mib, step: mib}
	}
	all := []change{
		{what: "nothing written", size: gib},
		{
			what:   fmt.Sprintf("%d blocks of 4 KiB scattered", scattered),
			size:   scatteredOver,
			block:  4096,
			blocks: scattered,
			step:   scatteredStep,
		},
		inRow(256 * mib),
		inRow(gib),
	}
	if b.options.full {
		all = append(all, inRow(8*gib))
	}
	return all
}

// write makes the change with QEMU's own writer, as a guest would leave it.
func (c change) write(ctx context.Context, b *bench, overlay string) error {
	if c.blocks == 0 {
		return nil
	}
	_, err := b.write(ctx, overlay, "qcow2", c.block, c.blocks, c.step)
	return err
}

// atBest is how long the disk alone would take to read the change and to write it.
func (c change) atBest(l limits) float64 {
	bytes := float64(c.block*c.blocks) / 1e6
	return 2 * max(bytes/l.SequentialMB, float64(c.blocks)/l.ScatteredPerSecond)
}

// eachChange measures the deletion of every change, of a VPS whose disk is full.
func (b *bench) eachChange(
	ctx context.Context, on bool, contests func(name string, base lab.DiskUse, c change) []contest,
) error {
	for _, c := range b.changes() {
		what := "delete, off, " + c.what
		if on {
			what = "delete, on, " + c.what
		}
		if !b.options.only.MatchString(what) {
			continue
		}
		err := b.with(ctx, c.size, 1, func(name string) error {
			base, err := b.disk(name)
			if err != nil {
				return err
			}
			// The base is full: a merge then overwrites blocks and allocates none.
			if _, err := b.fill(base.Path, c.size); err != nil {
				return err
			}
			if on {
				if _, err := b.Lab.Virsh(ctx, "start", name); err != nil {
					return err
				}
			}
			for _, one := range contests(name, base, c) {
				one.what, one.limit = what, c.atBest(b.limits)
				if err := b.hold(ctx, one); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// deletesOff: with the VPS off, beside qemu-img commit of the same overlay; with its
// own cache mode, and with none, as ours. Nothing of a disk is in the page cache, as
// with a VPS that ran without it. That the overlay must be removed, too, is not counted.
func (b *bench) deletesOff(ctx context.Context) error {
	return b.eachChange(ctx, false, func(name string, base lab.DiskUse, c change) []contest {
		ours := func(ctx context.Context) (float64, error) {
			if err := b.take(ctx, name); err != nil {
				return 0, err
			}
			overlay, err := b.disk(name)
			if err != nil {
				return 0, err
			}
			if err := errors.Join(c.write(ctx, b, overlay.Path), cold(overlay.Path, base.Path)); err != nil {
				return 0, err
			}
			took, err := timed(func() error { return b.delete(ctx, name) })
			return took, errors.Join(err, b.freed(ctx))
		}
		theirs := func(args ...string) func(context.Context) (float64, error) {
			return func(ctx context.Context) (float64, error) {
				overlay := base.Path + ".overlay"
				defer os.Remove(overlay)
				if err := b.overlay(ctx, overlay, base.Path, c.size, true); err != nil {
					return 0, err
				}
				if err := errors.Join(c.write(ctx, b, overlay), cold(overlay, base.Path)); err != nil {
					return 0, err
				}
				return timed(func() error {
					_, err := b.tool(
						ctx,
						"qemu-img",
						append(append([]string{"commit", "-q", "-f", "qcow2", "-d"}, args...), overlay)...)
					return err
				})
			}
		}
		return []contest{
			{with: "qemu-img commit", ours: ours, theirs: theirs()},
			{with: "qemu-img commit -t none", ours: ours, theirs: theirs("-t", "none")},
		}
	})
}

// deletesOn: with the VPS on, beside libvirt's merge of an overlay of its own kind, and
// of one as we make them. That its overlay must be removed, too, is not counted.
func (b *bench) deletesOn(ctx context.Context) error {
	return b.eachChange(ctx, true, func(name string, base lab.DiskUse, c change) []contest {
		ours := func(ctx context.Context) (float64, error) {
			if err := errors.Join(b.take(ctx, name), b.whileOff(ctx, name, c)); err != nil {
				return 0, err
			}
			took, err := timed(func() error { return b.delete(ctx, name) })
			return took, errors.Join(err, b.freed(ctx))
		}
		theirs := func(take func(context.Context, string) error) func(context.Context) (float64, error) {
			return func(ctx context.Context) (float64, error) {
				if err := errors.Join(take(ctx, name), b.whileOff(ctx, name, c)); err != nil {
					return 0, err
				}
				overlays, err := b.disks(name)
				if err != nil {
					return 0, err
				}
				took, err := timed(func() error { return b.virshMerge(ctx, name, overlays) })
				return took, errors.Join(err, removeAll(overlays))
			}
		}
		likeOurs := func(ctx context.Context, name string) error {
			overlay := base.Path + ".overlay"
			if err := b.overlay(ctx, overlay, base.Path, c.size, true); err != nil {
				return err
			}
			return b.virshSnapshot(
				ctx, name, "--reuse-external", "--diskspec", base.Target+",snapshot=external,file="+overlay,
			)
		}
		return []contest{
			{with: "virsh blockcommit", ours: ours, theirs: theirs(b.virshTake)},
			{with: "virsh blockcommit of our overlay", ours: ours, theirs: theirs(likeOurs)},
		}
	})
}

// cold takes files out of the page cache. Otherwise the second of two ways would read
// from memory what the first read from disk.
func cold(paths ...string) error {
	for _, path := range paths {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		err = errors.Join(file.Sync(), unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED), file.Close())
		if err != nil {
			return err
		}
	}
	return nil
}

// freed waits until the daemon has given back the room of what it removed, so that what
// is measured next has the disk for itself. The daemon unlinks a file and closes it
// later, since its blocks take seconds to come back.
func (b *bench) freed(ctx context.Context) error {
	dir := fmt.Sprintf("/proc/%d/fd", b.DaemonPID())
	for {
		open, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		held := false
		for _, fd := range open {
			name, err := os.Readlink(filepath.Join(dir, fd.Name()))
			held = held || err == nil && strings.HasSuffix(name, " (deleted)") && strings.HasPrefix(name, b.Lab.ImageDir())
		}
		if !held {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// whileOff writes into the overlay of a VPS: QEMU's own way of writing for a guest
// is too slow for much.
func (b *bench) whileOff(ctx context.Context, name string, c change) error {
	if _, err := b.Lab.Virsh(ctx, "destroy", name); err != nil {
		return err
	}
	overlay, err := b.disk(name)
	if err != nil {
		return err
	}
	if err := c.write(ctx, b, overlay.Path); err != nil {
		return err
	}
	_, err = b.Lab.Virsh(ctx, "start", name)
	return err
}

// pauses: for how long a guest that runs is paused at a time while the snapshot of its
// disks is deleted. It runs between two disks: the pause must not grow with their number.
func (b *bench) pauses(ctx context.Context) error {
	for _, disks := range []int{1, 4, 16} {
		what := fmt.Sprintf("longest pause in a delete, %d x 64 MiB", disks)
		if !b.options.only.MatchString(what) {
			continue
		}
		err := b.with(ctx, 64*mib, disks, func(name string) error {
			if _, err := b.Lab.Virsh(ctx, "start", name); err != nil {
				return err
			}
			var longest []float64
			for range b.options.rounds {
				if err := b.take(ctx, name); err != nil {
					return err
				}
				op, err := b.Client.Delete(ctx, name)
				if err := b.done(ctx, op, err); err != nil {
					return err
				}
				if op, err = b.Client.Operation(ctx, op.ID); err != nil {
					return err
				}
				longest = append(longest, float64(op.LongestPauseMS)/1000)
			}
			b.note(what, "s", longest, nil, "", 0)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
