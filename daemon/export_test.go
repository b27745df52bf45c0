package daemon

import (
	"context"
	"time"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// LookAtSpace looks at the file systems once, as watchSpace does by itself.
func (d *Daemon) LookAtSpace(ctx context.Context) { d.lookAtSpace(ctx) }

// Waiting counts who has the lock of a VPS, or waits for it.
func (d *Daemon) Waiting(id string) int { return d.locks.users(id) }

// WithGuest counts who makes a guest stand still or go on, or waits for that.
func (d *Daemon) WithGuest(id string) int { return d.guests.users(id) }

func (k *keyedMutex) users(key string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l := k.held[key]; l != nil {
		return l.users
	}
	return 0
}

// KeepOldThaw is a try, late, to thaw a guest for a freeze of long ago.
func (d *Daemon) KeepOldThaw(ctx context.Context, id string, since time.Time) error {
	return d.keepThaw(ctx, store.Promise{VPS: id, Kind: store.PromiseThaw, Since: since})
}

// AllEventsRead says that listeners can have every event there is.
func (d *Daemon) AllEventsRead(ctx context.Context) bool {
	last, err := d.store.LastEvent(ctx)
	return err == nil && d.events.newest() == last
}

// LookAtOutbox looks at the outbox once, as runOutbox does by itself.
func (d *Daemon) LookAtOutbox(ctx context.Context) { d.startDeliveries(ctx) }

// AddDelivery records one alone, as is done with what it reports.
func (d *Daemon) AddDelivery(ctx context.Context, what vps.Delivery) error {
	what.CreatedAt = d.now()
	return d.store.Write(ctx, func(tx *store.Tx) error { return tx.AddDelivery(ctx, what) })
}

// Queues is what waits in the outbox.
func (d *Daemon) Queues(ctx context.Context) ([]vps.DeliveryQueue, error) {
	return d.store.DeliveryQueues(ctx)
}

// MeetDeadlines does what is due once, as watchDeadlines does by itself.
func (d *Daemon) MeetDeadlines(ctx context.Context) { d.meetDeadlines(ctx) }

// FindingsAboutUnfinished compares a snapshot with a record that was read before it came.
func (d *Daemon) FindingsAboutUnfinished(s vps.Snapshot) []vps.Finding {
	i := &inspection{d: d, id: s.VPS}
	i.checkUnfinished(s)
	return i.findings
}
