package daemon

import (
	"context"
	"sync"
	"time"

	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// connectWait is how long Open waits for libvirt before it goes on without.
const connectWait = 10 * time.Second

// recover takes up what an earlier process left behind. There is no separate
// "did we crash" path: every opening does this.
func (d *Daemon) recover(ctx context.Context) error {
	d.awaitHost(ctx)
	ops, err := d.store.ActiveOperations(ctx)
	if err != nil {
		return err
	}
	// Guests first: nobody may stand frozen or suspended longer than it takes to get here.
	if err := d.keepPromises(failpoint.Within(ctx, "daemon", "recover"), ops); err != nil {
		return err
	}
	if d.store.Outdated() {
		return d.parkOutdated(ctx, ops)
	}
	for _, op := range ops {
		if op.Status != vps.StatusNeedsAttention {
			d.Logger.Info("operation is taken up", op.LogAttr(), "kind", op.Kind, "step", op.Step)
			d.runner.Start(op)
		}
	}
	return nil
}

// parkOutdated leaves every operation of an old copy of the database to an
// operator: it has ended long since, and gone on with it would repoint or exchange
// the disks of a VPS that has another snapshot by now. No token of it is believed.
// All else is compared with the host, whose word counts.
func (d *Daemon) parkOutdated(ctx context.Context, ops []vps.Operation) error {
	d.Logger.Error("the database is older than what was recorded last: an old copy was put back, or it was lost. The host's word counts; see vpssnap doctor. All tokens were revoked; see vpssnap token create", vps.LogEvent(vps.LogDatabaseOld), "operations", len(ops))
	err := d.store.Write(failpoint.Within(ctx, "daemon", "recover"), func(tx *store.Tx) error {
		for _, op := range ops {
			if op.Status == vps.StatusNeedsAttention {
				continue
			}
			cause := vps.Errorf(vps.CodeVPSChanged, "the record of %s is an old copy: this operation has probably ended since, and going on with it could cost data", op.VPSName).
				WithRemedy("stop vpssnapd, move its database away (vpssnapd.db*), and make a new one from the host (vpssnapd rebuild); only if the database is the right one after all, resume the operation")
			if err := d.runner.Park(ctx, tx, op, cause); err != nil {
				return err
			}
		}
		// It would bring back those that were revoked since.
		if err := tx.RevokeAll(ctx); err != nil {
			return err
		}
		return d.say(ctx, tx, vps.Message{Kind: vps.MessageWarning, Actor: watchman, Phrase: vps.PhraseOldDatabase,
			Detail: "an old copy was put back, or it was lost; what the host says counts; all tokens were revoked: make new ones"})
	})
	if err != nil {
		return err
	}
	return d.store.Accept(ctx)
}

// awaitHost waits a while for the first picture of the host.
func (d *Daemon) awaitHost(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	for {
		changed := d.inventory.changes("")
		if d.inventory.ready() {
			return
		}
		select {
		case <-ctx.Done():
			d.Logger.Warn("libvirt does not answer; recovery goes on when it does")
			return
		case <-changed:
		}
	}
}

// keepPromises thaws and resumes every guest that is owed it, all at once: an
// agent that does not answer must not keep another guest waiting. A guest that stands
// still for a pivot is left to its operation, which knows when it may run.
func (d *Daemon) keepPromises(ctx context.Context, ops []vps.Operation) error {
	owed, err := d.store.Promises(ctx)
	if err != nil {
		return err
	}
	pivoting := map[string]bool{}
	for _, op := range ops {
		pivoting[op.VPS] = op.Kind == vps.KindDelete && op.Status != vps.StatusNeedsAttention
	}
	var kept sync.WaitGroup
	for _, p := range owed {
		keep := d.keepThaw
		if p.Kind == store.PromiseResume {
			if pivoting[p.VPS] {
				continue
			}
			keep = d.keepResumeOfParked
		}
		kept.Go(func() {
			if keep(ctx, p) != nil {
				d.insist(p, keep)
			}
		})
	}
	kept.Wait()
	return nil
}

// hostRead is how long one reading of the host may take.
const hostRead = 30 * time.Second

// watchHost keeps the inventory by the host's events.
func (d *Daemon) watchHost(ctx context.Context) {
	events := d.Config.Host.Events()
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			d.inventory.note(e)
			switch e.Kind {
			case hypervisor.EventConnected:
				d.background(d.readHost)
			case hypervisor.EventDisconnected:
				d.Logger.Warn("libvirt does not answer any more")
			case hypervisor.EventDefined:
				d.background(func(ctx context.Context) {
					d.definitionChanged(ctx, e.Domain)
					d.lookAt(ctx, e.Domain)
				})
			case hypervisor.EventDeparted:
				d.background(func(ctx context.Context) { d.definitionLeft(ctx, e.Domain) })
			case hypervisor.EventUndefined:
				d.background(func(ctx context.Context) {
					d.refreshDomain(ctx, e.Domain) // at once: its name may be given away
					d.lookAt(ctx, e.Domain)
				})
			case hypervisor.EventChanged, hypervisor.EventJob:
				d.follow(e)
			}
		}
	}
}

// readHost reads every domain, trying until it works or the connection is lost
// again: the next one begins anew. That libvirt did not answer in time is no loss.
func (d *Daemon) readHost(ctx context.Context) {
	for losses := d.inventory.timesLost(); ; {
		reading, cancel := context.WithTimeout(ctx, hostRead)
		err := d.inventory.reload(reading)
		cancel()
		if err == nil {
			d.Logger.Info("libvirt answers", "domains", len(d.inventory.all()))
			d.deadlinesChanged()
			d.reviewDefinitions(ctx)
			d.drift.wake()
			return
		}
		if ctx.Err() != nil || d.inventory.timesLost() != losses {
			return
		}
		d.Logger.Warn("domains not read", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// domainChanged reads a domain anew; one that was started may have come from
// another host.
func (d *Daemon) domainChanged(ctx context.Context, id string) {
	d.refreshSoon(ctx, id)
	if err := d.arrived(ctx, id); err != nil && ctx.Err() == nil {
		d.Logger.Error("snapshot that a VPS brought along not adopted", d.logAttr(id), "error", err)
	}
}

func (d *Daemon) refreshSoon(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, hostRead)
	defer cancel()
	lag := refreshLag
	if d.workedOn(ctx, id) {
		lag = refreshLagBeside
	}
	d.inventory.refreshSoon(ctx, id, lag)
}

// workedOn says whether an operation of that VPS is under way.
func (d *Daemon) workedOn(ctx context.Context, id string) bool {
	_, err := d.store.ActiveOperation(ctx, id)
	return err == nil
}

func (d *Daemon) refreshDomain(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, hostRead)
	defer cancel()
	d.inventory.refresh(ctx, id)
}
