package daemon

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Offers returns the options on sale on this host.
func (d *Daemon) Offers() []vps.Offer { return []vps.Offer{d.present().Offer} }

// Option returns the open option of a VPS. Codes: not_found.
func (d *Daemon) Option(ctx context.Context, ref string) (vps.Option, error) {
	id, err := d.idOf(ctx, ref)
	if err != nil {
		return vps.Option{}, err
	}
	o, err := d.store.OpenOption(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return o, vps.Errorf(vps.CodeNotFound, "the VPS has no snapshot option")
	}
	return o, err
}

// OptionHistory returns one page of what has happened to the options of a VPS.
func (d *Daemon) OptionHistory(ctx context.Context, q vps.OptionQuery) (vps.OptionHistory, error) {
	q.Limit = pageLimit(q.Limit)
	return d.store.OptionHistory(ctx, q)
}

// PutOption orders or activates the option of a VPS, or changes its end. The
// same order may be sent again without harm; an option that has ended is renewed
// by an order with a new reference or a later end.
//
// Codes: not_found, invalid, vps_changed, precondition_failed, hypervisor_unavailable.
func (d *Daemon) PutOption(ctx context.Context, ref string, order vps.OptionOrder, actor vps.Actor) (vps.Option, error) {
	if err := order.Check(); err != nil {
		return vps.Option{}, err
	}
	reading, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	dom, err := d.resolve(reading, ref)
	if err != nil {
		return vps.Option{}, err
	}
	if dom.MigratedAway {
		return vps.Option{}, errMigrated(dom)
	}
	var option vps.Option
	var kept string
	err = d.store.Write(ctx, func(tx *store.Tx) error {
		// It may have been defined a moment ago: what is told of its option names it.
		if err := tx.SawVPS(ctx, store.KnownVPS{ID: dom.ID, Name: dom.Name, LastSeen: d.now()}); err != nil {
			return err
		}
		if option, err = d.putOption(ctx, tx, dom, order, actor); err != nil {
			return err
		}
		if option.State == vps.OptionActive {
			if kept, err = keepFromExpiry(ctx, tx, dom.ID); err != nil {
				return err
			}
		}
		return d.remember(ctx, tx, option)
	})
	if err == nil {
		d.runner.Interrupt(kept)
	}
	d.deadlinesChanged()
	return option, err
}

// putOption does what an order asks for, and returns the option as it then is.
func (d *Daemon) putOption(ctx context.Context, tx *store.Tx, dom hypervisor.Domain, order vps.OptionOrder, actor vps.Actor) (vps.Option, error) {
	have, err := optionFor(ctx, tx, dom.ID, order)
	if err != nil {
		return have, err
	}
	if err := checkOptionMatch(ctx, have); err != nil || settled(have, order) {
		return have, err
	}
	if err := d.checkEnd(order); err != nil {
		return have, err
	}
	option := d.ordered(have, dom.ID, order)
	if option == have {
		return have, nil
	}
	if err := tx.SaveOption(ctx, option, actor, noteOf(have, option)); err != nil {
		return have, err
	}
	if option.State == vps.OptionActive && have.State != vps.OptionActive {
		if err := d.postActivated(ctx, tx, option); err != nil {
			return have, err
		}
	}
	return option, d.say(ctx, tx, vps.Message{VPS: dom.ID, VPSName: dom.Name, Kind: vps.MessageOptionChanged, Actor: actor,
		Phrase: vps.Phrase("option_" + string(option.State))})
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

// settled says that an order changes nothing: it was carried out before and the
// option has ended since, or it asks for less than what there is.
func settled(have vps.Option, order vps.OptionOrder) bool {
	switch have.State {
	case vps.OptionReleased:
		return !leftWithVPS(have)
	case vps.OptionGrace:
		again := order.OrderRef != "" && order.OrderRef == have.OrderRef
		longer := order.EndsAt != nil && (have.EndsAt == nil || order.EndsAt.Truncate(time.Microsecond).After(*have.EndsAt))
		return order.State == vps.OptionOrdered || again && !longer
	case vps.OptionActive:
		return order.State == vps.OptionOrdered
	}
	return false
}

// leftWithVPS says that an option was released because its VPS went to another
// host: it was neither cancelled nor over. When the VPS is back, the order that
// had made it makes it active again.
func leftWithVPS(o vps.Option) bool {
	return o.State == vps.OptionReleased && o.CancelledAt == nil && o.GraceUntil == nil
}

// optionLeft is the option of a VPS that went to another host.
func (d *Daemon) optionLeft(o vps.Option) vps.Option {
	now := d.now()
	o.State, o.ReleasedAt, o.UpdatedAt = vps.OptionReleased, &now, now
	return o
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
	err = tx.RequestCancel(ctx, op.ID)
	if errors.Is(err, sql.ErrNoRows) { // too late
		return "", nil
	}
	return op.ID, err
}

func (d *Daemon) checkEnd(o vps.OptionOrder) error {
	switch {
	case o.EndsAt != nil && !o.EndsAt.After(d.now()):
		return vps.Errorf(vps.CodeInvalid, "ends_at lies in the past")
	case o.EndsAt != nil && o.EndsAt.UTC().Year() > 9999:
		return vps.Errorf(vps.CodeInvalid, "ends_at lies after the year 9999").WithRemedy("leave it out for an option that goes on until it is cancelled")
	}
	return nil
}

// ordered is the option as it is after an order: what the order does not say
// stays; the price as sold stays unless the order names another.
func (d *Daemon) ordered(have vps.Option, vpsID string, order vps.OptionOrder) vps.Option {
	now := d.now()
	o := have
	if o.ID == "" {
		o = vps.Option{ID: newOptionID(), VPS: vpsID, State: vps.OptionOrdered, Price: d.present().Offer.Price, OrderedAt: now, Locale: "en"}
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
func (d *Daemon) CancelOption(ctx context.Context, ref string, atOnce bool, actor vps.Actor) (vps.Option, error) {
	id, err := d.idOf(ctx, ref)
	if err != nil {
		return vps.Option{}, err
	}
	before, err := d.Option(ctx, id)
	if err != nil {
		return before, err
	}
	now := d.now()
	option, err := d.toGrace(ctx, id, actor, "cancelled", func(o *vps.Option) bool {
		if o.CancelledAt == nil {
			o.CancelledAt = &now
		}
		if until := now.Add(d.present().Grace); o.State != vps.OptionGrace || o.GraceUntil == nil {
			o.GraceUntil = &until
		}
		if atOnce && o.GraceUntil.After(now) {
			o.GraceUntil = &now
		}
		return true
	})
	if errors.Is(err, sql.ErrNoRows) { // another cancel has released it meanwhile
		if option, err = d.store.OptionByID(ctx, before.ID); err == nil {
			err = d.rememberAlone(ctx, option)
		}
		return option, err
	}
	if err != nil {
		return option, err
	}
	if atOnce {
		d.expiryTries.forget(id)
	}
	d.endGrace(onOurOwn(ctx), id)
	d.deadlinesChanged()
	return option, nil
}

// toGrace moves the open option of a VPS into its grace, until end says of it as
// it is now, within the transaction: it may have been renewed a moment ago. end
// returns false when it shall stay as it is. An option without a grace and without
// a snapshot is released in the same transaction. It returns the option as it then
// is; sql.ErrNoRows when there is none.
func (d *Daemon) toGrace(ctx context.Context, vpsID string, actor vps.Actor, note string, end func(o *vps.Option) bool) (o vps.Option, err error) {
	err = d.store.Write(ctx, func(tx *store.Tx) error {
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
			o.UpdatedAt = d.now()
			if err := d.saveGrace(ctx, tx, o, actor, note); err != nil {
				return err
			}
		}
		if err := d.release(ctx, tx, vpsID, false); err != nil {
			return err
		}
		if o, err = tx.OptionByID(ctx, o.ID); err != nil {
			return err
		}
		return d.remember(ctx, tx, o)
	})
	return o, err
}

func (d *Daemon) saveGrace(ctx context.Context, tx *store.Tx, o vps.Option, actor vps.Actor, note string) error {
	if err := tx.SaveOption(ctx, o, actor, note); err != nil {
		return err
	}
	return d.say(ctx, tx, vps.Message{VPS: o.VPS, Kind: vps.MessageOptionChanged, Actor: actor,
		Phrase: vps.PhraseOptionGrace, Params: map[string]string{"until": o.GraceUntil.Format(time.RFC3339)}})
}
