package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/cmd/internal/site"
)

// settleWithin is how long everything may take to be in order after a start.
const settleWithin = 30 * time.Second

// examine starts libvirtd and the daemon on the stage as it was cut after n
// entries, and returns what is wrong.
func (c *campaign) examine(ctx context.Context, n int) (wrong error) {
	s, err := openSite(ctx, c.stage, c.bin)
	if err != nil {
		return err
	}
	defer func() {
		if wrong != nil {
			wrong = fmt.Errorf("%w\n%s", wrong, s.DaemonLog())
		}
		wrong = errors.Join(wrong, s.Close())
	}()
	operations, err := settled(ctx, s)
	if err != nil {
		return err
	}
	status := func(id string) api.OperationStatus { return operations[id].Status }
	// From the length of the log: acts are noted with it.
	at := c.record.length(n)
	c.count(at, status)
	for _, v := range c.victims {
		e, err := v.expect(at, status)
		if err == nil {
			err = (&examiner{s, v, e}).all(ctx, cutShort(v, at) != nil)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	return nil
}

// settled waits until every operation has ended, and returns them by id.
func settled(ctx context.Context, s *site.Site) (map[string]api.Operation, error) {
	var open []string
	err := eventually(ctx, func() error { _, err := s.Client.ListVPS(ctx); return err })
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(settleWithin); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		list, err := s.Client.Operations(ctx, api.ListOperationsParams{})
		if err != nil {
			return nil, err
		}
		found := map[string]api.Operation{}
		open = nil
		for _, op := range list.Operations {
			found[op.ID] = op
			switch {
			// Nobody touched the host but the power: a recovery that asks for an
			// operator is a violation.
			case op.Status == api.OperationStatusNeedsAttention:
				return nil, fmt.Errorf("%s of %s needs attention at %s: %+v", op.Kind, op.VPSName, op.Step, op.Error)
			case !client.Ended(op):
				open = append(open, fmt.Sprintf("%s of %s at %s", op.Kind, op.VPSName, op.Step))
			}
		}
		if len(open) == 0 {
			return found, nil
		}
	}
	return nil, fmt.Errorf("not ended within %s: %s", settleWithin, strings.Join(open, ", "))
}

// count notes what became of the operation that was cut.
func (c *campaign) count(at int64, status func(string) api.OperationStatus) {
	outcome := "nothing to do"
	for _, v := range c.victims {
		if a := cutShort(v, at); a != nil {
			outcome = cmp.Or(string(status(a.op)), "never heard of")
		}
	}
	c.outcomes[label(c.victims, at)+": "+outcome]++
}

// examiner holds one VPS against what is expected.
type examiner struct {
	site   *site.Site
	victim *victim
	expected
}

// all checks everything. To boot takes long, so only what was struck boots.
func (e *examiner) all(ctx context.Context, struck bool) error {
	if err := e.sold(ctx); err != nil {
		return err
	}
	if err := e.holds(ctx, e.current); err != nil {
		return err
	}
	if err := eventually(ctx, func() error { return e.recorded(ctx) }); err != nil || !struck {
		return err
	}
	return e.boots(ctx)
}

// sold makes sure of the option. Once acknowledged it must survive, as somebody pays for
// it.
func (e *examiner) sold(ctx context.Context) error {
	if !e.option {
		return nil
	}
	o, err := e.site.Client.Option(ctx, e.victim.name)
	if err == nil && o.State != "active" {
		err = fmt.Errorf("the option is %s", o.State)
	}
	return err
}

// holds compares the bytes of all disks. The whole disk, also where nobody wrote.
func (e *examiner) holds(ctx context.Context, want disks) error {
	for _, t := range e.victim.targets {
		data, err := e.site.Lab.ReadDisk(ctx, e.victim.name, t, 0, blocks*blockSize)
		if err != nil {
			return err
		}
		if err := want.compare(t, data); err != nil {
			return err
		}
	}
	return nil
}

// recorded holds the record, the files and the definition against each other.
func (e *examiner) recorded(ctx context.Context) error {
	name, want := e.victim.name, 0
	snapshot, err := e.site.Client.Snapshot(ctx, name)
	switch {
	case e.snapshot == nil && client.CodeOf(err) == api.CodeNotFound:
	case err != nil:
		return err
	case e.snapshot == nil:
		return fmt.Errorf("a snapshot is on record (%s), there should be none", snapshot.State)
	case snapshot.State != "available":
		return fmt.Errorf("the snapshot is %s: %s", snapshot.State, snapshot.Reason)
	default:
		want = len(e.victim.targets)
	}
	files, err := e.site.OurFiles()
	if err != nil {
		return err
	}
	list, err := e.site.Lab.Virsh(ctx, "domblklist", "--inactive", name)
	if err != nil {
		return err
	}
	if n := strings.Count(list, ".vpssnap-"); n != want {
		return fmt.Errorf("the definition names %d overlays instead of %d:\n%s", n, want, list)
	}
	if snapshot.UndoUntil != nil {
		// The disks from before the restore are kept beside the overlays.
		want *= 2
	}
	if mine := ours(files, e.victim); len(mine) != want {
		return fmt.Errorf("there are the files %q, %d are expected", mine, want)
	}
	return nil
}

// boots starts the VPS, by a restore when there is a snapshot: so that is whole too.
func (e *examiner) boots(ctx context.Context) error {
	name := e.victim.name
	if e.snapshot == nil {
		if state, err := e.site.Lab.State(ctx, name); err != nil || state == "running" {
			return err
		}
		_, err := e.site.Lab.Virsh(ctx, "start", name)
		return err
	}
	op, err := restore(ctx, e.site, name, api.RestoreRequestPowerAfterRunning)
	if err != nil {
		return err
	}
	if op, err = e.site.Client.WaitOperation(ctx, op.ID, settleWithin); err != nil {
		return err
	}
	if op.Status != api.OperationStatusSucceeded {
		return fmt.Errorf("its restore is %s at %s: %+v", op.Status, op.Step, op.Error)
	}
	// The restore must give the snapshot to the byte.
	if err := e.holds(ctx, e.snapshot); err != nil {
		return fmt.Errorf("after its restore: %w", err)
	}
	return nil
}

// eventually gives the daemon a moment.
func eventually(ctx context.Context, ok func() error) error {
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if err = ok(); err == nil {
			return nil
		}
	}
	return err
}
