package daemon

import (
	"context"
	"time"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// LookAtSpace looks at the file systems once, as watchHost does by itself.
func (d *Daemon) LookAtSpace(ctx context.Context) { d.space.Look(ctx) }

// Waiting counts who has the lock of a VPS, or waits for it.
func (d *Daemon) Waiting(id string) int { return d.inventory.LockUsers(id) }

// WithGuest counts who makes a guest wait or go on, or waits for that.
func (d *Daemon) WithGuest(id string) int { return d.guests.Users(id) }

// KeepOldThaw is a try, late, to thaw a guest for a freeze of long ago.
func (d *Daemon) KeepOldThaw(ctx context.Context, id string, since time.Time) error {
	return d.guests.SettleThaw(ctx, store.Debt{VPS: id, Kind: store.DebtThaw, Since: since})
}

// LookAtOutbox looks at the outbox once, as it does by itself.
func (d *Daemon) LookAtOutbox(ctx context.Context) { d.outbox.Look(ctx) }

// AddDelivery records one alone, as is done with what it reports.
func (d *Daemon) AddDelivery(ctx context.Context, what vps.Delivery) error {
	what.CreatedAt = d.store.Now()
	return d.store.Write(ctx, func(tx *store.Tx) error { return tx.AddDelivery(ctx, what) })
}

// Queues is what waits in the outbox.
func (d *Daemon) Queues(ctx context.Context) ([]vps.DeliveryQueue, error) {
	return d.store.DeliveryQueues(ctx)
}
