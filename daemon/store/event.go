package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"vpssnapd/daemon/vps"
)

// Events are written here, by the very functions that change what they tell of:
// so none is forgotten, and each is in the transaction of its change.

// eventsKept is how many events are kept at most for listeners who come back.
const eventsKept = 50_000

// Events returns the events after one, oldest first. Limit must be positive.
func (s queries) Events(ctx context.Context, after int64, limit int) ([]vps.Event, error) {
	rows, err := s.q.QueryContext(
		ctx, `SELECT id, at, type, vps, vps_name, data FROM event WHERE id > ? ORDER BY id LIMIT ?`, after, limit,
	)
	return collect(rows, err, func(row scanner) (vps.Event, error) {
		var e vps.Event
		var data []byte
		if err := row.Scan(&e.ID, moment{&e.At}, &e.Type, &e.VPS, &e.VPSName, &data); err != nil {
			return e, err
		}
		if err := json.Unmarshal(data, &e.EventData); err != nil {
			return e, fmt.Errorf("event %d cannot be read: %w", e.ID, err)
		}
		return e, nil
	})
}

// LastEvent returns the id of the last event there ever was; 0: none yet. From
// sqlite_sequence, which pruning does not set back.
func (s queries) LastEvent(ctx context.Context) (int64, error) {
	var id int64
	err := s.q.QueryRowContext(ctx, `SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'event'`).Scan(&id)
	return id, err
}

// beginAnew makes the ids of events go on above every one that was given out
// before, here or by a database that was lost: who listens and comes back with an
// older one is then told that events were missed. The time serves, in milliseconds.
func beginAnew(ctx context.Context, db *sql.DB) error {
	now := time.Now().UnixMilli()
	_, err1 := db.ExecContext(ctx, `UPDATE sqlite_sequence SET seq = max(seq + 1, ?) WHERE name = 'event'`, now)
	_, err2 := db.ExecContext(ctx, `INSERT INTO sqlite_sequence (name, seq) SELECT 'event', ?
		WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'event')`, now)
	return errors.Join(err1, err2)
}

// Committed is told, without waiting, after every commit that added events.
func (s *Store) Committed() <-chan struct{} { return s.committed }

// AddEvent appends an event, with the transaction's time, and with the last known name
// of its VPS unless it has one.
func (t *Tx) AddEvent(ctx context.Context, e vps.Event) error {
	data, err := json.Marshal(e.EventData)
	if err != nil {
		return err
	}
	now := t.now
	err = t.q.QueryRowContext(ctx, `INSERT INTO event (at, type, vps, vps_name, data)
		VALUES (?1, ?2, ?3, CASE ?4 WHEN '' THEN coalesce((SELECT name FROM vps WHERE id = ?3), '') ELSE ?4 END, ?5)
		RETURNING id, vps_name`, micros(now), e.Type, e.VPS, e.VPSName, string(data)).Scan(&e.ID, &e.VPSName)
	if err != nil {
		return err
	}
	t.event, e.At = e.ID, now
	return t.tellWebhooks(ctx, e)
}

// tellWebhooks records the deliveries of an event.
func (t *Tx) tellWebhooks(ctx context.Context, e vps.Event) error {
	if !e.Type.ForWebhooks() {
		return nil
	}
	hooks, err := t.enabledWebhooks(ctx)
	if err != nil || len(hooks) == 0 {
		return err
	}
	payload, err := json.Marshal(e)
	if err != nil {
		return err
	}
	for _, h := range hooks {
		if !h.Wants(e.Type) {
			continue
		}
		err := t.AddDelivery(
			ctx, vps.Delivery{Kind: vps.DeliveryWebhook, Target: h.ID, VPS: e.VPS, Payload: payload, CreatedAt: e.At},
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// tellOperation adds the event of a change from what is stored. Called before the row is
// written: it compares with what is there.
func (t *Tx) tellOperation(ctx context.Context, o vps.Operation) error {
	var status vps.Status
	var step string
	err := t.q.QueryRowContext(ctx, `SELECT status, step FROM operation WHERE id = ?`, o.ID).Scan(&status, &step)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	kind := vps.EventOperationStep
	switch {
	case status != o.Status:
		kind = vps.EventType("operation." + string(o.Status))
	case step == o.Step:
		return nil
	}
	told := &vps.OperationEvent{ID: o.ID, Kind: o.Kind, Status: o.Status, Step: o.Step, SnapshotID: o.SnapshotID,
		ActorName: o.Actor.Name, ActorWay: o.Actor.Way, Result: o.Result}
	told.Code, told.Detail, told.Remedy = errorColumns(o.Error)
	return t.AddEvent(ctx, vps.Event{Type: kind, VPS: o.VPS, VPSName: o.VPSName, EventData: vps.EventData{Operation: told}})
}

// tellOption adds the event of a change from what is stored.
func (t *Tx) tellOption(ctx context.Context, o vps.Option, actor vps.Actor, note string) error {
	before, err := t.OptionByID(ctx, o.ID)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	kind := vps.EventOptionChanged
	if before.State != o.State {
		kind = vps.EventType("option." + string(o.State))
	}
	return t.AddEvent(ctx, vps.Event{Type: kind, VPS: o.VPS, EventData: vps.EventData{Option: &vps.OptionEvent{
		ID: o.ID, State: o.State, OrderRef: o.OrderRef, EndsAt: o.EndsAt, GraceUntil: o.GraceUntil, Note: note,
		ActorName: actor.Name, ActorWay: actor.Way}}})
}

// tellSnapshot adds the event of a change from what is stored, if it is one that is seen
// from outside. The sizes are measured and change all the time; they are no event.
func (t *Tx) tellSnapshot(ctx context.Context, s vps.Snapshot) error {
	before, err := scanSnapshot(t.q.QueryRowContext(ctx, `SELECT `+snapshotColumns+` FROM snapshot WHERE id = ?`, s.ID))
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if err == nil {
		s.Description = before.Description // which SaveSnapshot does not change
	}
	switch {
	case before.State != s.State:
		return t.addSnapshotEvent(ctx, vps.EventType("snapshot."+string(s.State)), s)
	case before.Reason == s.Reason && sameTime(before.UndoUntil, s.UndoUntil):
		return nil
	}
	return t.addSnapshotEvent(ctx, vps.EventSnapshotChanged, s)
}

func (t *Tx) addSnapshotEvent(ctx context.Context, kind vps.EventType, s vps.Snapshot) error {
	return t.AddEvent(ctx, vps.Event{Type: kind, VPS: s.VPS, EventData: vps.EventData{Snapshot: &vps.SnapshotEvent{
		ID: s.ID, State: s.State, Reason: s.Reason, Description: s.Description, UndoUntil: s.UndoUntil}}})
}

func sameTime(a, b *time.Time) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(*b)
}
