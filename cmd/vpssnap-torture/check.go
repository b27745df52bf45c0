package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"vpssnapd/api/client"
)

// check applies the outcome to the model and compares everything with it: the
// guest's bytes, the record, the live and the persistent definition, the files.
func (c *campaign) check(ctx context.Context, w *work) error {
	v := w.victim
	if w.op.Status != "succeeded" && w.op.Status != "failed" {
		return fmt.Errorf("it ended as %s: %+v", w.op.Status, w.op.Error)
	}
	if w.op.Status == "succeeded" {
		v.apply(w.kind)
	}
	if err := c.sameState(ctx, w); err != nil {
		return err
	}
	if err := v.compare(ctx, c.site.Lab); err != nil {
		return err
	}
	if err := c.eventually(ctx, func() error { return c.sameRecord(ctx, v) }); err != nil {
		return err
	}
	return c.sameFiles(ctx, v)
}

// apply does to the model what the operation did to the VPS.
func (v *victim) apply(kind string) {
	switch kind {
	case "take", "replace":
		v.snapshot, v.undo = v.current.clone(), nil
	case "restore":
		v.undo, v.current = v.current, v.snapshot.clone()
	case "undo_restore":
		v.undo, v.current = v.current, v.undo
	case "delete":
		v.snapshot, v.undo = nil, nil
	}
}

// sameState makes sure that the VPS stands as it did, unless its QEMU was killed.
func (c *campaign) sameState(ctx context.Context, w *work) error {
	return c.eventually(ctx, func() error {
		state, err := c.site.Lab.State(ctx, w.victim.name)
		if err != nil || state == w.victim.state {
			return err
		}
		if w.killed && state == "shut off" {
			w.killed = false
			return errors.Join(c.bring(ctx, w.victim), errors.New("started again"))
		}
		return fmt.Errorf("%s is %s, it was %s", w.victim.name, state, w.victim.state)
	})
}

// eventually gives the daemon a moment, and life if it dies in it.
func (c *campaign) eventually(ctx context.Context, ok func() error) error {
	var err error
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = ok(); err == nil {
			return nil
		}
		if err := c.revive(ctx); err != nil {
			return err
		}
	}
	return err
}

func (c *campaign) sameRecord(ctx context.Context, v *victim) error {
	s, err := c.site.Client.Snapshot(ctx, v.name)
	switch {
	case v.snapshot == nil && client.CodeOf(err) == "not_found":
		return nil
	case err != nil:
		return err
	case v.snapshot == nil:
		return fmt.Errorf("%s has a snapshot on record (%s), it should have none", v.name, s.State)
	case s.State != "available":
		return fmt.Errorf("the snapshot of %s is %s", v.name, s.State)
	case (s.UndoUntil != nil) != (v.undo != nil):
		return fmt.Errorf("%s: undo until %v, expected %v", v.name, s.UndoUntil, v.undo != nil)
	}
	return nil
}

// sameFiles counts the files of the snapshot and looks into both definitions.
func (c *campaign) sameFiles(ctx context.Context, v *victim) error {
	want := 0
	if v.snapshot != nil {
		want = len(v.targets)
	}
	if v.undo != nil {
		want += len(v.targets)
	}
	files, err := c.site.OurFiles()
	if err != nil {
		return err
	}
	var mine []string
	for _, f := range files {
		if strings.HasPrefix(f, v.name+"-") {
			mine = append(mine, f)
		}
	}
	if len(mine) != want {
		return fmt.Errorf("%s has the files %v, %d are expected", v.name, mine, want)
	}
	for _, flag := range []string{"", "--inactive"} {
		args := []string{"domblklist", v.name}
		if flag != "" {
			args = append(args, flag)
		}
		list, err := c.site.Lab.Virsh(ctx, args...)
		if err != nil {
			return err
		}
		if n := strings.Count(list, ".vpssnap-"); (n == len(v.targets)) != (v.snapshot != nil) || n != 0 && n != len(v.targets) {
			return fmt.Errorf("%s %s: unexpected disks:\n%s", v.name, flag, list)
		}
	}
	return nil
}
