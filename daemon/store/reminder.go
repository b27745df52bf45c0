package store

import (
	"context"
	"time"
)

// Reminded reports whether a reminder of this kind was already sent for this end.
func (s queries) Reminded(ctx context.Context, optionID, kind string, end time.Time) (yes bool, err error) {
	err = s.q.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM reminder WHERE option = ? AND kind = ? AND ends_at = ?)`,
		optionID, kind, micros(end)).Scan(&yes)
	return yes, err
}

// AddReminder records that a reminder is sent, and reports whether it is the first for this end.
func (t *Tx) AddReminder(ctx context.Context, optionID, kind string, end time.Time) (first bool, err error) {
	res, err := t.tx.ExecContext(ctx, `INSERT INTO reminder (option, kind, ends_at) VALUES (?,?,?)
		ON CONFLICT (option, kind) DO UPDATE SET ends_at = excluded.ends_at WHERE ends_at <> excluded.ends_at`, optionID, kind, micros(end))
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n == 1, err
}
