package store

import (
	"context"

	"vpssnapd/daemon/vps"
)

// Messages returns one page of the journal, newest first. Limit must be positive.
func (s queries) Messages(ctx context.Context, q vps.MessageQuery) (vps.MessagePage, error) {
	rows, err := s.q.QueryContext(ctx, `SELECT id, at, vps, vps_name, kind, actor_name, actor_way, operation, text, detail
		FROM message WHERE (?1 = '' OR vps = ?1) AND (?2 = '' OR kind = ?2) AND (?3 = 0 OR id < ?3)
		ORDER BY id DESC LIMIT ?4`, q.VPS, q.Kind, q.Before, q.Limit+1)
	all, err := collect(rows, err, func(row scanner) (vps.Message, error) {
		var m vps.Message
		err := row.Scan(&m.ID, moment{&m.At}, &m.VPS, &m.VPSName, &m.Kind, &m.Actor.Name, &m.Actor.Way, &m.Operation, &m.Text, &m.Detail)
		return m, err
	})
	page := vps.MessagePage{Messages: all}
	if len(all) > q.Limit {
		page.Messages = all[:q.Limit]
		page.Next = all[q.Limit-1].ID
	}
	return page, err
}

// AddMessage appends to the journal.
func (t *Tx) AddMessage(ctx context.Context, m vps.Message) error {
	res, err := t.tx.ExecContext(ctx, `INSERT INTO message (at, vps, vps_name, kind, actor_name, actor_way, operation, text, detail)
		VALUES (?,?,?,?,?,?,?,?,?)`, micros(m.At), m.VPS, m.VPSName, m.Kind, m.Actor.Name, m.Actor.Way, m.Operation, m.Text, m.Detail)
	if err == nil {
		t.message, err = res.LastInsertId()
	}
	return err
}
