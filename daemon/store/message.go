package store

import (
	"context"
	"encoding/json"
	"time"

	"vpssnapd/daemon/vps"
)

// Messages returns one page of the journal, newest first. Limit must be positive.
func (s queries) Messages(ctx context.Context, q vps.MessageQuery) (vps.MessagePage, error) {
	rows, err := s.q.QueryContext(ctx, `SELECT id, at, vps, vps_name, kind, actor_name, actor_way, operation, text, detail, phrase, params
		FROM message WHERE (?1 = '' OR vps = ?1) AND (?2 = '' OR kind = ?2) AND (?3 = 0 OR id < ?3)
		AND (?4 = 0 OR at >= ?4) AND (?5 = 0 OR at < ?5)
		ORDER BY id DESC LIMIT ?6`, q.VPS, q.Kind, q.Before, microsOrZero(q.Since), microsOrZero(q.Until), q.Limit+1)
	all, err := collect(rows, err, func(row scanner) (vps.Message, error) {
		var m vps.Message
		var params []byte
		err := row.Scan(&m.ID, moment{&m.At}, &m.VPS, &m.VPSName, &m.Kind, &m.Actor.Name, &m.Actor.Way, &m.Operation, &m.Text, &m.Detail, &m.Phrase, &params)
		if err == nil && len(params) > 0 {
			err = json.Unmarshal(params, &m.Params)
		}
		return m, err
	})
	page := vps.MessagePage{Messages: all}
	if len(all) > q.Limit {
		page.Messages = all[:q.Limit]
		page.Next = all[q.Limit-1].ID
	}
	return page, err
}

// AddMessage appends to the journal, with the transaction's time and, unless it has
// one, the last known name of its VPS. What is said is kept both as a phrase, for
// every language, and as English text, for readers of the database.
func (t *Tx) AddMessage(ctx context.Context, m vps.Message) error {
	m.At, m.Text = t.now, m.In(vps.English)
	if m.VPSName == "" {
		name, err := t.nameOf(ctx, m.VPS)
		if err != nil {
			return err
		}
		m.VPSName = name
	}
	params := ""
	if len(m.Params) > 0 {
		text, err := json.Marshal(m.Params)
		if err != nil {
			return err
		}
		params = string(text)
	}
	res, err := t.tx.ExecContext(ctx, `INSERT INTO message (at, vps, vps_name, kind, actor_name, actor_way, operation, text, detail, phrase, params)
		VALUES (?,?,?,?,?,?,?,?,?,?,?)`, micros(m.At), m.VPS, m.VPSName, m.Kind, m.Actor.Name, m.Actor.Way, m.Operation, m.Text, m.Detail,
		m.Phrase, params)
	if err != nil {
		return err
	}
	if t.message, err = res.LastInsertId(); err != nil {
		return err
	}
	return t.AddEvent(ctx, vps.Event{Type: vps.EventMessage, VPS: m.VPS, VPSName: m.VPSName, EventData: vps.EventData{Message: &vps.MessageEvent{
		ID: t.message, Kind: m.Kind, Operation: m.Operation, Text: m.Text, Phrase: m.Phrase, Params: m.Params}}})
}

// microsOrZero is how the absence of a bound is asked for.
func microsOrZero(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return micros(t)
}
