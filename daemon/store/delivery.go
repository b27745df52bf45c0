package store

import (
	"context"
	"time"

	"vpssnapd/daemon/vps"
)

const (
	// mostWaiting is how many deliveries wait for one target at most; what comes on
	// top is dropped, and counted.
	mostWaiting = 10_000
	// mostWaitingOfOne is how many of them may be about one VPS, so that what is done to
	// one does not push out the news of the others.
	mostWaitingOfOne = 1_000
	// endedKept is how long a delivery is kept that has ended.
	endedKept = 3 * 24 * time.Hour
	// farthestTry is later than any delivery's next try is set: one that is still
	// farther away was recorded while the clock was wrong.
	farthestTry = 6 * time.Hour
)

const deliveryColumns = `id, kind, target, vps, payload, created_at, attempts, next_at, last_error, outcome, ended_at`

func scanDelivery(row scanner) (vps.Delivery, error) {
	var d vps.Delivery
	err := row.Scan(&d.ID, &d.Kind, &d.Target, &d.VPS, &d.Payload, moment{&d.CreatedAt}, &d.Attempts, moment{&d.NextAt},
		&d.LastError, &d.Outcome, momentOrNil{&d.EndedAt})
	return d, err
}

// AddDelivery records what is to be sent: its kind, target, VPS, payload and time. It is
// first tried as soon as the transaction is committed. With the transaction of what it
// tells of, so that nothing is told that did not happen, and nothing forgotten.
func (t *Tx) AddDelivery(ctx context.Context, d vps.Delivery) error {
	var waiting, ofOne int
	err := t.q.QueryRowContext(ctx, `SELECT
		(SELECT count(*) FROM delivery WHERE kind = ?1 AND target = ?2 AND ended_at IS NULL),
		(SELECT count(*) FROM delivery WHERE vps = ?3 AND kind = ?1 AND target = ?2 AND ended_at IS NULL)`,
		d.Kind, d.Target, d.VPS).Scan(&waiting, &ofOne)
	if err != nil {
		return err
	}
	// A receiver that is down for weeks must not fill the database.
	if waiting >= mostWaiting || d.VPS != "" && ofOne >= mostWaitingOfOne {
		t.dropped = append(t.dropped, d.Kind)
		return nil
	}
	t.queued = true
	return t.exec(ctx, `INSERT INTO delivery (id, kind, target, vps, payload, created_at, next_at) VALUES (?,?,?,?,?,?,?)`,
		vps.NewDeliveryID(), d.Kind, d.Target, d.VPS, d.Payload, micros(d.CreatedAt), micros(d.CreatedAt))
}

// DueDelivery returns the delivery to a target that is to be tried next; sql.ErrNoRows
// when none is to be tried now. In the order of next_at, so that one that fails does not
// hold up the others.
func (s queries) DueDelivery(ctx context.Context, kind vps.DeliveryKind, target string, now time.Time) (vps.Delivery, error) {
	return scanDelivery(s.q.QueryRowContext(ctx, `SELECT `+deliveryColumns+` FROM delivery
		WHERE kind = ? AND target = ? AND ended_at IS NULL AND (next_at <= ? OR next_at > ?) ORDER BY next_at, created_at LIMIT 1`,
		kind, target, micros(now), micros(now.Add(farthestTry))))
}

// DeliveryQueues returns what waits, by kind and target.
func (s queries) DeliveryQueues(ctx context.Context) ([]vps.DeliveryQueue, error) {
	rows, err := s.q.QueryContext(ctx, `SELECT kind, target, count(*), min(created_at), min(next_at) FROM delivery
		WHERE ended_at IS NULL GROUP BY kind, target`)
	return collect(rows, err, func(row scanner) (vps.DeliveryQueue, error) {
		var q vps.DeliveryQueue
		err := row.Scan(&q.Kind, &q.Target, &q.Waiting, moment{&q.Oldest}, moment{&q.NextAt})
		return q, err
	})
}

// SaveDelivery records what came of a try. The payload of one that has ended is
// forgotten, and so are those that ended long ago.
func (t *Tx) SaveDelivery(ctx context.Context, d vps.Delivery) error {
	err := t.exec(ctx, `UPDATE delivery SET attempts = ?, next_at = ?, last_error = ?, outcome = ?, ended_at = ?,
		payload = CASE WHEN ?5 IS NULL THEN payload ELSE x'' END WHERE id = ?`,
		d.Attempts, micros(d.NextAt), d.LastError, d.Outcome, microsOrNull(d.EndedAt), d.ID)
	if err != nil || d.EndedAt == nil {
		return err
	}
	return t.exec(ctx, `DELETE FROM delivery WHERE ended_at < ?`, micros(d.EndedAt.Add(-endedKept)))
}

// GaveUpSince reports whether a delivery to a target was given up since a time.
func (s queries) GaveUpSince(
	ctx context.Context, kind vps.DeliveryKind, target string, since time.Time,
) (yes bool, err error) {
	err = s.q.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM delivery WHERE ended_at >= ? AND outcome = 'given_up' AND kind = ? AND target = ?)`,
		micros(since), kind, target).
		Scan(&yes)
	return yes, err
}

// GiveUpDeliveries ends everything that waits for a target.
func (t *Tx) GiveUpDeliveries(ctx context.Context, kind vps.DeliveryKind, target, reason string, at time.Time) error {
	return t.exec(ctx, `UPDATE delivery SET outcome = 'given_up', ended_at = ?, last_error = ?, payload = x''
		WHERE kind = ? AND target = ? AND ended_at IS NULL`, micros(at), reason, kind, target)
}

// Queued is told, without waiting, after every commit that added deliveries.
func (s *Store) Queued() <-chan struct{} { return s.queued }

// DroppedDeliveries tells how many were not recorded since it was opened, because
// too many waited for their target.
func (s *Store) DroppedDeliveries(kind vps.DeliveryKind) int64 { return s.dropped[kind].Load() }
