package store

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// PromiseKind is what is owed to a guest.
type PromiseKind string

const (
	// PromiseThaw: the guest's file systems were, or may get, frozen by us.
	PromiseThaw PromiseKind = "thaw"
	// PromiseResume: the guest's processors were stopped by us.
	PromiseResume PromiseKind = "resume"
)

// Promise is something that the daemon owes a guest.
type Promise struct {
	VPS   string
	Kind  PromiseKind
	Since time.Time
}

// Promises returns everything owed, oldest first.
func (s queries) Promises(ctx context.Context) ([]Promise, error) {
	rows, err := s.q.QueryContext(ctx, `SELECT vps, kind, since FROM promise ORDER BY since`)
	return collect(rows, err, func(row scanner) (Promise, error) {
		var p Promise
		err := row.Scan(&p.VPS, &p.Kind, moment{&p.Since})
		return p, err
	})
}

// HasPromise says whether a guest is owed this.
func (s queries) HasPromise(ctx context.Context, vpsID string, kind PromiseKind) (bool, error) {
	_, err := s.PromiseOf(ctx, vpsID, kind)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// PromiseOf returns what a guest is owed of a kind, or sql.ErrNoRows. VPS and Kind are
// set in any case.
func (s queries) PromiseOf(ctx context.Context, vpsID string, kind PromiseKind) (Promise, error) {
	p := Promise{VPS: vpsID, Kind: kind}
	err := s.q.QueryRowContext(ctx, `SELECT since FROM promise WHERE vps = ? AND kind = ?`, vpsID, kind).Scan(moment{&p.Since})
	return p, err
}

// Promise records a debt; it is no error to owe it already.
func (t *Tx) Promise(ctx context.Context, p Promise) error {
	return t.exec(ctx, `INSERT INTO promise (vps, kind, since) VALUES (?,?,?) ON CONFLICT DO NOTHING`, p.VPS, p.Kind, micros(p.Since))
}

// Kept removes a debt.
func (t *Tx) Kept(ctx context.Context, vpsID string, kind PromiseKind) error {
	return t.exec(ctx, `DELETE FROM promise WHERE vps = ? AND kind = ?`, vpsID, kind)
}
