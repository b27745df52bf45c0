// Package guest makes guests wait and go on: it freezes and thaws their file systems and
// suspends and resumes their processors. That a guest will go on is a debt, recorded
// before it is made to wait, and settled again and again until the guest has answered.
package guest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"vpssnapd/daemon/image"
	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/work"
	"vpssnapd/hypervisor"
)

// thawLimit is how long one thaw may take before it is tried again.
const thawLimit = 5 * time.Second

// Policy bounds how long a guest may be kept waiting.
type Policy struct {
	// FreezeLimit is how long a guest may be frozen, 10 s at most.
	FreezeLimit time.Duration
}

// Guests freezes and suspends the guests of one host, and owes them that they go on.
type Guests struct {
	host       hypervisor.Host
	inventory  *inventory.Inventory
	store      *store.Store
	operations *operation.Operations
	group      *work.Group
	policy     func() Policy
	logger     *slog.Logger
	onPaused   func(time.Duration)
	locks      work.KeyedLock // see with
	suspended  sync.Map       // by id, the guests that this process has suspended
}

// New makes a Guests that gives back what an operation still owes when it ends. onPaused
// is told how long a guest was suspended.
func New(
	host hypervisor.Host, inv *inventory.Inventory, db *store.Store, ops *operation.Operations, group *work.Group,
	policy func() Policy, logger *slog.Logger, onPaused func(time.Duration),
) *Guests {
	g := &Guests{host: host, inventory: inv, store: db, operations: ops, group: group, policy: policy, logger: logger,
		onPaused: onPaused}
	ops.OnFailed(g.letRunMeanwhile)
	ops.OnEnded(func(op vps.Operation) { g.Release(group.Context(), op.VPS) })
	return g
}

// with does something that suspends a guest or lets it go on, together with what
// is recorded of it. Without it a late try to keep a promise would thaw the freeze of the
// next take, or take the promise of a guest that was just suspended off the record.
func (g *Guests) with(ctx context.Context, id string, do func() error) error {
	release, err := g.locks.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	return do()
}

// Freezing is what came of a wish to freeze a guest.
type Freezing struct {
	Asked bool      // the agent was asked, so a thaw is owed even after an error
	Done  bool      // the agent says that the file systems are frozen
	Began time.Time // when it was asked
	Note  string    // why they are not frozen, for a human
	Why   error     // the same in the words of the host and the agent, for operators
}

// Freeze asks the guest agent to freeze the file systems, as far as the policy
// and the VPS's state let it. The caller owes a thaw when it was asked, whatever
// came of it.
func (g *Guests) Freeze(ctx context.Context, dom hypervisor.Domain, policy vps.Quiesce) (Freezing, error) {
	var f Freezing
	owed, err := g.store.Owes(ctx, dom.ID, store.DebtThaw)
	switch {
	case err != nil:
		return f, err
	case policy == vps.QuiesceNever || dom.State == hypervisor.Off:
		return f, nil
	case dom.State != hypervisor.Running:
		f.Note = "not frozen, because the VPS was " + string(dom.State)
	case dom.Agent != hypervisor.AgentConnected:
		f.Note = "not frozen, because no guest agent answers"
	case owed:
		// Its late answer would thaw the guest in the middle of this freeze.
		f.Note = "not frozen, because the guest agent still owes an answer to an earlier thaw"
	default:
		return g.askToFreeze(ctx, dom, policy)
	}
	return f, required(policy, dom, f)
}

// askToFreeze promises the thaw on disk, and then freezes the guest.
func (g *Guests) askToFreeze(ctx context.Context, dom hypervisor.Domain, policy vps.Quiesce) (Freezing, error) {
	var f Freezing
	err := g.with(ctx, dom.ID, func() error {
		owed := store.Debt{VPS: dom.ID, Kind: store.DebtThaw, Since: g.store.Now()}
		if err := g.store.Write(ctx, func(tx *store.Tx) error { return tx.Owe(ctx, owed) }); err != nil {
			return err
		}
		f = Freezing{Asked: true, Began: g.store.Now()}
		return g.host.Freeze(ctx, dom.ID, g.policy().FreezeLimit)
	})
	if !f.Asked {
		return f, err
	}
	if err == nil {
		f.Done = true
		return f, nil
	}
	f.Note, f.Why = notFrozen(err), err
	g.logger.Warn("guest not frozen", vps.LogAttr(dom.ID, dom.Name), "error", err)
	return f, required(policy, dom, f)
}

// notFrozen says why a freeze did not come about. The agent's own words come from the
// guest: they are for operators, with the error.
func notFrozen(err error) string {
	switch {
	case errors.Is(err, hypervisor.ErrNothingFrozen):
		return "not frozen, because the guest agent found no file system to freeze"
	case errors.Is(err, hypervisor.ErrAgentDisabled):
		return "not frozen, because freezing is disabled in the guest agent"
	case errors.Is(err, hypervisor.ErrAgentLate):
		return "not frozen, because the guest agent did not do it in time"
	case errors.Is(err, hypervisor.ErrAgent):
		return "not frozen, because the guest agent refused"
	}
	return "not frozen, because the guest agent could not be asked"
}

// WhileFrozen returns a context that ends when the guest has been frozen for as long as
// it may be; of one that is not frozen, with ctx.
func (g *Guests) WhileFrozen(ctx context.Context, f Freezing) (context.Context, context.CancelFunc) {
	if !f.Done {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, g.policy().FreezeLimit-g.store.Now().Sub(f.Began))
}

// required is the error of a freeze that did not come about where it had to.
func required(policy vps.Quiesce, dom hypervisor.Domain, f Freezing) error {
	if policy != vps.QuiesceRequire {
		return nil
	}
	return vps.Errorf(vps.CodeGuestUnresponsive, "cannot take a consistent snapshot of %s: %s", dom.Name, f.Note).
		WithRemedy("see to it that qemu-guest-agent runs in the VPS and may freeze its file systems (guest-fsfreeze-freeze " +
			"in its allow-rpcs or block-rpcs), or allow a snapshot without it (quiesce prefer)").
		Because(f.Why)
}

// stopLimit is how long a daemon that is told to stop still works on a guest
// that is paused because of it.
const stopLimit = 8 * time.Second

// evenWhenStopping returns a context that outlives the daemon's stop for a while.
func evenWhenStopping(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
}

// Thaw thaws a guest that we owe it to, also when the daemon is about to stop.
// When the agent does not answer at once it goes on in the background until it
// does: the agent is serial, so its answer proves that a late freeze was
// consumed too.
func (g *Guests) Thaw(ctx context.Context, id string) {
	ctx, cancel := evenWhenStopping(ctx)
	defer cancel()
	owed, err := g.store.DebtOf(ctx, id, store.DebtThaw)
	if errors.Is(err, sql.ErrNoRows) {
		return
	}
	if g.SettleThaw(ctx, owed) != nil {
		g.retry(owed, g.SettleThaw)
	}
}

// SettleThaw tries once to thaw a guest, if that is owed still. One that came
// after it belongs to another freeze, which this try must not end.
func (g *Guests) SettleThaw(ctx context.Context, owed store.Debt) error {
	return g.with(ctx, owed.VPS, func() error {
		now, err := g.store.DebtOf(ctx, owed.VPS, store.DebtThaw)
		if errors.Is(err, sql.ErrNoRows) || err == nil && !owed.Since.IsZero() && !now.Since.Equal(owed.Since) {
			return nil
		}
		return g.thawNow(ctx, owed.VPS)
	})
}

func (g *Guests) thawNow(ctx context.Context, id string) error {
	// Before anything is read: the agent may answer where the rest of the VPS hangs.
	err := g.host.Thaw(ctx, id, thawLimit)
	if err == nil || errors.Is(err, hypervisor.ErrOff) || errors.Is(err, hypervisor.ErrNotFound) {
		return g.thawed(ctx, id)
	}
	dom, e := g.inventory.Read(ctx, id)
	if errors.Is(e, hypervisor.ErrNotFound) ||
		e == nil && (dom.State == hypervisor.Off || dom.Agent == hypervisor.AgentNone) {
		return g.thawed(ctx, id)
	}
	return fmt.Errorf("guest not thawed: %w", err)
}

// Resume tries once to keep the promise to resume.
func (g *Guests) Resume(ctx context.Context, id string) error {
	return g.with(ctx, id, func() error { return g.resumeNow(ctx, id) })
}

func (g *Guests) resumeNow(ctx context.Context, id string) error {
	err := g.mayRun(ctx, id)
	if err == nil {
		err = g.host.Resume(ctx, id)
	}
	if err != nil && !errors.Is(err, hypervisor.ErrOff) && !errors.Is(err, hypervisor.ErrNotFound) {
		return fmt.Errorf("guest not resumed: %w", err)
	}
	g.suspended.Delete(id)
	var long time.Duration
	e := g.store.Write(ctx, func(tx *store.Tx) error {
		if err == nil { // from here on it runs by our leave
			if err := tx.ForgetPivot(ctx, id); err != nil {
				return err
			}
		}
		owed, err := tx.DebtOf(ctx, id, store.DebtResume)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		long = g.store.Now().Sub(owed.Since)
		return errors.Join(tx.NotePause(ctx, id, long), tx.Settle(ctx, id, store.DebtResume))
	})
	if e == nil && long > 0 {
		g.onPaused(long)
	}
	return e
}

// mayRun is nil when a guest that is suspended for a pivot may run: something
// durable, the record or the definition, names every base that it will write to.
func (g *Guests) mayRun(ctx context.Context, id string) error {
	dom, err := g.inventory.Read(ctx, id)
	if err != nil || !dom.Persistent {
		return err // without a definition there is no next boot to take the wrong disk
	}
	if nextBootIsTheSame(dom) {
		return nil // whether or not the record can be read
	}
	snap, err := g.store.CurrentSnapshot(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	var bases []hypervisor.DiskSource
	for _, disk := range snap.Disks {
		if now, ok := image.Live(dom, disk); ok && now.Is(disk.Base) && !disk.Pivoted {
			bases = append(bases, image.OnBase(dom, disk))
		}
	}
	if dom.State == hypervisor.Off || len(bases) == 0 {
		return nil
	}
	return g.host.PointDisks(ctx, id, bases)
}

// nextBootIsTheSame reports whether the next boot will use the images that QEMU uses now.
func nextBootIsTheSame(dom hypervisor.Domain) bool {
	for _, disk := range dom.Disks {
		if !slices.ContainsFunc(dom.PersistentDisks, func(next hypervisor.Disk) bool { return next.Is(disk.Path) }) {
			return false
		}
	}
	return true
}

// letRunMeanwhile resumes the guest of an operation that has failed at something
// and will try it again: when the host's root file system is full neither the
// definition nor the record can be written, and that may last for days.
func (g *Guests) letRunMeanwhile(ctx context.Context, op vps.Operation) {
	_, ours := g.suspended.Load(op.VPS)
	owed, err := g.store.Owes(ctx, op.VPS, store.DebtResume)
	if !ours && (err != nil || !owed) {
		return
	}
	if err := g.Resume(ctx, op.VPS); err != nil {
		g.logger.Warn("guest may stand still while an operation waits", op.LogAttr(), "error", err)
	}
}

// Release keeps what an operation still owes its guest when its run is over: it
// was parked, or the daemon is about to stop.
func (g *Guests) Release(ctx context.Context, id string) {
	ctx, cancel := evenWhenStopping(ctx)
	defer cancel()
	owed, err := g.store.Owes(ctx, id, store.DebtResume)
	if err == nil && !owed {
		return
	}
	if err := g.Resume(ctx, id); err != nil {
		g.logger.Error("guest stands still", vps.LogEvent(vps.LogGuestStandsStill),
			g.inventory.LogAttr(id), "error", err)
		g.retry(store.Debt{VPS: id, Kind: store.DebtResume}, g.keepResumeOfParked)
	}
}

// keepResumeOfParked keeps the promise to resume, if it is owed still. It leaves a guest
// to its operation while that is worked on: it may be suspended for the next pivot.
func (g *Guests) keepResumeOfParked(ctx context.Context, owed store.Debt) error {
	id := owed.VPS
	return g.with(ctx, id, func() error {
		op, err := g.store.ActiveOperation(ctx, id)
		if err == nil && op.Status != vps.StatusNeedsAttention {
			return nil
		}
		_, ours := g.suspended.Load(id)
		if still, err := g.store.Owes(ctx, id, store.DebtResume); err == nil && !still && !ours {
			return nil
		}
		return g.resumeNow(ctx, id)
	})
}

// thawed settles the debt.
func (g *Guests) thawed(ctx context.Context, id string) error {
	return g.store.Write(ctx, func(tx *store.Tx) error { return tx.Settle(ctx, id, store.DebtThaw) })
}

// retry tries in the background to keep a promise, until that works or the daemon stops.
func (g *Guests) retry(owed store.Debt, keep func(context.Context, store.Debt) error) {
	g.group.Go(func(ctx context.Context) {
		wait := 100 * time.Millisecond
		for try := 1; ; try, wait = try+1, min(2*wait, 2*time.Second) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			err := keep(ctx, owed)
			if err == nil {
				return
			}
			if try&(try-1) == 0 { // ever more rarely: an agent may stay away for days
				g.logger.Warn(
					"a promise to a guest is tried again", vps.LogEvent(vps.LogGuestStandsStill), "promise", owed.Kind,
					g.inventory.LogAttr(owed.VPS), "tries", try, "error", err,
				)
			}
		}
	})
}

// Suspend stops the guest of an operation; that it will run again is promised first.
func (g *Guests) Suspend(ctx context.Context, r *operation.Run) error {
	return g.with(ctx, r.Op.VPS, func() error {
		owed := store.Debt{VPS: r.Op.VPS, Kind: store.DebtResume, Since: g.store.Now()}
		if err := r.Record(ctx, func(tx *store.Tx) error { return tx.Owe(ctx, owed) }); err != nil {
			return err
		}
		g.suspended.Store(r.Op.VPS, true)
		return g.host.Suspend(ctx, r.Op.VPS)
	})
}

// KeepAll thaws and resumes every guest that is owed it, all at once: an
// agent that does not answer must not keep another guest waiting. A guest that stands
// still for a pivot is left to its operation, which knows when it may run.
func (g *Guests) KeepAll(ctx context.Context, ops []vps.Operation) error {
	owed, err := g.store.Debts(ctx)
	if err != nil {
		return err
	}
	pivoting := map[string]bool{}
	for _, op := range ops {
		pivoting[op.VPS] = g.operations.Of(op.Kind).StopsGuest && op.Status != vps.StatusNeedsAttention
	}
	var kept sync.WaitGroup
	for _, p := range owed {
		keep := g.SettleThaw
		if p.Kind == store.DebtResume {
			if pivoting[p.VPS] {
				continue
			}
			keep = g.keepResumeOfParked
		}
		kept.Go(func() {
			if keep(ctx, p) != nil {
				g.retry(p, keep)
			}
		})
	}
	kept.Wait()
	return nil
}

// Users counts who makes a guest wait or go on, or waits for that.
func (g *Guests) Users(id string) int { return g.locks.Users(id) }

// KeepOwed keeps what is promised to a guest on which no operation works.
func (g *Guests) KeepOwed(ctx context.Context, id string) error {
	owed, err := g.store.Debts(ctx)
	if err != nil {
		return err
	}
	for _, p := range owed {
		switch {
		case p.VPS != id:
		case p.Kind == store.DebtThaw:
			err = errors.Join(err, g.SettleThaw(ctx, p))
		default:
			err = errors.Join(err, g.keepResumeOfParked(ctx, p))
		}
	}
	return err
}
