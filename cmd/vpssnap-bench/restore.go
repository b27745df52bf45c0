package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/libvirt"
	"vpssnapd/hypervisor/qemuimg"
)

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
			some := change{block: mib, blocks: max(1, c.written/mib), step: mib}
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

// restoreByHand does what PROTOCOL.md calls the restore by hand: destroy, a fresh
// overlay in the place of the old one, start.
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

// timeOff is how long a VPS is off during some work, by libvirt's own events. Without
// our own calls in between, which would add to what is measured.
func (b *bench) timeOff(ctx context.Context, name string, work func() error) (float64, error) {
	images, err := qemuimg.New()
	if err != nil {
		return 0, err
	}
	host, err := libvirt.Open(
		ctx,
		libvirt.Config{
			URI:       b.Lab.URI(),
			ConfigDir: filepath.Join(b.Lab.ConfigDir(), "qemu"),
			Images:    images,
			Logger:    slog.New(slog.DiscardHandler),
		},
	)
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
