package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vpssnapd/api"
)

// slowMerges makes a merge of what is written between two looks take 12 s.
const slowMerges = "[merge]\nbandwidth = \"2 MiB\"\n"

// interruption is something that happens to a host while operations are on their
// way. Afterwards the daemon is there again; what was cut short goes on by itself.
type interruption func(context.Context, *host) error

// killed is the end of the daemon at any moment.
func killed(ctx context.Context, h *host) error {
	_, err := h.run(ctx, "systemctl", "kill", "--signal=KILL", "--kill-whom=main", "vpssnapd.service")
	return err
}

// stopped is what systemctl stop does: the step under way may end, the operation goes on
// later.
func stopped(ctx context.Context, h *host) error {
	if _, err := h.run(ctx, "systemctl", "stop", "vpssnapd.service"); err != nil {
		return err
	}
	_, err := h.run(ctx, "systemctl", "start", "vpssnapd.service")
	return err
}

// upgraded is the end of an upgrade, which restarts the daemon. What comes before
// takes longer than some operations, and is done before they begin.
func upgraded(ctx context.Context, h *host) error {
	_, err := h.run(ctx, "dpkg", "--configure", "vpssnapd")
	return err
}

// upgradeRound installs the later version in a round: over the first one, and then
// over itself.
func upgradeRound(ctx context.Context, h *host) error {
	return h.round(ctx, upgraded, func() error {
		_, err := h.run(ctx, "dpkg", "--unpack", h.packages[1])
		return err
	})
}

// libvirtRestarted: merges go on in QEMU meanwhile (FAULTS.md, row 15).
func libvirtRestarted(ctx context.Context, h *host) error {
	_, err := h.run(ctx, "systemctl", "restart", "libvirtd.service")
	return err
}

// rebooted is a shutdown in order, which the inhibitor may delay.
func rebooted(ctx context.Context, h *host) error { return h.reboot(ctx) }

// died is what a power cut leaves, but for what the disk had not written.
func died(ctx context.Context, h *host) error { return h.die(ctx) }

// round does every kind of operation on both VPSes at once and interrupts each.
func round(ctx context.Context, h *host, interrupt interruption) error {
	return h.round(ctx, interrupt, func() error { return nil })
}

// round prepares each interruption.
func (h *host) round(ctx context.Context, interrupt interruption, prepare func() error) error {
	if err := h.configure(ctx, slowMerges); err != nil {
		return err
	}
	slow := filepath.Join(h.share, "run/slow")
	for i, a := range []act{take, restore, undo, replace, remove} {
		// An undo needs what was before the restore; all others something to do.
		if a.name == restore.name || a.name == replace.name || a.name == remove.name {
			if err := h.write(ctx, byte('a'+i)); err != nil {
				return err
			}
		}
		if err := errors.Join(prepare(), os.WriteFile(slow, nil, 0o600)); err != nil {
			return err
		}
		if err := h.interrupted(ctx, a, interrupt); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
	}
	return nil
}

// write gives every disk new content, to be told apart from the one before.
func (h *host) write(ctx context.Context, letter byte) error {
	for _, v := range h.vpses {
		if err := v.write(ctx, letter); err != nil {
			return err
		}
	}
	return nil
}

// interrupted asks both VPSes for the same, interrupts it in its slow step, and
// expects it to be done all the same, every byte in its place.
func (h *host) interrupted(ctx context.Context, a act, interrupt interruption) error {
	start := time.Now()
	var ops []api.Operation
	for _, v := range h.vpses {
		if err := v.slowFreeze(ctx); err != nil {
			return err
		}
		op, err := a.ask(ctx, v)
		if err != nil {
			return err
		}
		ops = append(ops, op)
	}
	if err := h.inMiddle(ctx, ops[0], a); err != nil {
		return err
	}
	if err := interrupt(ctx, h); err != nil {
		return err
	}
	back := time.Now()
	if err := h.ready(ctx); err != nil {
		return err
	}
	for i, v := range h.vpses {
		if err := h.endsWell(ctx, v, a, ops[i]); err != nil {
			return err
		}
		a.becomes(v)
	}
	if err := os.Remove(filepath.Join(h.share, "run/slow")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fmt.Printf(
		"   %-8s interrupted for %4.1f s, done after %5.1f s\n", a.name, back.Sub(start).Seconds(),
		time.Since(start).Seconds(),
	)
	return h.whole(ctx)
}

// endsWell expects an operation that was interrupted to end well. A take that had
// not switched the disks may also end without effect: the moment that was meant is
// over. It says so, and the same can be asked for at once.
func (h *host) endsWell(ctx context.Context, v *vps, a act, op api.Operation) error {
	op, err := h.ended(ctx, op)
	if err != nil {
		return err
	}
	if a.name == take.name && op.Status == api.OperationStatusFailed &&
		strings.Contains(op.Error.Detail, "before the disks were switched") {
		if op, err = a.ask(ctx, v); err != nil {
			return err
		}
	}
	return h.await(ctx, op)
}

// inMiddle returns when the operation is in the step in which it is slow.
func (h *host) inMiddle(ctx context.Context, op api.Operation, a act) error {
	return h.until(ctx, func() (bool, error) {
		now, err := h.client.Operation(ctx, op.ID)
		if err != nil {
			return false, err
		}
		if now.EndedAt != nil {
			return false, fmt.Errorf("it ended %s before it could be interrupted", now.Status)
		}
		return now.Status == api.OperationStatusRunning && now.Step == a.step, nil
	})
}
