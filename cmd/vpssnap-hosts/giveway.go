package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// givesWay: a merge with its VPS off has little weight on the host, and the VPS can be
// started in the middle of it.
func givesWay(ctx context.Context, h *host) error {
	if err := h.configure(ctx, slowMerges); err != nil {
		return err
	}
	db := h.vpses[1]
	op, err := take.ask(ctx, db)
	if err != nil {
		return err
	}
	if err := errors.Join(h.await(ctx, op), db.write(ctx, 'w')); err != nil {
		return err
	}
	if _, err := h.lab.Virsh(ctx, "destroy", db.spec.Name); err != nil {
		return err
	}
	if op, err = remove.ask(ctx, db); err != nil {
		return err
	}
	if err := h.inMiddle(ctx, op, remove); err != nil {
		return err
	}
	if err := h.confined(ctx); err != nil {
		return err
	}
	if _, err := h.lab.Virsh(ctx, "start", db.spec.Name); err != nil {
		return fmt.Errorf("the merge keeps its VPS from being started: %w", err)
	}
	remove.becomes(db)
	return errors.Join(h.await(ctx, op), h.whole(ctx))
}

// confined expects a merge in a scope of its own, with the weight of the
// configuration's example.
func (h *host) confined(ctx context.Context) error {
	var scope string
	if err := h.until(ctx, func() (bool, error) {
		printed, err := h.run(ctx, "systemctl", "list-units", "--type=scope", "--plain", "--no-legend", "vpssnapd-merge-*")
		scope, _, _ = strings.Cut(strings.TrimSpace(printed), " ")
		return scope != "", err
	}); err != nil {
		return fmt.Errorf("the merge has no scope of its own: %w", err)
	}
	printed, err := h.run(ctx, "systemctl", "show", "--property=Slice,CPUWeight,IOWeight", scope)
	if err != nil {
		return err
	}
	for _, property := range []string{"Slice=machine.slice", "CPUWeight=20", "IOWeight=20"} {
		if !strings.Contains(printed, property) {
			return fmt.Errorf("%s has not %s: %s", scope, property, printed)
		}
	}
	return nil
}
