package notify

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/mail"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// Policy says when customers are told.
type Policy struct {
	// Grace is how long a snapshot outlives its option.
	Grace time.Duration
	// RemindBefore is how long before an option ends, or its snapshot is removed, the
	// customer is told by e-mail.
	RemindBefore time.Duration
}

// Mails writes the customers' e-mails into the outbox.
type Mails struct {
	store     *store.Store
	inventory *inventory.Inventory
	kinds     *operation.Kinds
	on        bool
	policy    func() Policy
}

// NewMails makes the writer of e-mails; on reports whether anything can send them. It
// tells of every operation that ends.
func NewMails(db *store.Store, inv *inventory.Inventory, ops *operation.Operations, on bool, policy func() Policy) *Mails {
	m := &Mails{store: db, inventory: inv, kinds: ops.Kinds, on: on, policy: policy}
	ops.OnChanged(m.operation)
	return m
}

// On reports whether e-mails are sent at all.
func (m *Mails) On() bool { return m.on }

// post puts a letter to the contact of an option into the outbox, within the
// transaction of what it reports. While there is no mail, or no contact, it does
// nothing.
func (m *Mails) post(ctx context.Context, tx *store.Tx, o vps.Option, l mail.Letter) error {
	if !m.On() || o.ContactEmail == "" {
		return nil
	}
	l.At, l.To, l.Locale, l.VPS = m.store.Now(), o.ContactEmail, o.Locale, m.inventory.Name(o.VPS)
	payload, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("cannot record the mail %s: %w", l.Kind, err)
	}
	// The VPS is the target: what is refused for one is then told of each.
	return tx.AddDelivery(
		ctx, vps.Delivery{Kind: vps.DeliveryMail, Target: o.VPS, VPS: o.VPS, Payload: payload, CreatedAt: l.At},
	)
}

// Activated confirms an order. Who reads in it that the option ends soon need
// not be reminded of that end.
func (m *Mails) Activated(ctx context.Context, tx *store.Tx, o vps.Option) error {
	if !m.On() || o.ContactEmail == "" {
		return nil
	}
	if o.EndsAt != nil && m.remindNow(*o.EndsAt) {
		if _, err := tx.AddReminder(ctx, o.ID, string(mail.OptionEnding), *o.EndsAt); err != nil {
			return err
		}
	}
	return m.post(
		ctx, tx, o, mail.Letter{Kind: mail.OptionActivated, OrderRef: o.OrderRef, Price: &o.Price, EndsAt: o.EndsAt},
	)
}

// operation tells of an operation that has ended. Of a deletion that fails
// after the end of the option nothing is told: nobody asked for it, and it is
// tried again until it succeeds.
func (m *Mails) operation(ctx context.Context, tx *store.Tx, op vps.Operation) error {
	l := mail.Letter{Operation: op.Kind, Status: op.Status, Way: op.Actor.Way, Result: op.Result}
	switch op.Status {
	case vps.StatusSucceeded:
		l.Kind = m.kinds.Of(op.Kind).DoneMail
	case vps.StatusFailed, vps.StatusNeedsAttention:
		l.Kind = mail.OperationFailed
		if op.Error != nil {
			l.Code = op.Error.Code
		}
		if op.Actor.Way == vps.WayExpiry {
			return nil
		}
	}
	if l.Kind == "" || !m.On() {
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
	return m.post(ctx, tx, o, l.About(snap))
}

// reminder is a letter that is due some time before something ends.
type reminder struct {
	mail.Kind
	end time.Time
}

// reminderOf is what is to be told about an option now; nil: nothing.
func (m *Mails) reminderOf(o vps.Option) *reminder {
	switch {
	case o.State == vps.OptionActive && o.EndsAt != nil && m.remindNow(*o.EndsAt):
		return &reminder{mail.OptionEnding, *o.EndsAt}
	case o.State == vps.OptionGrace && o.GraceUntil != nil && m.remindNow(*o.GraceUntil):
		return &reminder{mail.SnapshotRemoval, *o.GraceUntil}
	}
	return nil
}

// remindNow reports whether an end is near, and not over.
func (m *Mails) remindNow(end time.Time) bool {
	now := m.store.Now()
	return now.Before(end) && !now.Before(end.Add(-m.policy().RemindBefore))
}

// Remind tells a customer, once for each end, what is about to end.
func (m *Mails) Remind(ctx context.Context, o vps.Option) error {
	due := m.reminderOf(o)
	if due == nil || o.ContactEmail == "" || !m.On() {
		return nil
	}
	if told, err := m.store.Reminded(ctx, o.ID, string(due.Kind), due.end); told || err != nil {
		return err
	}
	return m.store.Write(ctx, func(tx *store.Tx) error {
		now, err := tx.OptionByID(ctx, o.ID)
		if err != nil {
			return err
		}
		due := m.reminderOf(now)
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
			kept := due.end.Add(m.policy().Grace)
			l.KeptUntil = &kept
		}
		return m.post(ctx, tx, now, l.About(snap))
	})
}
