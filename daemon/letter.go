package daemon

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"vpssnapd/daemon/mail"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// post puts a letter to the contact of an option into the outbox, within the
// transaction of what it reports. While there is no mail, or no contact, it does
// nothing.
func (d *Daemon) post(ctx context.Context, tx *store.Tx, o vps.Option, l mail.Letter) error {
	if !d.mailOn() || o.ContactEmail == "" {
		return nil
	}
	l.At, l.To, l.Locale, l.VPS = d.now(), o.ContactEmail, o.Locale, d.names.name(o.VPS)
	payload, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("cannot record the mail %s: %w", l.Kind, err)
	}
	// The VPS is the target: what is refused for one is then told of each.
	return tx.AddDelivery(ctx, vps.Delivery{Kind: vps.DeliveryMail, Target: o.VPS, VPS: o.VPS, Payload: payload, CreatedAt: l.At})
}

func (d *Daemon) mailOn() bool { return d.Senders[vps.DeliveryMail] != nil }

// postActivated confirms an order. Who reads in it that the option ends soon need
// not be reminded of that end.
func (d *Daemon) postActivated(ctx context.Context, tx *store.Tx, o vps.Option) error {
	if !d.mailOn() || o.ContactEmail == "" {
		return nil
	}
	if o.EndsAt != nil && d.remindNow(*o.EndsAt) {
		if _, err := tx.AddReminder(ctx, o.ID, string(mail.OptionEnding), *o.EndsAt); err != nil {
			return err
		}
	}
	return d.post(ctx, tx, o, mail.Letter{Kind: mail.OptionActivated, OrderRef: o.OrderRef, Price: &o.Price, EndsAt: o.EndsAt})
}

// doneLetters is what tells of each kind of operation that has succeeded.
var doneLetters = map[vps.Kind]mail.Kind{
	vps.KindTake:        mail.SnapshotTaken,
	vps.KindRestore:     mail.SnapshotRestored,
	vps.KindUndoRestore: mail.SnapshotRestored,
	vps.KindDelete:      mail.SnapshotDeleted,
}

// postOperation tells of an operation that has ended. Of a deletion that fails
// after the end of the option nothing is told: nobody asked for it, and it is
// tried again until it succeeds.
func (d *Daemon) postOperation(ctx context.Context, tx *store.Tx, op vps.Operation) error {
	l := mail.Letter{Operation: op.Kind, Status: op.Status, Way: op.Actor.Way, Result: op.Result}
	switch op.Status {
	case vps.StatusSucceeded:
		l.Kind = doneLetters[op.Kind]
	case vps.StatusFailed, vps.StatusNeedsAttention:
		l.Kind = mail.OperationFailed
		if op.Error != nil {
			l.Code = op.Error.Code
		}
		if op.Actor.Way == vps.WayExpiry {
			return nil
		}
	}
	if l.Kind == "" || !d.mailOn() {
		return nil
	}
	o, err := tx.OpenOption(ctx, op.VPS)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	snap, err := tx.Snapshot(ctx, op.SnapshotID)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	return d.post(ctx, tx, o, l.About(snap))
}

// reminder is a letter that is due some time before something ends.
type reminder struct {
	mail.Kind
	end time.Time
}

// reminderOf is what is to be told about an option now; nil: nothing.
func (d *Daemon) reminderOf(o vps.Option) *reminder {
	switch {
	case o.State == vps.OptionActive && o.EndsAt != nil && d.remindNow(*o.EndsAt):
		return &reminder{mail.OptionEnding, *o.EndsAt}
	case o.State == vps.OptionGrace && o.GraceUntil != nil && d.remindNow(*o.GraceUntil):
		return &reminder{mail.SnapshotRemoval, *o.GraceUntil}
	}
	return nil
}

// remindNow says that an end is near, and not over.
func (d *Daemon) remindNow(end time.Time) bool {
	now := d.now()
	return now.Before(end) && !now.Before(end.Add(-d.present().RemindBefore))
}

// remind tells a customer, once for each end, what is about to end.
func (d *Daemon) remind(ctx context.Context, o vps.Option) error {
	due := d.reminderOf(o)
	if due == nil || o.ContactEmail == "" || !d.mailOn() {
		return nil
	}
	if told, err := d.store.Reminded(ctx, o.ID, string(due.Kind), due.end); told || err != nil {
		return err
	}
	return d.store.Write(ctx, func(tx *store.Tx) error {
		now, err := tx.OptionByID(ctx, o.ID)
		if err != nil {
			return err
		}
		due := d.reminderOf(now)
		if due == nil {
			return nil // renewed meanwhile
		}
		snap, err := tx.CurrentSnapshot(ctx, now.VPS)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if due.Kind == mail.SnapshotRemoval && (snap.ID == "" || snap.State == vps.SnapshotDeleting) {
			return nil
		}
		if first, err := tx.AddReminder(ctx, now.ID, string(due.Kind), due.end); !first || err != nil {
			return err
		}
		l := mail.Letter{Kind: due.Kind, OrderRef: now.OrderRef, EndsAt: now.EndsAt, KeptUntil: now.GraceUntil}
		if due.Kind == mail.OptionEnding {
			kept := due.end.Add(d.present().Grace)
			l.KeptUntil = &kept
		}
		return d.post(ctx, tx, now, l.About(snap))
	})
}
