package daemon

import (
	"context"
	"maps"
	"os"
	"time"

	"vpssnapd/daemon/access"
	"vpssnapd/daemon/adoption"
	"vpssnapd/daemon/doctor"
	"vpssnapd/daemon/download"
	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/guest"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/integrity"
	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/journal"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/notify"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/option"
	"vpssnapd/daemon/overview"
	"vpssnapd/daemon/snapshot"
	"vpssnapd/daemon/space"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vouch"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/webhook"
	"vpssnapd/daemon/work"
)

// assemble makes every capability of what it needs, from the ground up; nothing works
// yet. Who is told of operations and of the host's events is told in this order.
func assemble(ctx context.Context, c Config, db *store.Store, lock *os.File) (d *Daemon, err error) {
	host, log, group := failpoint.Host(c.Host), c.Logger, work.NewGroup()
	d = &Daemon{logger: log, lock: lock, store: db, Answers: db, group: group, Metrics: overview.NewMetrics()}
	d.settings.Store(&c.Settings)
	if d.inventory, err = inventory.New(ctx, host, db, group, log); err != nil {
		return nil, err
	}
	if d.Journal, err = journal.New(ctx, db, d.inventory, log); err != nil {
		return nil, err
	}
	inv, images := d.inventory, image.New(host, d.inventory, db, d.imagePolicy, log)
	deadline := func() { d.Options.Changed() }

	d.Operations = operation.NewOperations(db, inv, c.Hold, log)
	d.space = space.New(host, inv, db, d.spacePolicy, log)
	d.guests = guest.New(host, inv, db, d.Operations, group, d.guestPolicy, log, d.Metrics.Paused)
	whole := integrity.New(host, inv, db, log)
	d.merger = merge.New(host, inv, db, d.Operations, d.guests, whole, c.StateDir, d.mergePolicy, log)
	d.Downloads = download.New(host, inv, db, whole, images, d.Operations.Kinds, group, d.downloadPolicy, log)
	d.Snapshots = snapshot.New(snapshot.Parts{
		Host: host, Inventory: inv, Store: db, Operations: d.Operations, Images: images, Space: d.space,
		Guests: d.guests, Integrity: whole, Merger: d.merger, Readers: d.Downloads, StateDir: c.StateDir,
		Policy: d.snapshotPolicy, Logger: log, OnDiscarded: deadline, OnFrozen: d.Metrics.Froze,
	})
	d.Operations.Add(c.Kinds...)
	cutOff := func(vpsID, why string) { d.Downloads.CutOff(vpsID, why) }
	d.adopter = adoption.New(host, inv, db, d.Operations, whole, images, cutOff, deadline, group, log)
	d.Vouchers = vouch.New(host, db, d.Operations, images, whole, log)
	d.Doctor = doctor.New(
		host, inv, db, images, d.guests, whole, d.adopter, d.Vouchers, d.Operations.CanTakeBack, c.Judge, log,
	)

	c.Webhook.Version = c.Version
	d.Webhooks = webhook.NewWebhooks(db, webhook.New(c.Webhook), c.WebhookBody, log)
	senders := map[vps.DeliveryKind]notify.Sender{vps.DeliveryWebhook: d.Webhooks}
	maps.Copy(senders, c.Senders)
	d.outbox = notify.NewOutbox(db, group, senders, d.Metrics.Tried, log)
	mails := notify.NewMails(db, inv, d.Operations, c.Senders[vps.DeliveryMail] != nil, d.notifyPolicy)
	d.Options = option.New(db, inv, d.Snapshots, d.Operations.Interrupt, mails, group, d.optionPolicy, log)
	d.Operations.OnOver(func(vps.Operation) { deadline() })
	inv.Subscribe(inventory.Watcher{Connected: func(context.Context) { deadline() }})

	d.Tokens = access.New(db, inv, log)
	d.Tokens.OnRevoked(d.Downloads.CutRevoked)
	d.Overview = overview.New(host, inv, db, d.Operations, d.Snapshots, images, d.space, c.Version)
	d.Metrics.Count(overview.State{
		Store: db, Operations: d.Operations, Merger: d.merger, Downloads: d.Downloads, Journal: d.Journal,
		Group: group, StateDir: c.StateDir, Version: c.Version, Logger: log,
	})
	return d, nil
}

// lookEvery is how often the host is looked at where no event tells of a change.
const lookEvery = 30 * time.Second

// watchHost looks at the host now and then.
func (d *Daemon) watchHost(ctx context.Context) {
	for {
		if d.inventory.Ready() {
			d.space.Look(ctx)
			d.inventory.AskSilent(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookEvery):
		}
	}
}

const (
	// pruneEvery is how often what is over for long is removed from the record.
	pruneEvery = time.Hour
	// pruneFirst is how long after the start that is done: recovery has more urgent
	// things to write.
	pruneFirst = 5 * time.Minute
)

// prune removes what the settings do not keep.
func (d *Daemon) prune(ctx context.Context) {
	for wait := pruneFirst; ; wait = pruneEvery {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if err := d.Prune(ctx); err != nil && ctx.Err() == nil {
			d.logger.Warn("what is over was not removed from the record", "error", err)
		}
	}
}

// Prune removes what is over for longer than the settings keep it, unless the host is not
// known now: the names of VPSes that are here stay.
func (d *Daemon) Prune(ctx context.Context) error {
	if !d.inventory.Ready() {
		return nil
	}
	if err := d.inventory.NotePresent(ctx); err != nil {
		return err
	}
	if err := d.store.Prune(ctx, d.settings.Load().Retention, d.store.Now()); err != nil {
		return err
	}
	return d.inventory.ForgetNames(ctx)
}
