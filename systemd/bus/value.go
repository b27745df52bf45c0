package bus

import (
	"fmt"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"vpssnapd/daemon/vps"
)

// text makes a string that the bus takes: it cuts off who sends another. VPS names and
// descriptions come from others; one byte of invalid UTF-8 would end our connection.
func text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// D-Bus has no "unknown" for numbers; a negative one is shown as 0.
func bytes(n int64) uint64 { return uint64(max(n, 0)) }

// moment writes a time as the REST API does; "" for none.
func moment(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// dict is a dictionary with the keys of the REST API. What is not known is left out.
type dict map[string]dbus.Variant

func (d dict) text(key, value string) {
	if value != "" {
		d[key] = dbus.MakeVariant(text(value))
	}
}

func (d dict) time(key string, t *time.Time) { d.text(key, moment(t)) }

// optionDict leaves out what is not known: D-Bus has no null.
func optionDict(o *vps.Option) dict {
	d := dict{}
	if o == nil {
		return d
	}
	d.text("id", o.ID)
	d.text("vps", o.VPS)
	d.text("state", string(o.State))
	d.text("order_ref", o.OrderRef)
	d["price"] = dbus.MakeVariant(dict{
		"amount":   dbus.MakeVariant(o.Price.Amount),
		"currency": dbus.MakeVariant(text(o.Price.Currency)),
		"period":   dbus.MakeVariant(string(o.Price.Period)),
	})
	d.text("contact_email", o.ContactEmail)
	d.text("locale", o.Locale)
	d.time("ordered_at", &o.OrderedAt)
	d.time("activated_at", o.ActivatedAt)
	d.time("ends_at", o.EndsAt)
	d.time("cancelled_at", o.CancelledAt)
	d.time("grace_until", o.GraceUntil)
	d.time("released_at", o.ReleasedAt)
	d.time("updated_at", &o.UpdatedAt)
	return d
}

// snapshotDict leaves out what is not known: D-Bus has no null.
func snapshotDict(s *vps.Snapshot) dict {
	d := dict{}
	if s == nil {
		return d
	}
	d.text("id", s.ID)
	d.text("vps", s.VPS)
	d.text("state", string(s.State))
	d.text("reason", s.Reason)
	d.text("description", s.Description)
	d.time("created_at", &s.CreatedAt)
	d.text("consistency", string(s.Consistency))
	// 0 means that it was not frozen, which is not the same as frozen for 0 ms.
	if s.FreezeMS != 0 {
		d["freeze_ms"] = dbus.MakeVariant(s.FreezeMS)
	}
	d["size_bytes"] = dbus.MakeVariant(bytes(s.SizeBytes))
	d["delta_bytes"] = dbus.MakeVariant(bytes(s.DeltaBytes))
	d.time("restored_at", s.RestoredAt)
	d.time("undo_until", s.UndoUntil)
	d.time("updated_at", &s.UpdatedAt)
	return d
}

// options reads the dictionary of a call, strictly: each key has a place of its own type
// in known, and a key without one is an error. A misspelt key that was ignored would do
// something else than the caller means.
func options(given map[string]dbus.Variant, known map[string]any) error {
	for key, v := range given {
		ok := false
		switch to := known[key].(type) {
		case *string:
			*to, ok = v.Value().(string)
		case *bool:
			*to, ok = v.Value().(bool)
		case *int64:
			*to, ok = v.Value().(int64)
		case *map[string]dbus.Variant:
			*to, ok = v.Value().(map[string]dbus.Variant)
		default:
			return invalid("there is no option %q here", key)
		}
		if !ok {
			return invalid("the option %q must have the type %s, not %s", key, typeOf(known[key]), v.Signature())
		}
	}
	return nil
}

// typeOf is the signature of what a pointer points to.
func typeOf(pointer any) string {
	switch pointer.(type) {
	case *string:
		return "s"
	case *bool:
		return "b"
	case *int64:
		return "x"
	}
	return "a{sv}"
}

// orderOf reads the state and the optional fields of SetOption; an unknown field is
// refused.
func orderOf(state string, given map[string]dbus.Variant) (vps.OptionOrder, error) {
	o := vps.OptionOrder{State: vps.OptionState(state)}
	var endsAt string
	var price map[string]dbus.Variant
	err := options(given, map[string]any{
		"order_ref": &o.OrderRef, "price": &price, "contact_email": &o.ContactEmail, "locale": &o.Locale,
		"ends_at": &endsAt,
	})
	if err != nil {
		return o, err
	}
	if price != nil {
		var period string
		o.Price = &vps.Price{}
		if err := options(
			price, map[string]any{"amount": &o.Price.Amount, "currency": &o.Price.Currency, "period": &period},
		); err != nil {
			return o, fmt.Errorf("in the price: %w", err)
		}
		o.Price.Period = vps.Period(period)
	}
	if endsAt != "" {
		// As a string and not as a number: D-Bus has no time, and REST writes it so.
		at, err := time.Parse(time.RFC3339, endsAt)
		if err != nil {
			return o, invalid("ends_at is no time such as 2027-01-31T12:00:00Z")
		}
		o.EndsAt = &at
	}
	return o, nil
}
