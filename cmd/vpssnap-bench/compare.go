package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/libvirt"
	"vpssnapd/hypervisor/qemuimg"
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
		b.takes, b.writes, b.deletesOff, b.deletesOn, b.restores, b.inGuest,
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
		what := fmt.Sprintf("take, on, %d disk of %s", c.disks, named(c.size))
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

// with does something with a VPS that is gone afterwards.
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
	if _, err := b.fill(base, gib); err != nil {
		return err
	}
	for _, c := range []struct {
		what               string
		block, count, step int64
	}{
		{"4 KiB scattered writes after a take", 4096, scattered, 53 * 4096},
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

// writeInto writes into one kind of overlay, or into the base itself.
func (b *bench) writeInto(ctx context.Context, kind, base string, block, count, step int64) (seconds float64, grown int64, err error) {
	if kind == "none" {
		seconds, err = b.write(ctx, base, "raw", block, count, step)
		return seconds, 0, err
	}
	path := base + "." + kind
	defer os.Remove(path)
	if err := b.overlay(ctx, path, base, gib, kind == "ours"); err != nil {
		return 0, 0, err
	}
	if seconds, err = b.write(ctx, path, "qcow2", block, count, step); err != nil {
		return 0, 0, err
	}
	var st unix.Stat_t
	err = unix.Stat(path, &st)
	return seconds, st.Blocks * 512, err
}

// change is what a VPS has written since its snapshot.
type change struct {
	what  string
	bytes int64
	write func(ctx context.Context, b *bench, overlay string) error
}

func (b *bench) changes() []change {
	sequential := func(size int64) func(context.Context, *bench, string) error {
		return func(ctx context.Context, b *bench, overlay string) error {
			_, err := b.write(ctx, overlay, "qcow2", mib, size/mib, mib)
			return err
		}
	}
	all := []change{
		{"nothing written", 0, func(context.Context, *bench, string) error { return nil }},
		{"64 MiB scattered", scattered * 4096, func(ctx context.Context, b *bench, overlay string) error {
			_, err := b.scatter(ctx, overlay, "qcow2", 4096, scattered)
			return err
		}},
		{"256 MiB in a row", 256 * mib, sequential(256 * mib)},
		{"1 GiB in a row", gib, sequential(gib)},
	}
	if b.options.full {
		all = append(all, change{"8 GiB in a row", 8 * gib, sequential(8 * gib)})
	}
	return all
}

// deletesOff: with the VPS off, beside qemu-img commit of the same overlay.
func (b *bench) deletesOff(ctx context.Context) error {
	for _, c := range b.changes() {
		what := "delete, off, " + c.what
		if !b.options.only.MatchString(what) {
			continue
		}
		err := b.with(ctx, max(gib, c.bytes), 1, func(name string) error {
			base, err := b.disk(name)
			if err != nil {
				return err
			}
			if _, err := b.fill(base.Path, max(gib, c.bytes)); err != nil {
				return err
			}
			return b.hold(ctx, contest{
				what: what, with: "qemu-img commit", limit: float64(c.bytes) / 1e6 / b.limits.SequentialMB,
				ours: func(ctx context.Context) (float64, error) {
					if err := b.take(ctx, name); err != nil {
						return 0, err
					}
					overlay, err := b.disk(name)
					if err != nil {
						return 0, err
					}
					if err := c.write(ctx, b, overlay.Path); err != nil {
						return 0, err
					}
					return timed(func() error { return b.delete(ctx, name) })
				},
				theirs: func(ctx context.Context) (float64, error) {
					overlay := base.Path + ".overlay"
					defer os.Remove(overlay)
					if err := b.overlay(ctx, overlay, base.Path, max(gib, c.bytes), true); err != nil {
						return 0, err
					}
					if err := c.write(ctx, b, overlay); err != nil {
						return 0, err
					}
					return timed(func() error {
						_, err := b.tool(ctx, "qemu-img", "commit", "-q", "-f", "qcow2", "-t", "none", "-d", overlay)
						return err
					})
				},
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// deletesOn: with the VPS on, each with the overlay of its own kind.
func (b *bench) deletesOn(ctx context.Context) error {
	for _, c := range b.changes() {
		what := "delete, on, " + c.what
		if !b.options.only.MatchString(what) {
			continue
		}
		err := b.with(ctx, max(gib, c.bytes), 1, func(name string) error {
			base, err := b.disk(name)
			if err != nil {
				return err
			}
			if _, err := b.fill(base.Path, max(gib, c.bytes)); err != nil {
				return err
			}
			if _, err := b.Lab.Virsh(ctx, "start", name); err != nil {
				return err
			}
			in := func(take, remove func(context.Context, string) error) func(context.Context) (float64, error) {
				return func(ctx context.Context) (float64, error) {
					if err := take(ctx, name); err != nil {
						return 0, err
					}
					if err := b.whileOff(ctx, name, c); err != nil {
						return 0, err
					}
					return timed(func() error { return remove(ctx, name) })
				}
			}
			return b.hold(ctx, contest{
				what: what, with: "virsh blockcommit", limit: float64(c.bytes) / 1e6 / b.limits.SequentialMB,
				ours: in(b.take, b.delete), theirs: in(b.virshTake, b.virshDelete),
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
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

// restores: how long the VPS is off, whatever its size and what was written. Theirs
// is by hand: libvirt's own revert refuses such snapshots until 9.9.
func (b *bench) restores(ctx context.Context) error {
	for _, c := range []struct {
		size, written int64
	}{{gib, 0}, {gib, 512 * mib}, {10 * gib, 0}, {1 << 40, 0}} {
		what := fmt.Sprintf("restore, time off, %s, %s written", named(c.size), named(c.written))
		if !b.options.only.MatchString(what) {
			continue
		}
		err := b.with(ctx, c.size, 1, func(name string) error {
			if _, err := b.Lab.Virsh(ctx, "start", name); err != nil {
				return err
			}
			if err := b.take(ctx, name); err != nil {
				return err
			}
			some := change{write: func(ctx context.Context, b *bench, overlay string) error {
				_, err := b.write(ctx, overlay, "qcow2", mib, max(1, c.written/mib), mib)
				return err
			}}
			in := func(restore func(context.Context, string) error) func(context.Context) (float64, error) {
				return func(ctx context.Context) (float64, error) {
					if err := b.whileOff(ctx, name, some); err != nil {
						return 0, err
					}
					return b.timeOff(ctx, name, func() error { return restore(ctx, name) })
				}
			}
			return b.hold(ctx, contest{what: what, with: "by hand", ours: in(b.restore), theirs: in(b.restoreByHand)})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) restoreByHand(ctx context.Context, name string) error {
	overlay, err := b.disk(name)
	if err != nil {
		return err
	}
	if _, err := b.Lab.Virsh(ctx, "destroy", name); err != nil {
		return err
	}
	base, _, err := b.Lab.Backing(ctx, overlay.Path)
	if err != nil {
		return err
	}
	info, err := os.Stat(base)
	if err != nil {
		return err
	}
	fresh := overlay.Path + ".fresh"
	if err := b.overlay(ctx, fresh, base, info.Size(), false); err != nil {
		return err
	}
	// Into the old file, which the daemon knows by its inode.
	data, err := os.ReadFile(fresh)
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(overlay.Path, data, 0o600), os.Remove(fresh)); err != nil {
		return err
	}
	_, err = b.Lab.Virsh(ctx, "start", name)
	return err
}

// timeOff is how long a VPS is off during some work, by libvirt's own events.
func (b *bench) timeOff(ctx context.Context, name string, work func() error) (float64, error) {
	images, err := qemuimg.New()
	if err != nil {
		return 0, err
	}
	host, err := libvirt.Open(ctx, libvirt.Config{URI: b.Lab.URI(), ConfigDir: filepath.Join(b.Lab.ConfigDir(), "qemu"), Images: images, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return 0, err
	}
	defer host.Close()
	var off, on time.Time
	ended := make(chan error, 1)
	for {
		select {
		case e := <-host.Events():
			switch {
			case e.Kind == hypervisor.EventConnected:
				go func() { ended <- work() }()
			case e.Name != name:
			case e.Kind == hypervisor.EventResumed:
				on = time.Now()
			case e.Kind == hypervisor.EventChanged && off.IsZero():
				at := time.Now()
				if dom, err := host.Domain(ctx, e.Domain); err == nil && dom.State != hypervisor.Running {
					off = at
				}
			}
			if on.After(off) && !off.IsZero() {
				return on.Sub(off).Seconds(), <-ended
			}
		case err := <-ended:
			if err != nil {
				return 0, err
			}
			ended <- nil // and wait for what libvirt still has to tell
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
