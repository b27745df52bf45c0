package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

// settleWithin is how long an operation may take to end after the last kill.
const settleWithin = 30 * time.Second

type campaign struct {
	site     *site.Site
	rand     *rand.Rand
	victims  []*victim
	armed    bool
	visits   string // file with the failpoints as they are visited
	kills    map[string]int
	outcomes map[string]int

	rounds, operations int
}

func mapKeys(m map[string]int) iter.Seq[string] { return maps.Keys(m) }

// populate makes the VPSes: each state, one to three disks, both formats.
func (c *campaign) populate(ctx context.Context) error {
	c.outcomes = map[string]int{}
	for i, state := range []string{"running", "running", "running", "paused", "shut off"} {
		v := &victim{name: fmt.Sprintf("vps%d", i), state: state}
		spec := lab.Spec{Name: v.name}
		for j := range 1 + i%3 {
			v.targets = append(v.targets, fmt.Sprintf("vd%c", 'a'+j))
			spec.Disks = append(spec.Disks, lab.DiskSpec{Target: v.targets[j], Format: []string{"qcow2", "raw"}[(i+j)%2], SizeBytes: blocks * blockSize})
		}
		v.current = newDisks(v.targets)
		if _, err := c.site.Lab.DefineDomain(ctx, spec); err != nil {
			return err
		}
		if err := c.bring(ctx, v); err != nil {
			return err
		}
		if err := c.activate(ctx, v); err != nil {
			return err
		}
		c.victims = append(c.victims, v)
	}
	return nil
}

func (c *campaign) activate(ctx context.Context, v *victim) error {
	var err error
	for end := time.Now().Add(settleWithin); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if _, err = c.site.Client.PutOption(ctx, v.name, api.OptionOrder{State: "active", OrderRef: "torture"}); err == nil {
			return nil
		}
	}
	return err
}

// bring starts a VPS that is off, as its state says.
func (c *campaign) bring(ctx context.Context, v *victim) error {
	args := map[string][]string{"running": {"start", v.name}, "paused": {"start", v.name, "--paused"}}[v.state]
	if args == nil {
		return nil
	}
	_, err := c.site.Lab.Virsh(ctx, args...)
	return err
}

// work is one operation of a round.
type work struct {
	victim *victim
	kind   string
	op     api.Operation
	began  time.Time
	killed bool   // its QEMU was
	stop   func() // ends the guest's writing; nil when it does not write
}

// round does one operation on some VPSes side by side, kills meanwhile, waits
// until all is settled, and checks everything.
func (c *campaign) round(ctx context.Context) error {
	var works []*work
	for _, i := range c.rand.Perm(len(c.victims))[:1+c.rand.IntN(3)] {
		v := c.victims[i]
		for range 1 + c.rand.IntN(3) {
			v.write(ctx, c.site.Lab, v.targets[c.rand.IntN(len(v.targets))], c.rand.IntN(blocks), c.value())
		}
		works = append(works, &work{victim: v, kind: c.choose(v)})
	}
	for _, w := range works {
		if err := c.begin(ctx, w); err != nil {
			return err
		}
	}
	if err := c.strike(ctx, works); err != nil {
		return err
	}
	if err := c.settle(ctx, works); err != nil {
		return err
	}
	for _, w := range works {
		if err := c.check(ctx, w); err != nil {
			return fmt.Errorf("after %s (%s at %s): %w", w.kind, w.op.Status, w.op.Step, err)
		}
	}
	return nil
}

func (c *campaign) value() byte { return byte(1 + c.rand.IntN(255)) } //nolint:gosec // 1 to 255

// choose picks an operation that the VPS's state allows.
func (c *campaign) choose(v *victim) string {
	if v.snapshot == nil {
		return "take"
	}
	kinds := []string{"restore", "delete", "delete", "replace"}
	if v.undo != nil {
		kinds = append(kinds, "undo_restore")
	}
	return kinds[c.rand.IntN(len(kinds))]
}

// begin asks for the operation until the daemon has heard it.
func (c *campaign) begin(ctx context.Context, w *work) error {
	w.began = time.Now()
	for end := time.Now().Add(settleWithin); time.Now().Before(end); {
		op, err := c.ask(ctx, w)
		var unreachable *client.UnreachableError
		switch {
		case err == nil:
			w.op = op
			c.operations++
			c.disturb(ctx, w)
			return nil
		case errors.As(err, &unreachable) || client.CodeOf(err) == "hypervisor_unavailable":
			if err := c.revive(ctx); err != nil {
				return err
			}
			// It may have been heard just before the daemon died.
			if heard, err := c.heard(ctx, w); err == nil && heard {
				c.operations++
				return nil
			}
		default:
			return fmt.Errorf("%s of %s was refused: %w", w.kind, w.victim.name, err)
		}
	}
	return fmt.Errorf("%s of %s was not heard within %s", w.kind, w.victim.name, settleWithin)
}

func (c *campaign) ask(ctx context.Context, w *work) (api.Operation, error) {
	name := w.victim.name
	switch w.kind {
	case "take", "replace":
		return c.site.Client.Take(ctx, name, api.TakeRequest{Replace: w.kind == "replace"})
	case "undo_restore":
		return c.site.Client.UndoRestore(ctx, name)
	case "delete":
		return c.site.Client.Delete(ctx, name)
	}
	s, err := c.site.Client.Snapshot(ctx, name)
	if err != nil {
		return api.Operation{}, err
	}
	return c.site.Client.Restore(ctx, name, api.RestoreRequest{Confirm: s.ID})
}

// heard looks for the operation of a request whose answer was lost.
func (c *campaign) heard(ctx context.Context, w *work) (bool, error) {
	list, err := c.site.Client.Operations(ctx, api.ListOperationsParams{VPS: &w.victim.name})
	if err != nil || len(list.Operations) == 0 || list.Operations[0].CreatedAt.Before(w.began.Add(-time.Millisecond)) {
		return false, err
	}
	w.op = list.Operations[0]
	return true, nil
}

// disturb lets the guest write while its disks are merged. The writes come from
// the monitor, so they do not stand still when the guest is suspended: such a
// guest's QEMU is not killed.
func (c *campaign) disturb(ctx context.Context, w *work) {
	if w.kind != "delete" || w.victim.state != "running" || c.rand.IntN(2) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	source := rand.New(rand.NewPCG(c.rand.Uint64(), 1))
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			w.victim.write(ctx, c.site.Lab, w.victim.targets[source.IntN(len(w.victim.targets))], source.IntN(blocks), byte(1+source.IntN(255))) //nolint:gosec // 1 to 255
		}
	})
	w.stop = func() { cancel(); wg.Wait() }
}

// strike kills libvirtd, a QEMU or the daemon, or leaves it to the failpoint
// that the daemon was started with.
func (c *campaign) strike(ctx context.Context, works []*work) error {
	moment := time.Duration(c.rand.IntN(250)) * time.Millisecond
	dice := c.rand.IntN(10)
	if dice >= 4 {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(moment):
	}
	switch w := works[0]; {
	case dice == 0:
		c.kills["libvirtd, at random"]++
		if err := c.site.Lab.KillLibvirtd(); err != nil {
			return err
		}
		return c.site.Lab.StartLibvirtd(ctx)
	case dice == 1:
		if err := c.site.KillDaemon(); err != nil {
			return err
		}
		c.kills["daemon, at random"]++
		return c.revive(ctx)
	case w.stop == nil && w.victim.state != "shut off" && w.kind != "restore" && w.kind != "undo_restore":
		if c.site.Lab.KillQEMU(w.victim.name) == nil {
			w.killed = true
			c.kills["QEMU, at random during "+w.kind]++
		}
	}
	return nil
}

// settle waits until every operation has ended, starting whatever dies meanwhile.
func (c *campaign) settle(ctx context.Context, works []*work) error {
	end := time.Now().Add(settleWithin)
	for _, w := range works {
		for {
			before := c.total()
			if err := c.revive(ctx); err != nil {
				return err
			}
			if c.total() != before {
				end = time.Now().Add(settleWithin)
			}
			op, err := c.site.Client.WaitOperation(ctx, w.op.ID, time.Second)
			if err == nil {
				w.op = op
				if op.Status != "pending" && op.Status != "running" {
					break
				}
			}
			if ctx.Err() != nil || time.Now().After(end) {
				return fmt.Errorf("%s of %s has not ended: %s at %s (%w)", w.kind, w.victim.name, w.op.Status, w.op.Step, err)
			}
		}
		if w.stop != nil {
			w.stop()
		}
		c.outcomes[w.kind+" "+string(w.op.Status)]++
	}
	return nil
}

// revive starts the daemon again if it has died at its failpoint, as often as it takes.
func (c *campaign) revive(ctx context.Context) error {
	for range 100 {
		select {
		case <-c.site.DaemonEnded():
		default:
			return nil
		}
		if point := c.lastVisit(); point != "" {
			c.kills["daemon, at "+point]++
		}
		if err := c.site.StartDaemon(ctx); err != nil {
			select {
			case <-c.site.DaemonEnded(): // killed again, in its recovery
			default:
				return err
			}
		}
	}
	return errors.New("the daemon does not come up")
}

// arm chooses the failpoint that the next daemon dies at: mostly a number of
// visits from now, sometimes the place that was struck least.
func (c *campaign) arm() []string {
	_ = os.Remove(c.visits)
	env := []string{"VPSSNAP_FAILPOINT_LOG=" + c.visits}
	if !c.armed || c.rand.IntN(10) == 0 {
		return env
	}
	return append(env, fmt.Sprintf("VPSSNAP_FAILPOINT=*:%d", 1+c.rand.IntN(30)))
}

// lastVisit is the failpoint at which the daemon died; the file is gone after.
func (c *campaign) lastVisit() string {
	text, err := os.ReadFile(c.visits)
	if err != nil {
		return ""
	}
	_ = os.Remove(c.visits)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}
