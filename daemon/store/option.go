package store

import (
	"context"
	"time"

	"vpssnapd/daemon/vps"
)

const optionColumns = `id, vps, state, order_ref, amount, currency, period, contact_email, locale,
	ordered_at, activated_at, ends_at, cancelled_at, grace_until, released_at, updated_at`

func scanOption(row scanner) (vps.Option, error) {
	var o vps.Option
	err := row.Scan(&o.ID, &o.VPS, &o.State, &o.OrderRef, &o.Price.Amount, &o.Price.Currency, &o.Price.Period,
		&o.ContactEmail, &o.Locale, moment{&o.OrderedAt}, momentOrNil{&o.ActivatedAt}, momentOrNil{&o.EndsAt},
		momentOrNil{&o.CancelledAt}, momentOrNil{&o.GraceUntil}, momentOrNil{&o.ReleasedAt}, moment{&o.UpdatedAt})
	return o, err
}

// OpenOption returns the option of a VPS that is not released; sql.ErrNoRows when there is none.
func (s queries) OpenOption(ctx context.Context, vpsID string) (vps.Option, error) {
	return scanOption(s.q.QueryRowContext(ctx,
		`SELECT `+optionColumns+` FROM option WHERE vps = ? AND state <> 'released'`, vpsID))
}

// OptionByOrder returns the newest option of a VPS with this order reference, released ones
// too; sql.ErrNoRows when there is none.
func (s queries) OptionByOrder(ctx context.Context, vpsID, orderRef string) (vps.Option, error) {
	return scanOption(s.q.QueryRowContext(
		ctx, `SELECT `+optionColumns+` FROM option WHERE vps = ? AND order_ref = ? ORDER BY ordered_at DESC LIMIT 1`,
		vpsID, orderRef,
	))
}

// OpenOptions returns every option that is not released.
func (s queries) OpenOptions(ctx context.Context) ([]vps.Option, error) {
	rows, err := s.q.QueryContext(ctx, `SELECT `+optionColumns+` FROM option WHERE state <> 'released'`)
	return collect(rows, err, scanOption)
}

// optionEnd is when the time of an open option, or its grace, is over.
const optionEnd = `CASE state WHEN 'grace' THEN grace_until ELSE ends_at END`

// DueOptions returns the options whose time, or whose grace, is over.
func (s queries) DueOptions(ctx context.Context, now time.Time) ([]vps.Option, error) {
	rows, err := s.q.QueryContext(ctx, `SELECT `+optionColumns+` FROM option
		WHERE state <> 'released' AND `+optionEnd+` <= ?`, micros(now))
	return collect(rows, err, scanOption)
}

// SaveOption inserts or updates an option and writes the change into its history. The
// history has every change, with who made it and why.
func (t *Tx) SaveOption(ctx context.Context, o vps.Option, actor vps.Actor, note string) error {
	if err := t.tellOption(ctx, o, actor, note); err != nil {
		return err
	}
	err := t.exec(ctx, `INSERT INTO option (`+optionColumns+`) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)
		ON CONFLICT (id) DO UPDATE SET state = excluded.state, order_ref = excluded.order_ref,
		amount = excluded.amount, currency = excluded.currency, period = excluded.period,
		contact_email = excluded.contact_email, locale = excluded.locale,
		activated_at = excluded.activated_at, ends_at = excluded.ends_at, cancelled_at = excluded.cancelled_at,
		grace_until = excluded.grace_until, released_at = excluded.released_at, updated_at = excluded.updated_at`,
		o.ID, o.VPS, o.State, o.OrderRef, o.Price.Amount, o.Price.Currency, o.Price.Period, o.ContactEmail, o.Locale,
		micros(o.OrderedAt), microsOrNull(o.ActivatedAt), microsOrNull(o.EndsAt), microsOrNull(o.CancelledAt),
		microsOrNull(o.GraceUntil), microsOrNull(o.ReleasedAt), micros(o.UpdatedAt))
	if err == nil { // what was damaged has been ordered again
		err = t.exec(ctx, `DELETE FROM damaged WHERE kind = 'option' AND vps = ?`, o.VPS)
	}
	if err != nil {
		return err
	}
	return t.exec(
		ctx, `INSERT INTO option_change (vps, option, at, state, actor_name, actor_way, note) VALUES (?,?,?,?,?,?,?)`,
		o.VPS, o.ID, micros(o.UpdatedAt), o.State, actor.Name, actor.Way, note,
	)
}

// OptionHistory returns one page of the changes of a VPS's options, released ones
// too, newest first. Limit must be positive.
func (s queries) OptionHistory(ctx context.Context, q vps.OptionQuery) (vps.OptionHistory, error) {
	f := filter{terms: []string{"vps = ?"}, args: []any{q.VPS}}
	if q.Before != 0 {
		f.add("id < ?", q.Before)
	}
	rows, err := s.q.QueryContext(ctx, `SELECT id, at, option, state, actor_name, actor_way, note
		FROM option_change`+f.where()+` ORDER BY id DESC LIMIT ?`, append(f.args, q.Limit+1)...)
	all, err := collect(rows, err, func(row scanner) (vps.OptionChange, error) {
		var c vps.OptionChange
		err := row.Scan(&c.ID, moment{&c.At}, &c.Option, &c.State, &c.Actor.Name, &c.Actor.Way, &c.Note)
		return c, err
	})
	page := vps.OptionHistory{Changes: all}
	if len(all) > q.Limit {
		page.Changes = all[:q.Limit]
		page.Next = all[q.Limit-1].ID
	}
	return page, err
}

// NextDeadline returns the earliest time at which an option or an undo ends; nil when none does.
func (s queries) NextDeadline(ctx context.Context) (*time.Time, error) {
	var next *time.Time
	err := s.q.QueryRowContext(ctx, `SELECT min(at) FROM (
		SELECT min(`+optionEnd+`) AS at FROM option WHERE state <> 'released'
		UNION ALL SELECT min(undo_until) FROM snapshot WHERE state <> 'gone' AND undo_until IS NOT NULL)`).Scan(momentOrNil{&next})
	return next, err
}

// OptionByID returns one option; sql.ErrNoRows when there is none.
func (s queries) OptionByID(ctx context.Context, id string) (vps.Option, error) {
	return scanOption(s.q.QueryRowContext(ctx, `SELECT `+optionColumns+` FROM option WHERE id = ?`, id))
}
