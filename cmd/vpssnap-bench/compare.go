package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// contest is one thing that is done in our way and in theirs, in turns.
type contest struct {
	what         string
	with         string // what theirs is
	limit        float64
	ours, theirs func(ctx context.Context) (float64, error)
}

// hold measures one contest, and notes the figure.
func (b *bench) hold(ctx context.Context, c contest) error {
	if !b.options.only.MatchString(c.what) {
		return nil
	}
	var ours, theirs []float64
	// In turns, so that whatever else the machine does hits both.
	for range b.options.rounds {
		v, err := c.ours(ctx)
		if err != nil {
			return fmt.Errorf("%s, ours: %w", c.what, err)
		}
		ours = append(ours, v)
		if v, err = c.theirs(ctx); err != nil {
			return fmt.Errorf("%s, theirs: %w", c.what, err)
		}
		theirs = append(theirs, v)
	}
	b.note(c.what, "s", ours, theirs, c.with, c.limit)
	return nil
}

// compare measures everything that one VPS feels.
func (b *bench) compare(ctx context.Context) error {
	for _, measure := range []func(context.Context) error{
		b.takes, b.writes, b.deletesOff, b.deletesOn, b.pauses, b.restores, b.inGuest,
	} {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	return nil
}

// named says a size as a reader does.
func named(size int64) string {
	switch {
	case size >= 1<<40:
		return fmt.Sprintf("%d TiB", size>>40)
	case size >= gib:
		return fmt.Sprintf("%d GiB", size>>30)
	}
	return fmt.Sprintf("%d MiB", size>>20)
}

// takes: of disks of every size, which are sparse, and of several disks.
func (b *bench) takes(ctx context.Context) error {
	for _, c := range []struct {
		size  int64
		disks int
	}{{gib, 1}, {10 * gib, 1}, {100 * gib, 1}, {1 << 40, 1}, {gib, 3}} {
		what := fmt.Sprintf("take, on, %d x %s", c.disks, named(c.size))
		if !b.options.only.MatchString(what) {
			continue
		}
		err := b.with(ctx, c.size, c.disks, func(name string) error {
			if _, err := b.Lab.Virsh(ctx, "start", name); err != nil {
				return err
			}
			return b.hold(ctx, contest{
				what: what, with: "virsh snapshot-create-as", limit: 2 * b.limits.FsyncMS / 1000,
				ours: func(ctx context.Context) (float64, error) {
					took, err := timed(func() error { return b.take(ctx, name) })
					// Deleted again outside of the time that is measured.
					return took, errors.Join(err, b.delete(ctx, name))
				},
				theirs: func(ctx context.Context) (float64, error) {
					took, err := timed(func() error { return b.virshTake(ctx, name) })
					return took, errors.Join(err, b.virshDelete(ctx, name))
				},
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// with does something with a VPS that is gone afterwards. The name is used once, as the
// daemon refuses one that belonged to another VPS.
func (b *bench) with(ctx context.Context, size int64, disks int, work func(name string) error) error {
	b.made++ // a name that was given away again is refused
	name := fmt.Sprintf("bench%d", b.made)
	if err := b.vps(ctx, name, size, disks); err != nil {
		return err
	}
	return errors.Join(work(name), b.drop(context.WithoutCancel(ctx), name))
}

// writes into a fresh overlay over a full base, beside the same without a snapshot.
func (b *bench) writes(ctx context.Context) error {
	base := filepath.Join(b.Lab.ImageDir(), "base.raw")
	defer os.Remove(base)
	// Full, so that every write to the overlay has to look below.
	if _, err := b.fill(base, scatteredOver); err != nil {
		return err
	}
	for _, c := range []struct {
		what               string
		block, count, step int64
	}{
		{"4 KiB scattered writes after a take", 4096, scattered, scatteredStep},
		{"64 KiB scattered writes after a take", 64 << 10, 4096, 53 * 64 << 10},
		{"sequential writes after a take", mib, 512, mib},
	} {
		if !b.options.only.MatchString(c.what) {
			continue
		}
		sum := map[string][]float64{}
		for range b.options.rounds {
			for _, kind := range []string{"ours", "theirs", "none"} {
				took, grown, err := b.writeInto(ctx, kind, base, c.block, c.count, c.step)
				if err != nil {
					return err
				}
				sum[kind] = append(sum[kind], took)
				sum[kind+" grown"] = append(sum[kind+" grown"], float64(grown)/float64(c.block*c.count))
			}
		}
		b.note(c.what, "s", sum["ours"], sum["theirs"], "libvirt's overlay", median(sum["none"]))
		b.note(c.what+": growth per byte", "", sum["ours grown"], sum["theirs grown"], "libvirt's overlay", 1)
	}
	return nil
}

// writeInto writes into one kind of overlay, or into the base itself. Each round begins
// with a fresh overlay.
func (b *bench) writeInto(
	ctx context.Context, kind, base string, block, count, step int64,
) (seconds float64, grown int64, err error) {
	if kind == "none" {
		seconds, err = b.write(ctx, base, "raw", block, count, step)
		return seconds, 0, err
	}
	path := base + "." + kind
	defer os.Remove(path)
	if err := b.overlay(ctx, path, base, scatteredOver, kind == "ours"); err != nil {
		return 0, 0, err
	}
	if seconds, err = b.write(ctx, path, "qcow2", block, count, step); err != nil {
		return 0, 0, err
	}
	var st unix.Stat_t
	err = unix.Stat(path, &st)
	return seconds, st.Blocks * 512, err
}
