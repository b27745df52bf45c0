package daemon

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// thawLimit is how long one thaw may take before it is tried again.
const thawLimit = 5 * time.Second

// withGuest does something that makes a guest stand still, or go on, together with what
// is recorded of it. Without it a late try to keep a promise would thaw the freeze of the
// next take, or take the promise of a guest that was just suspended off the record.
func (d *Daemon) withGuest(ctx context.Context, id string, do func() error) error {
	release, err := d.guests.acquire(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	return do()
}

// freezing is what came of a wish to freeze a guest.
type freezing struct {
	asked bool // the agent was asked, so a thaw is owed even after an error
	done  bool // the agent says that the file systems are frozen
	began time.Time
	note  string
}

// freeze asks the guest agent to freeze the file systems, as far as the policy
// and the VPS's state let it. The caller owes a thaw when it was asked, whatever
// came of it.
func (d *Daemon) freeze(ctx context.Context, dom hypervisor.Domain, policy vps.Quiesce) (freezing, error) {
	var f freezing
	owed, err := d.store.HasPromise(ctx, dom.ID, store.PromiseThaw)
	switch {
	case err != nil:
		return f, err
	case policy == vps.QuiesceNever || dom.State == hypervisor.Off:
		return f, nil
	case dom.State != hypervisor.Running:
		f.note = "not frozen, because the VPS was " + string(dom.State)
	case dom.Agent != hypervisor.AgentConnected:
		f.note = "not frozen, because no guest agent answers"
	case owed:
		// Its late answer would thaw the guest in the middle of this freeze.
		f.note = "not frozen, because the guest agent still owes an answer to an earlier thaw"
	default:
		return d.askToFreeze(ctx, dom, policy)
	}
	return f, required(policy, dom, f)
}

// askToFreeze promises the thaw on disk, and then freezes the guest.
func (d *Daemon) askToFreeze(ctx context.Context, dom hypervisor.Domain, policy vps.Quiesce) (freezing, error) {
	var f freezing
	err := d.withGuest(ctx, dom.ID, func() error {
		owed := store.Promise{VPS: dom.ID, Kind: store.PromiseThaw, Since: d.now()}
		if err := d.store.Write(ctx, func(tx *store.Tx) error { return tx.Promise(ctx, owed) }); err != nil {
			return err
		}
		f = freezing{asked: true, began: d.Now()}
		return d.Config.Host.Freeze(ctx, dom.ID, d.present().FreezeLimit)
	})
	if !f.asked {
		return f, err
	}
	if err == nil {
		f.done = true
		return f, nil
	}
	f.note = "not frozen, because the guest agent did not do it in time"
	d.Logger.Warn("guest not frozen", vps.LogAttr(dom.ID, dom.Name), "error", err)
	return f, required(policy, dom, f)
}

// required is the error of a freeze that did not come about where it had to.
func required(policy vps.Quiesce, dom hypervisor.Domain, f freezing) error {
	if policy != vps.QuiesceRequire {
		return nil
	}
	return vps.Errorf(vps.CodeGuestUnresponsive, "cannot take a consistent snapshot of %s: %s", dom.Name, f.note).
		WithRemedy("start qemu-guest-agent in the VPS, or allow a snapshot without it (quiesce prefer)")
}

// stopLimit is how long a daemon that is told to stop still works on a guest
// that stands still because of it.
const stopLimit = 8 * time.Second

// evenWhenStopping returns a context that outlives the daemon's stop for a while.
func evenWhenStopping(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
}

// thaw thaws a guest that we owe it to, also when the daemon is about to stop.
// When the agent does not answer at once it goes on in the background until it
// does: the agent is serial, so its answer proves that a late freeze was
// consumed too.
func (d *Daemon) thaw(ctx context.Context, dom hypervisor.Domain) {
	ctx, cancel := evenWhenStopping(ctx)
	defer cancel()
	owed, err := d.store.PromiseOf(ctx, dom.ID, store.PromiseThaw)
	if errors.Is(err, sql.ErrNoRows) {
		return
	}
	if d.keepThaw(ctx, owed) != nil {
		d.insist(owed, d.keepThaw)
	}
}

// keepThaw tries once to keep a promise to thaw, if it is owed still. One that came
// after it belongs to another freeze, which this try must not end.
func (d *Daemon) keepThaw(ctx context.Context, owed store.Promise) error {
	return d.withGuest(ctx, owed.VPS, func() error {
		now, err := d.store.PromiseOf(ctx, owed.VPS, store.PromiseThaw)
		if errors.Is(err, sql.ErrNoRows) || err == nil && !owed.Since.IsZero() && !now.Since.Equal(owed.Since) {
			return nil
		}
		return d.thawNow(ctx, owed.VPS)
	})
}

func (d *Daemon) thawNow(ctx context.Context, id string) error {
	// Before anything is read: the agent may answer where the rest of the VPS hangs.
	err := d.Config.Host.Thaw(ctx, id, thawLimit)
	if err == nil || errors.Is(err, hypervisor.ErrOff) || errors.Is(err, hypervisor.ErrNotFound) {
		return d.kept(ctx, id, store.PromiseThaw)
	}
	dom, e := d.inventory.domain(ctx, id)
	if errors.Is(e, hypervisor.ErrNotFound) || e == nil && (dom.State == hypervisor.Off || dom.Agent == hypervisor.AgentNone) {
		return d.kept(ctx, id, store.PromiseThaw)
	}
	return fmt.Errorf("guest not thawed: %w", err)
}

// keepResume tries once to keep the promise to resume.
func (d *Daemon) keepResume(ctx context.Context, id string) error {
	return d.withGuest(ctx, id, func() error { return d.resumeNow(ctx, id) })
}

func (d *Daemon) resumeNow(ctx context.Context, id string) error {
	err := d.mayRun(ctx, id)
	if err == nil {
		err = d.Config.Host.Resume(ctx, id)
	}
	if err == nil {
		d.pivoting.Delete(id) // from here on it runs by our leave
	}
	if err != nil && !errors.Is(err, hypervisor.ErrOff) && !errors.Is(err, hypervisor.ErrNotFound) {
		return fmt.Errorf("guest not resumed: %w", err)
	}
	d.suspended.Delete(id)
	return d.kept(ctx, id, store.PromiseResume)
}

// mayRun is nil when a guest that stands still for a pivot may run: something
// durable, the record or the definition, names every base that it will write to.
func (d *Daemon) mayRun(ctx context.Context, id string) error {
	dom, err := d.inventory.domain(ctx, id)
	if err != nil || !dom.Persistent {
		return err // without a definition there is no next boot to take the wrong disk
	}
	if nextBootIsTheSame(dom) {
		return nil // whether or not the record can be read
	}
	snap, err := d.store.CurrentSnapshot(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	var bases []hypervisor.DiskSource
	for _, disk := range snap.Disks {
		if now, ok := diskOf(dom.Disks, disk.Target); ok && now.Path == disk.Base && !disk.Pivoted {
			bases = append(bases, hypervisor.DiskSource{Target: disk.Target, Path: disk.Base, Format: disk.BaseFormat})
		}
	}
	if dom.State == hypervisor.Off || len(bases) == 0 {
		return nil
	}
	return d.Config.Host.PointDisks(ctx, id, bases)
}

// nextBootIsTheSame says that the next boot will use the images that QEMU uses now.
func nextBootIsTheSame(dom hypervisor.Domain) bool {
	for _, disk := range dom.Disks {
		if next, ok := diskOf(dom.PersistentDisks, disk.Target); !ok || next.Path != disk.Path {
			return false
		}
	}
	return true
}

// letRunMeanwhile resumes the guest of an operation that has failed at something
// and will try it again: when the host's root file system is full neither the
// definition nor the record can be written, and that may last for days.
func (d *Daemon) letRunMeanwhile(ctx context.Context, op vps.Operation) {
	_, ours := d.suspended.Load(op.VPS)
	owed, err := d.store.HasPromise(ctx, op.VPS, store.PromiseResume)
	if !ours && (err != nil || !owed) {
		return
	}
	if err := d.keepResume(ctx, op.VPS); err != nil {
		d.Logger.Warn("guest may stand still while an operation waits", op.LogAttr(), "error", err)
	}
}

// letGo keeps what an operation still owes its guest when its run is over: it
// was parked, or the daemon is about to stop.
func (d *Daemon) letGo(ctx context.Context, id string) {
	ctx, cancel := evenWhenStopping(ctx)
	defer cancel()
	owed, err := d.store.HasPromise(ctx, id, store.PromiseResume)
	if err == nil && !owed {
		return
	}
	if err := d.keepResume(ctx, id); err != nil {
		d.Logger.Error("guest stands still", vps.LogEvent(vps.LogGuestStandsStill), d.logAttr(id), "error", err)
		d.insist(store.Promise{VPS: id, Kind: store.PromiseResume}, d.keepResumeOfParked)
	}
}

// keepResumeOfParked keeps the promise to resume, if it is owed still. It leaves a guest
// to its operation while that is worked on: it may stand still for the next pivot.
func (d *Daemon) keepResumeOfParked(ctx context.Context, owed store.Promise) error {
	id := owed.VPS
	return d.withGuest(ctx, id, func() error {
		op, err := d.store.ActiveOperation(ctx, id)
		if err == nil && op.Status != vps.StatusNeedsAttention {
			return nil
		}
		_, ours := d.suspended.Load(id)
		if still, err := d.store.HasPromise(ctx, id, store.PromiseResume); err == nil && !still && !ours {
			return nil
		}
		return d.resumeNow(ctx, id)
	})
}

func (d *Daemon) kept(ctx context.Context, id string, kind store.PromiseKind) error {
	return d.store.Write(ctx, func(tx *store.Tx) error { return tx.Kept(ctx, id, kind) })
}

// insist tries in the background to keep a promise, until that works or the daemon stops.
func (d *Daemon) insist(owed store.Promise, keep func(context.Context, store.Promise) error) {
	d.background(func(ctx context.Context) {
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
				d.Logger.Warn("a promise to a guest is tried again", vps.LogEvent(vps.LogGuestStandsStill), "promise", owed.Kind, d.logAttr(owed.VPS), "tries", try, "error", err)
			}
		}
	})
}
