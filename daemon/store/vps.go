package store

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// KnownVPS is a VPS that was seen on this host, perhaps long ago.
type KnownVPS struct {
	ID       string
	Name     string
	LastSeen time.Time
}

// KnownVPSes returns every VPS that was ever seen, by id.
func (s queries) KnownVPSes(ctx context.Context) (map[string]KnownVPS, error) {
	rows, err := s.q.QueryContext(ctx, `SELECT id, name, last_seen FROM vps`)
	all, err := collect(rows, err, func(row scanner) (KnownVPS, error) {
		var v KnownVPS
		err := row.Scan(&v.ID, &v.Name, moment{&v.LastSeen})
		return v, err
	})
	known := make(map[string]KnownVPS, len(all))
	for _, v := range all {
		known[v.ID] = v
	}
	return known, err
}

// SawVPS records that a VPS is here, and its name.
func (t *Tx) SawVPS(ctx context.Context, v KnownVPS) error {
	return t.exec(ctx, `INSERT INTO vps (id, name, last_seen) VALUES (?,?,?)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name, last_seen = excluded.last_seen`, v.ID, v.Name, micros(v.LastSeen))
}

// nameOf is the last known name of a VPS; "" when it was never seen.
func (s queries) nameOf(ctx context.Context, id string) (string, error) {
	var name string
	err := s.q.QueryRowContext(ctx, `SELECT name FROM vps WHERE id = ?`, id).Scan(&name)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return name, err
}
