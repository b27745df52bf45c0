package daemon

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// Offers returns the options on sale on this host.
func (d *Daemon) Offers() []vps.Offer { return []vps.Offer{d.Offer} }

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

// PutOption orders or activates the option of a VPS, or changes its end. The
// same order may be sent again without harm.
//
// Codes: not_found, invalid, hypervisor_unavailable.
func (d *Daemon) PutOption(ctx context.Context, ref string, order vps.OptionOrder, actor vps.Actor) (vps.Option, error) {
	dom, err := d.resolve(ctx, ref)
	if err != nil {
		return vps.Option{}, err
	}
	if err := d.checkOrder(order); err != nil {
		return vps.Option{}, err
	}
	var option vps.Option
	err = d.store.Write(ctx, func(tx *store.Tx) error {
		have, err := tx.OpenOption(ctx, dom.ID)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		option = d.ordered(have, dom.ID, order)
		if option == have {
			return nil
		}
		note := "ordered"
		switch {
		case have.ID == "":
		case have.State != option.State:
			note = string(have.State) + " → " + string(option.State)
		default:
			note = "changed"
		}
		if err := tx.SaveOption(ctx, option, actor, note); err != nil {
			return err
		}
		return d.say(ctx, tx, vps.Message{VPS: dom.ID, VPSName: dom.Name, Kind: vps.MessageOptionChanged, Actor: actor,
			Text: "The snapshot option is " + string(option.State) + "."})
	})
	d.deadlinesChanged()
	return option, err
}

func (d *Daemon) checkOrder(o vps.OptionOrder) error {
	switch {
	case o.State != vps.OptionOrdered && o.State != vps.OptionActive:
		return vps.Errorf(vps.CodeInvalid, "an option can be put to ordered or active, not to %q", o.State).
			WithRemedy("cancel it with DELETE to end it")
	case o.EndsAt != nil && !o.EndsAt.After(d.now()):
		return vps.Errorf(vps.CodeInvalid, "ends_at lies in the past")
	case o.Price != nil && (o.Price.Amount < 0 || len(o.Price.Currency) != 3):
		return vps.Errorf(vps.CodeInvalid, "a price needs an amount of 0 or more in minor units and an ISO 4217 currency")
	}
	return nil
}

// ordered is the option as it is after an order: what the order does not say
// stays; the price as sold stays unless the order names another.
func (d *Daemon) ordered(have vps.Option, vpsID string, order vps.OptionOrder) vps.Option {
	now := d.now()
	o := have
	if o.ID == "" {
		o = vps.Option{ID: newOptionID(), VPS: vpsID, State: vps.OptionOrdered, Price: d.Offer.Price, OrderedAt: now, Locale: "en"}
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
	if order.EndsAt != nil && (o.EndsAt == nil || !o.EndsAt.Equal(*order.EndsAt)) {
		end := order.EndsAt.UTC().Truncate(time.Microsecond)
		o.EndsAt = &end
	}
	if order.State == vps.OptionActive && o.State != vps.OptionActive {
		if o.State == vps.OptionGrace && order.EndsAt == nil {
			o.EndsAt = nil
		}
		o.State = vps.OptionActive
		o.CancelledAt, o.GraceUntil = nil, nil
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
// Codes: not_found, hypervisor_unavailable.
func (d *Daemon) CancelOption(ctx context.Context, ref string, atOnce bool, actor vps.Actor) (vps.Option, error) {
	id, err := d.idOf(ctx, ref)
	if err != nil {
		return vps.Option{}, err
	}
	option, err := d.Option(ctx, id)
	if err != nil {
		return option, err
	}
	now := d.now()
	if option.CancelledAt == nil {
		option.CancelledAt = &now
	}
	until := now.Add(d.Grace)
	if option.State == vps.OptionGrace && option.GraceUntil != nil {
		until = *option.GraceUntil
	}
	if atOnce {
		until = now
	}
	if err := d.toGrace(ctx, option, until, actor, "cancelled"); err != nil {
		return option, err
	}
	d.endGrace(ctx, option.VPS)
	d.deadlinesChanged()
	current, err := d.store.OptionByID(ctx, option.ID)
	return current, err
}

// toGrace moves an option into its grace, until the given time.
func (d *Daemon) toGrace(ctx context.Context, o vps.Option, until time.Time, actor vps.Actor, note string) error {
	o.State, o.GraceUntil, o.UpdatedAt = vps.OptionGrace, &until, d.now()
	return d.store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.SaveOption(ctx, o, actor, note); err != nil {
			return err
		}
		return d.say(ctx, tx, vps.Message{VPS: o.VPS, Kind: vps.MessageOptionChanged, Actor: actor,
			Text: "The snapshot option has ended. The snapshot is kept until " + until.Format(time.RFC3339) + " and can be restored until then."})
	})
}
