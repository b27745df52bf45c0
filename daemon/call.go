package daemon

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"time"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// answersKept is how long a call can be repeated with its Idempotency-Key.
const answersKept = 24 * time.Hour

// Answered returns what a client's call with this key was answered, and the sum
// of that call; nil when it has not been made, or too long ago.
func (d *Daemon) Answered(ctx context.Context, client, key string) (answer []byte, sum [sha256.Size]byte, err error) {
	a, err := d.store.Answered(ctx, client, key)
	if errors.Is(err, sql.ErrNoRows) || err == nil && a.At.Before(d.now().Add(-answersKept)) {
		return nil, sum, nil
	}
	copy(sum[:], a.Sum)
	return a.Answer, sum, err
}

// remember keeps what came of a call that its client may repeat, in the
// transaction that changes what the call is about.
func (d *Daemon) remember(ctx context.Context, tx *store.Tx, result any) error {
	c := vps.CallOf(ctx)
	if c.Key == "" {
		return nil
	}
	answer, err := c.Record(result)
	if err != nil {
		return err
	}
	now := d.now()
	return tx.KeepAnswer(ctx, store.Answer{Client: c.Client, Key: c.Key, Sum: c.Sum[:], At: now, Answer: answer}, now.Add(-answersKept))
}

// rememberAlone is remember for a call that has changed, or found, everything before.
func (d *Daemon) rememberAlone(ctx context.Context, result any) error {
	if vps.CallOf(ctx).Key == "" {
		return nil
	}
	return d.store.Write(ctx, func(tx *store.Tx) error { return d.remember(ctx, tx, result) })
}

// onOurOwn returns ctx for what follows from a call, but is not its answer.
func onOurOwn(ctx context.Context) context.Context { return vps.WithCall(ctx, vps.Call{}) }
