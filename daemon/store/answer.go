package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"time"

	"vpssnapd/daemon/vps"
)

// answersKept is how long a call can be repeated with its Idempotency-Key.
const answersKept = 24 * time.Hour

// Answered returns what a client's call with this key was answered, and the sum of that
// call; a nil answer when it has not been made, or too long ago. A repetition within
// that time is answered without being carried out again.
func (s *Store) Answered(ctx context.Context, client, key string) (answer []byte, sum [sha256.Size]byte, err error) {
	var kept []byte
	var at time.Time
	err = s.q.QueryRowContext(ctx, `SELECT sum, at, answer FROM answer WHERE client = ? AND key = ?`, client, key).
		Scan(&kept, moment{&at}, &answer)
	if errors.Is(err, sql.ErrNoRows) || err == nil && at.Before(s.Now().Add(-answersKept)) {
		return nil, sum, nil
	}
	copy(sum[:], kept)
	return answer, sum, err
}

// KeepAnswer keeps what came of the call that ctx belongs to, if its client may
// repeat it, in the transaction that changes what the call is about.
func (t *Tx) KeepAnswer(ctx context.Context, result any) error {
	c := vps.CallOf(ctx)
	if c.Key == "" {
		return nil
	}
	answer, err := c.Record(result)
	if err != nil {
		return err
	}
	// Here, because answers are made as fast as they must be forgotten.
	if err := t.exec(ctx, `DELETE FROM answer WHERE at < ?`, micros(t.now.Add(-answersKept))); err != nil {
		return err
	}
	return t.exec(ctx, `INSERT INTO answer (client, key, sum, at, answer) VALUES (?,?,?,?,?)
		ON CONFLICT (client, key) DO UPDATE SET sum = excluded.sum, at = excluded.at, answer = excluded.answer`,
		c.Client, c.Key, c.Sum[:], micros(t.now), answer)
}

// KeepAnswer is Tx.KeepAnswer for a call that has changed, or found, everything before.
func (s *Store) KeepAnswer(ctx context.Context, result any) error {
	if vps.CallOf(ctx).Key == "" {
		return nil
	}
	return s.Write(ctx, func(tx *Tx) error { return tx.KeepAnswer(ctx, result) })
}
