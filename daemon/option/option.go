// Package option keeps the options that customers order: how they begin, are renewed and
// end, and what happens to the snapshot when their time is over.
package option

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/notify"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/work"
	"vpssnapd/hypervisor"
)

// Policy says what is on sale, and what happens at its end.
type Policy struct {
	Offer vps.Offer
	// Grace is how long a snapshot outlives its option.
	Grace time.Duration
}

// Snapshots is what options need of the snapshots of a host.
type Snapshots interface {
	// DeleteIf begins to delete the snapshot of a VPS if guard is nil in the
	// transaction that records it.
	DeleteIf(
		ctx context.Context, vpsID string, actor vps.Actor, guard func(context.Context, *store.Tx) error,
	) (vps.Operation, error)
	// ExpireUndo ends the undo of a restore, if its time is over.
	ExpireUndo(ctx context.Context, vpsID string) error
}

// Options are those of one host.
type Options struct {
	store     *store.Store
	inventory *inventory.Inventory
	snapshots Snapshots
	interrupt func(operation string)
	mails     *notify.Mails
	group     *work.Group
	policy    func() Policy
	logger    *slog.Logger
	deadlines work.Signal // an option or an undo got another end
	tries     lastTries
}

// New makes the keeper of options. interrupt ends the present step of an operation that
// was asked to stop.
func New(
	db *store.Store, inv *inventory.Inventory, snapshots Snapshots, interrupt func(operation string),
	mails *notify.Mails, group *work.Group, policy func() Policy, logger *slog.Logger,
) *Options {
	return &Options{
		store:     db,
		inventory: inv,
		snapshots: snapshots,
		interrupt: interrupt,
		mails:     mails,
		group:     group,
		policy:    policy,
		logger:    logger,
		deadlines: work.NewSignal(),
	}
}

// Offers returns the options on sale on this host.
func (opts *Options) Offers() []vps.Offer { return []vps.Offer{opts.policy().Offer} }

// Option returns the open option of a VPS. Codes: not_found.
func (opts *Options) Option(ctx context.Context, ref string) (vps.Option, error) {
	id, err := opts.inventory.IDOf(ctx, ref)
	if err != nil {
		return vps.Option{}, err
	}
	o, err := opts.store.OpenOption(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return o, vps.Errorf(vps.CodeNotFound, "the VPS has no snapshot option")
	}
	return o, err
}

// OptionHistory returns one page of what has happened to the options of a VPS.
func (opts *Options) OptionHistory(ctx context.Context, q vps.OptionQuery) (vps.OptionHistory, error) {
	q.Limit = vps.PageLimit(q.Limit)
	return opts.store.OptionHistory(ctx, q)
}

// PutOption orders or activates the option of a VPS, or changes its end. The
// same order may be sent again without harm; an option that has ended is renewed
// by an order with a new reference or a later end.
//
// Codes: not_found, invalid, vps_changed, precondition_failed, hypervisor_unavailable.
func (opts *Options) PutOption(ctx context.Context, ref string, order vps.OptionOrder, actor vps.Actor) (vps.Option, error) {
	if err := order.Check(); err != nil {
		return vps.Option{}, err
	}
	reading, cancel := context.WithTimeout(ctx, inventory.AnswerWithin)
	defer cancel()
	dom, err := opts.inventory.Resolve(reading, ref)
	if err != nil {
		return vps.Option{}, err
	}
	if dom.MigratedAway {
		return vps.Option{}, fault.Migrated(dom)
	}
	var option vps.Option
	var kept string
	// One transaction for order, history, mail and answer: a repeated call finds all of
	// it or nothing.
	err = opts.store.Write(ctx, func(tx *store.Tx) error {
		// It may have been defined a moment ago: what is told of its option names it.
		if err := tx.SawVPS(ctx, store.KnownVPS{ID: dom.ID, Name: dom.Name, LastSeen: opts.store.Now()}); err != nil {
			return err
		}
		if option, err = opts.putOption(ctx, tx, dom, order, actor); err != nil {
			return err
		}
		if option.State == vps.OptionActive {
			if kept, err = keepFromExpiry(ctx, tx, dom.ID); err != nil {
				return err
			}
		}
		return tx.KeepAnswer(ctx, option)
	})
	if err == nil {
		// After the commit: the step that stops reads the request from the record.
		opts.interrupt(kept)
	}
	opts.Changed()
	return option, err
}

// putOption does what an order asks for, and returns the option as it then is.
func (opts *Options) putOption(
	ctx context.Context, tx *store.Tx, dom hypervisor.Domain, order vps.OptionOrder, actor vps.Actor,
) (vps.Option, error) {
	// Within the transaction, so that two orders at once see each other.
	have, err := optionFor(ctx, tx, dom.ID, order)
	if err != nil {
		return have, err
	}
	if err := checkOptionMatch(ctx, have); err != nil || settled(have, order) {
		return have, err
	}
	if err := opts.checkEnd(order); err != nil {
		return have, err
	}
	option := opts.ordered(have, dom.ID, order)
	if option == have {
		return have, nil
	}
	if err := tx.SaveOption(ctx, option, actor, noteOf(have, option)); err != nil {
		return have, err
	}
	if option.State == vps.OptionActive && have.State != vps.OptionActive {
		if err := opts.mails.Activated(ctx, tx, option); err != nil {
			return have, err
		}
	}
	return option, tx.AddMessage(
		ctx,
		vps.Message{VPS: dom.ID, VPSName: dom.Name, Kind: vps.MessageOptionChanged, Actor: actor,
			Phrase: vps.Phrase("option_" + string(option.State))},
	)
}

// checkOptionMatch compares the option with the one that the caller has seen. One
// that is released is not there any more, as far as the caller can see.
func checkOptionMatch(ctx context.Context, have vps.Option) error {
	version := ""
	if have.ID != "" && have.State != vps.OptionReleased {
		version = have.Version()
	}
	return vps.CallOf(ctx).CheckMatch(version)
}

// optionFor is the option that an order is about: the open one, else the one
// that this very order had made before, else none.
func optionFor(ctx context.Context, tx *store.Tx, vpsID string, order vps.OptionOrder) (vps.Option, error) {
	have, err := tx.OpenOption(ctx, vpsID)
	if errors.Is(err, sql.ErrNoRows) && order.OrderRef != "" {
		have, err = tx.OptionByOrder(ctx, vpsID, order.OrderRef)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return vps.Option{}, nil
	}
	return have, err
}

// settled reports whether an order changes nothing: it was carried out before and the
// option has ended since, or it asks for less than what there is.
func settled(have vps.Option, order vps.OptionOrder) bool {
	switch have.State {
	case vps.OptionReleased:
		return !have.LeftWithVPS()
	case vps.OptionGrace:
		again := order.OrderRef != "" && order.OrderRef == have.OrderRef
		longer := order.EndsAt != nil && (have.EndsAt == nil || order.EndsAt.Truncate(time.Microsecond).After(*have.EndsAt))
		return order.State == vps.OptionOrdered || again && !longer
	case vps.OptionActive:
		return order.State == vps.OptionOrdered
	}
	return false
}

// noteOf is what an option's history says of a change. The contact's address is
// not repeated: it can be changed, and the history cannot.
func noteOf(before, after vps.Option) string {
	notes := []string{}
	switch {
	case before.ID == "":
		notes = append(notes, "ordered")
	case before.State != after.State:
		notes = append(notes, string(before.State)+" → "+string(after.State))
	}
	if after.OrderRef != before.OrderRef {
		notes = append(notes, "order_ref "+after.OrderRef)
	}
	if after.Price != before.Price {
		notes = append(notes, fmt.Sprintf("price %d %s %s", after.Price.Amount, after.Price.Currency, after.Price.Period))
	}
	switch after.EndsAt {
	case before.EndsAt:
	case nil:
		notes = append(notes, "ends_at none")
	default:
		notes = append(notes, "ends_at "+after.EndsAt.Format(time.RFC3339))
	}
	if after.ContactEmail != before.ContactEmail {
		notes = append(notes, "contact_email changed")
	}
	if after.Locale != before.Locale {
		notes = append(notes, "locale "+after.Locale)
	}
	return strings.Join(notes, "; ")
}

// keepFromExpiry asks the deletion that the end of the option has begun to stop,
// while that still waits for its turn, in the transaction that renews the option:
// a call that comes again with its key is not carried out again. It returns the
// deletion's id, "" when there is none that can be stopped.
func keepFromExpiry(ctx context.Context, tx *store.Tx, vpsID string) (string, error) {
	op, err := tx.ActiveOperation(ctx, vpsID)
	if errors.Is(err, sql.ErrNoRows) || err == nil && (op.Kind != vps.KindDelete || op.Actor.Way != vps.WayExpiry) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	// Refused once the deletion is irrevocable: then the new option begins without a
	// snapshot.
	err = tx.RequestCancel(ctx, op.ID)
	if errors.Is(err, sql.ErrNoRows) { // too late
		return "", nil
	}
	return op.ID, err
}

// checkEnd refuses an end that lies in the past, or so far off that RFC 3339 has no digits
// for it.
func (opts *Options) checkEnd(o vps.OptionOrder) error {
	switch {
	case o.EndsAt != nil && !o.EndsAt.After(opts.store.Now()):
		return vps.Errorf(vps.CodeInvalid, "ends_at lies in the past")
	case o.EndsAt != nil && o.EndsAt.UTC().Year() > 9999:
		return vps.Errorf(vps.CodeInvalid, "ends_at lies after the year 9999").
			WithRemedy("leave it out for an option that goes on until it is cancelled")
	}
	return nil
}

// ordered is the option as it is after an order: what the order does not say
// stays; the price as sold stays unless the order names another.
func (opts *Options) ordered(have vps.Option, vpsID string, order vps.OptionOrder) vps.Option {
	now := opts.store.Now()
	o := have
	if o.ID == "" {
		o = vps.Option{
			ID:        vps.NewOptionID(),
			VPS:       vpsID,
			State:     vps.OptionOrdered,
			Price:     opts.policy().Offer.Price,
			OrderedAt: now,
			Locale:    "en",
		}
	}
	if o.State == vps.OptionReleased {
		o.State, o.ReleasedAt = vps.OptionOrdered, nil
	}
	if order.OrderRef != "" {
		o.OrderRef = order.OrderRef
	}
	if order.Price != nil {
		o.Price = *order.Price
	}
	if order.ContactEmail != "" {
		o.ContactEmail = order.ContactEmail
	}
	if order.Locale != "" {
		o.Locale = order.Locale
	}
	if order.EndsAt != nil {
		if end := order.EndsAt.UTC().Truncate(time.Microsecond); o.EndsAt == nil || !o.EndsAt.Equal(end) {
			o.EndsAt = &end
		}
	}
	if order.State == vps.OptionActive && o.State != vps.OptionActive {
		// The old end lies in the past; without a new one the option goes on until it is
		// cancelled.
		if o.State == vps.OptionGrace && order.EndsAt == nil {
			o.EndsAt = nil
		}
		o.State = vps.OptionActive
		o.CancelledAt, o.GraceUntil, o.ReleasedAt = nil, nil, nil
		if o.ActivatedAt == nil {
			o.ActivatedAt = &now
		}
	}
	if o != have {
		o.UpdatedAt = now
	}
	return o
}

// CancelOption ends the option: after the grace, or at once with now, the
// snapshot is deleted and the option released.
//
// Codes: not_found, precondition_failed, hypervisor_unavailable.
func (opts *Options) CancelOption(ctx context.Context, ref string, atOnce bool, actor vps.Actor) (vps.Option, error) {
	id, err := opts.inventory.IDNow(ctx, ref)
	if err != nil {
		return vps.Option{}, err
	}
	before, err := opts.Option(ctx, id)
	if err != nil {
		return before, err
	}
	now := opts.store.Now()
	option, err := opts.toGrace(ctx, id, actor, "cancelled", func(o *vps.Option) bool {
		if o.CancelledAt == nil {
			o.CancelledAt = &now
		}
		if until := now.Add(opts.policy().Grace); o.State != vps.OptionGrace || o.GraceUntil == nil {
			o.GraceUntil = &until
		}
		if atOnce && o.GraceUntil.After(now) {
			o.GraceUntil = &now
		}
		return true
	})
	if errors.Is(err, sql.ErrNoRows) { // another cancel has released it meanwhile
		if option, err = opts.store.OptionByID(ctx, before.ID); err == nil {
			err = opts.store.KeepAnswer(ctx, option)
		}
		return option, err
	}
	if err != nil {
		return option, err
	}
	if atOnce {
		opts.tries.forget(id)
	}
	// At once and not at the next look: the caller asked for "now" and sees the
	// operation begin.
	opts.endGrace(vps.WithCall(ctx, vps.Call{}), id)
	opts.Changed()
	return option, nil
}

// toGrace moves the open option of a VPS into its grace, until end says of it as
// it is now, within the transaction: it may have been renewed a moment ago. end
// returns false when it shall stay as it is. An option without a grace and without
// a snapshot is released in the same transaction. It returns the option as it then
// is; sql.ErrNoRows when there is none.
func (opts *Options) toGrace(
	ctx context.Context, vpsID string, actor vps.Actor, note string, end func(o *vps.Option) bool,
) (o vps.Option, err error) {
	err = opts.store.Write(ctx, func(tx *store.Tx) error {
		have, err := tx.OpenOption(ctx, vpsID)
		if err != nil {
			return err
		}
		if err := checkOptionMatch(ctx, have); err != nil {
			return err
		}
		o = have
		if !end(&o) {
			o = have
			return nil
		}
		if o.State = vps.OptionGrace; o != have {
			o.UpdatedAt = opts.store.Now()
			if err := opts.saveGrace(ctx, tx, o, actor, note); err != nil {
				return err
			}
		}
		if err := opts.release(ctx, tx, vpsID, false); err != nil {
			return err
		}
		if o, err = tx.OptionByID(ctx, o.ID); err != nil {
			return err
		}
		return tx.KeepAnswer(ctx, o)
	})
	return o, err
}

// saveGrace keeps the option and tells the customer, in the same transaction, until when
// the snapshot stays.
func (opts *Options) saveGrace(ctx context.Context, tx *store.Tx, o vps.Option, actor vps.Actor, note string) error {
	if err := tx.SaveOption(ctx, o, actor, note); err != nil {
		return err
	}
	return tx.AddMessage(ctx, vps.Message{VPS: o.VPS, Kind: vps.MessageOptionChanged, Actor: actor,
		Phrase: vps.PhraseOptionGrace, Params: map[string]string{"until": o.GraceUntil.Format(time.RFC3339)}})
}
