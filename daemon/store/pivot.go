package store

import (
	"context"
	"time"
)

// PivotMark is how a disk was before its pivot was asked for, as long as it is not on
// record that the disk has pivoted.
type PivotMark struct {
	VPS    string
	Target string
	// BaseModified is when the base had last been written to.
	BaseModified time.Time
}

// PivotMark returns the mark of a VPS; sql.ErrNoRows when there is none.
func (s queries) PivotMark(ctx context.Context, vpsID string) (PivotMark, error) {
	m := PivotMark{VPS: vpsID}
	err := s.q.QueryRowContext(ctx, `SELECT target, base_modified FROM pivot WHERE vps = ?`, vpsID).
		Scan(&m.Target, fileTime{&m.BaseModified})
	return m, err
}

// MarkPivot records a mark in the place of the one of another disk. One disk of a VPS
// pivots at a time.
func (t *Tx) MarkPivot(ctx context.Context, m PivotMark) error {
	return t.exec(ctx, `INSERT INTO pivot (vps, target, base_modified) VALUES (?,?,?)
		ON CONFLICT (vps) DO UPDATE SET target = excluded.target, base_modified = excluded.base_modified`,
		m.VPS, m.Target, nanosOrNull(m.BaseModified))
}

// ForgetPivot drops the mark of a VPS; none is no error.
func (t *Tx) ForgetPivot(ctx context.Context, vpsID string) error {
	return t.exec(ctx, `DELETE FROM pivot WHERE vps = ?`, vpsID)
}
