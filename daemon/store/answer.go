package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"time"

	"vpssnapd/daemon/vps"
)

const (
	// answersKept is how long a call can be repeated with its Idempotency-Key.
	answersKept = 24 * time.Hour
	// answersAtMost and answerBytes bound what is kept for a token, and those that it has
	// made, of one VPS. Beyond that the oldest go, but none whose operation still runs.
	answersAtMost = 500
	answerBytes   = 1 << 20
)

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
	vpsID, operation := aboutWhat(result)
	err = t.exec(ctx, `INSERT INTO answer (client, key, sum, at, answer, owner, vps, operation, bytes) VALUES (?,?,?,?,?,?,?,?,?)
		ON CONFLICT (client, key) DO UPDATE SET sum = excluded.sum, at = excluded.at, answer = excluded.answer,
		owner = excluded.owner, vps = excluded.vps, operation = excluded.operation, bytes = excluded.bytes`,
		c.Client, c.Key, c.Sum[:], micros(t.now), answer, c.Owner, vpsID, operation, len(answer)+len(c.Key))
	if err != nil {
		return err
	}
	return t.boundAnswers(ctx, c.Owner, vpsID)
}

// aboutWhat is the VPS that an answer is about, and the operation in it.
func aboutWhat(result any) (vpsID, operation string) {
	switch r := result.(type) {
	case vps.Operation:
		return r.VPS, r.ID
	case vps.Option:
		return r.VPS, ""
	case vps.Snapshot:
		return r.VPS, ""
	case vps.Download:
		return r.VPS, ""
	}
	return "", ""
}

// boundAnswers forgets the oldest answers of an owner about a VPS that are too many, or too
// long together.
func (t *Tx) boundAnswers(ctx context.Context, owner, vpsID string) error {
	return t.exec(ctx, `DELETE FROM answer WHERE rowid IN (SELECT row FROM (
			SELECT rowid AS row, operation, count(*) OVER newer AS n, sum(bytes) OVER newer AS total
			FROM answer WHERE owner = ? AND vps = ?
			WINDOW newer AS (ORDER BY at DESC, rowid DESC ROWS UNBOUNDED PRECEDING))
		WHERE (n > ? OR total > ?) AND NOT EXISTS (SELECT 1 FROM operation o WHERE o.id = operation
			AND o.status IN ('pending', 'running', 'needs_attention')))`, owner, vpsID, answersAtMost, answerBytes)
}

// KeepAnswer is Tx.KeepAnswer for a call that has changed, or found, everything before.
func (s *Store) KeepAnswer(ctx context.Context, result any) error {
	if vps.CallOf(ctx).Key == "" {
		return nil
	}
	return s.Write(ctx, func(tx *Tx) error { return tx.KeepAnswer(ctx, result) })
}
