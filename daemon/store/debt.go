package store

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// DebtKind is what is owed to a guest.
type DebtKind string

const (
	// DebtThaw: the guest's file systems were, or may get, frozen by us.
	DebtThaw DebtKind = "thaw"
	// DebtResume: the guest's processors were stopped by us.
	DebtResume DebtKind = "resume"
)

// Debt is something that the daemon owes a guest.
type Debt struct {
	VPS   string
	Kind  DebtKind
	Since time.Time
}

// Debts returns everything owed, oldest first.
func (s queries) Debts(ctx context.Context) ([]Debt, error) {
	rows, err := s.q.QueryContext(ctx, `SELECT vps, kind, since FROM promise ORDER BY since`)
	return collect(rows, err, func(row scanner) (Debt, error) {
		var p Debt
		err := row.Scan(&p.VPS, &p.Kind, moment{&p.Since})
		return p, err
	})
}

// Owes reports whether a guest is owed this.
func (s queries) Owes(ctx context.Context, vpsID string, kind DebtKind) (bool, error) {
	_, err := s.DebtOf(ctx, vpsID, kind)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// DebtOf returns what a guest is owed of a kind, or sql.ErrNoRows. VPS and Kind are
// set in any case.
func (s queries) DebtOf(ctx context.Context, vpsID string, kind DebtKind) (Debt, error) {
	p := Debt{VPS: vpsID, Kind: kind}
	err := s.q.QueryRowContext(ctx, `SELECT since FROM promise WHERE vps = ? AND kind = ?`, vpsID, kind).
		Scan(moment{&p.Since})
	return p, err
}

// Owe records a debt; it is no error to owe it already. It is committed before the guest
// is frozen or suspended: a daemon that was killed then finds it (FAULTS.md, rows 5 and
// 8).
func (t *Tx) Owe(ctx context.Context, p Debt) error {
	return t.exec(
		ctx, `INSERT INTO promise (vps, kind, since) VALUES (?,?,?) ON CONFLICT DO NOTHING`, p.VPS, p.Kind,
		micros(p.Since),
	)
}

// Settle removes a debt. Only after the guest was seen to run again.
func (t *Tx) Settle(ctx context.Context, vpsID string, kind DebtKind) error {
	return t.exec(ctx, `DELETE FROM promise WHERE vps = ? AND kind = ?`, vpsID, kind)
}
