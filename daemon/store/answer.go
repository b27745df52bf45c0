package store

import (
	"context"
	"time"
)

// Answer is what a call with an Idempotency-Key was answered.
type Answer struct {
	Client, Key string
	Sum         []byte
	At          time.Time
	Answer      []byte
}

// Answered returns what was kept of a client's call; sql.ErrNoRows when nothing was.
func (s queries) Answered(ctx context.Context, client, key string) (Answer, error) {
	a := Answer{Client: client, Key: key}
	err := s.q.QueryRowContext(ctx, `SELECT sum, at, answer FROM answer WHERE client = ? AND key = ?`, client, key).
		Scan(&a.Sum, moment{&a.At}, &a.Answer)
	return a, err
}

// KeepAnswer keeps an answer, in the place of an earlier one to the same call,
// and drops those from before.
func (t *Tx) KeepAnswer(ctx context.Context, a Answer, before time.Time) error {
	if err := t.exec(ctx, `DELETE FROM answer WHERE at < ?`, micros(before)); err != nil {
		return err
	}
	return t.exec(ctx, `INSERT INTO answer (client, key, sum, at, answer) VALUES (?,?,?,?,?)
		ON CONFLICT (client, key) DO UPDATE SET sum = excluded.sum, at = excluded.at, answer = excluded.answer`,
		a.Client, a.Key, a.Sum, micros(a.At), a.Answer)
}
