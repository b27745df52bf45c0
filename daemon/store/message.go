package store

import (
	"context"
	"encoding/json"
	"time"

	"vpssnapd/daemon/vps"
)

// Messages returns one page of the journal, newest first. Limit must be positive.
func (s queries) Messages(ctx context.Context, q vps.MessageQuery) (vps.MessagePage, error) {
	f := messageFilter(q)
	// One more than asked for tells whether there is another page.
	rows, err := s.q.QueryContext(
		ctx,
		`SELECT id, at, vps, vps_name, kind, actor_name, actor_way, operation, text, detail, phrase, params
		FROM message`+f.where()+` ORDER BY id DESC LIMIT ?`,
		append(f.args, q.Limit+1)...)
	all, err := collect(rows, err, func(row scanner) (vps.Message, error) {
		var m vps.Message
		var params []byte
		err := row.Scan(
			&m.ID, moment{&m.At}, &m.VPS, &m.VPSName, &m.Kind, &m.Actor.Name, &m.Actor.Way, &m.Operation, &m.Text,
			&m.Detail, &m.Phrase, &params,
		)
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

// messageFilter turns a query into conditions. A leading + keeps SQLite from using an index
// on that column, where another index leaves fewer rows.
func messageFilter(q vps.MessageQuery) *filter {
	f := &filter{}
	if q.VPS != "" {
		f.add("vps = ?", q.VPS)
	}
	switch {
	case q.Kind != "" && q.VPS != "":
		f.add("+kind = ?", q.Kind) // one VPS has fewer messages than one kind
	case q.Kind != "":
		f.add("kind = ?", q.Kind)
	}
	if q.Before != 0 {
		f.add("id < ?", q.Before)
	}
	f.addTimes(q.Since, q.Until)
	return f
}

// addTimes asks for messages from since to before until, where they are not zero.
// Messages are ordered by id, which follows the time as long as nobody sets the clock
// back. So the ids between which those of that time are come first, from the index of
// the times alone, and then each is compared.
func (f *filter) addTimes(since, until time.Time) {
	var times filter
	if !since.IsZero() {
		times.add("at >= ?", micros(since))
	}
	if !until.IsZero() {
		times.add("at < ?", micros(until))
	}
	bound := func(end string) string {
		return `(SELECT ` + end + `(id) FROM message INDEXED BY message_at` + times.where() + `)`
	}
	if !since.IsZero() {
		f.add("id >= "+bound("min"), times.args...)
		f.add("+at >= ?", micros(since))
	}
	if !until.IsZero() {
		f.add("id <= "+bound("max"), times.args...)
		f.add("+at < ?", micros(until))
	}
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
	res, err := t.tx.ExecContext(
		ctx,
		`INSERT INTO message (at, vps, vps_name, kind, actor_name, actor_way, operation, text, detail, phrase, params)
		VALUES (?,?,?,?,?,?,?,?,?,?,?)`,
		micros(m.At),
		m.VPS,
		m.VPSName,
		m.Kind,
		m.Actor.Name,
		m.Actor.Way,
		m.Operation,
		m.Text,
		m.Detail,
		m.Phrase,
		params,
	)
	if err != nil {
		return err
	}
	if t.message, err = res.LastInsertId(); err != nil {
		return err
	}
	return t.AddEvent(
		ctx,
		vps.Event{Type: vps.EventMessage, VPS: m.VPS, VPSName: m.VPSName, EventData: vps.EventData{Message: &vps.MessageEvent{
			ID: t.message, Kind: m.Kind, Operation: m.Operation, Text: m.Text, Phrase: m.Phrase, Params: m.Params}}},
	)
}
