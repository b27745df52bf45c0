package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
	"vpssnapd/daemon/store/checksum"
)

// DamagedRow is one that was found not to be as it was written: a bit of it has flipped, or
// somebody else has changed or removed it. It is in no other table any more.
type DamagedRow struct {
	Kind string // the table: option, snapshot, operation or token
	ID   string
	VPS  string // whose it was as far as that can be told; "" for a token
	// Open: it counted, and was not history.
	Open bool
	At   time.Time
}

// DamagedRows returns all of them.
func (s queries) DamagedRows(ctx context.Context) ([]DamagedRow, error) {
	rows, err := s.q.QueryContext(ctx, `SELECT kind, id, vps, open, at FROM damaged ORDER BY vps, kind, id`)
	return collect(rows, err, func(row scanner) (d DamagedRow, err error) {
		return d, row.Scan(&d.Kind, &d.ID, &d.VPS, &d.Open, moment{&d.At})
	})
}

// DamagedState reports whether a snapshot or an operation of a VPS was found damaged while
// it counted: nobody knows then in what state the VPS is.
func (s queries) DamagedState(ctx context.Context, vpsID string) (yes bool, err error) {
	err = s.q.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM damaged
		WHERE vps = ? AND kind IN ('snapshot', 'operation') AND open)`, vpsID).Scan(&yes)
	return yes, err
}

// ForgetDamagedOver drops the damaged rows of a VPS that were history.
func (t *Tx) ForgetDamagedOver(ctx context.Context, vpsID string) error {
	return t.exec(ctx, `DELETE FROM damaged WHERE vps = ? AND NOT open`, vpsID)
}

// ForgetDamagedState drops the damaged snapshots and operations of a VPS.
func (t *Tx) ForgetDamagedState(ctx context.Context, vpsID string) error {
	return t.exec(ctx, `DELETE FROM damaged WHERE vps = ? AND kind IN ('snapshot', 'operation')`, vpsID)
}

// SetAside moves the open snapshots and operations of a VPS to its damaged rows: they
// decide together, and are made again from the host.
func (t *Tx) SetAside(ctx context.Context, vpsID string) error {
	for _, g := range checksum.Tables {
		if g.Name != "snapshot" && g.Name != "operation" {
			continue
		}
		rows, err := t.q.QueryContext(ctx, fmt.Sprintf(`SELECT id FROM %s WHERE vps = ? AND %s`, g.Name, g.Open), vpsID)
		ids, err := collect(rows, err, func(row scanner) (id string, err error) { return id, row.Scan(&id) })
		if err != nil {
			return err
		}
		for _, id := range ids {
			if err := setAside(ctx, t.tx, g, DamagedRow{Kind: g.Name, ID: id, VPS: vpsID, Open: true, At: t.now}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Verify compares every row that decides with its sum, and sets aside those that do not
// fit.
func (s *Store) Verify(ctx context.Context) error {
	if failed := s.failed.Load(); failed != nil {
		return *failed
	}
	var found []DamagedRow
	err := s.read(ctx, func(q queries) (err error) { found, err = findDamaged(ctx, q.q.on.(checksum.DB)); return err })
	if err != nil || len(found) == 0 {
		return s.judge(err)
	}
	return s.judge(setDamagedAside(ctx, s.writer, s.Now()))
}

// findDamaged returns the rows that do not fit their sum.
func findDamaged(ctx context.Context, db checksum.DB) ([]DamagedRow, error) {
	var all []DamagedRow
	for _, g := range checksum.Tables {
		sum, err := g.Sum(ctx, db, "r")
		if err != nil {
			return nil, err
		}
		own := checksum.Of("r", g.VPS)
		// A row whose VPS is another now is told to both, and one without its row, or without
		// its sum, too.
		rows, err := db.QueryContext(ctx, fmt.Sprintf(`
			SELECT r.id, %[2]s, coalesce(c.open, %[3]s) FROM %[1]s r LEFT JOIN checksum c ON c.kind = '%[1]s' AND c.id = r.id
			WHERE c.sum IS NOT %[4]s OR c.vps IS NOT %[2]s
			UNION SELECT r.id, c.vps, c.open FROM %[1]s r JOIN checksum c ON c.kind = '%[1]s' AND c.id = r.id
			WHERE c.sum IS NOT %[4]s OR c.vps IS NOT %[2]s
			UNION SELECT c.id, c.vps, c.open FROM checksum c
			WHERE c.kind = '%[1]s' AND NOT EXISTS (SELECT 1 FROM %[1]s r WHERE r.id = c.id)`,
			g.Name, own, checksum.Of("r", g.Open), sum))
		found, err := collect(judgedRows{rows, asItIs}, err, func(row scanner) (DamagedRow, error) {
			d := DamagedRow{Kind: g.Name}
			return d, row.Scan(&d.ID, &d.VPS, &d.Open)
		})
		if err != nil {
			return nil, fmt.Errorf("cannot verify the table %s: %w", g.Name, err)
		}
		all = append(all, found...)
	}
	return all, nil
}

// setDamagedAside moves every row that does not fit its sum. What a token has made ends with
// it; the history of an option stays without it, so foreign keys are not asked then.
func setDamagedAside(ctx context.Context, db *sql.DB, now time.Time) (err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	isToken := func(d DamagedRow) bool { return d.Kind == "token" }
	if err := setKindsAside(ctx, conn, now, isToken); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, `PRAGMA foreign_keys = OFF`); err != nil {
		return err
	}
	err = setKindsAside(ctx, conn, now, func(d DamagedRow) bool { return !isToken(d) })
	_, on := conn.ExecContext(context.WithoutCancel(ctx), `PRAGMA foreign_keys = ON`)
	return errors.Join(err, on)
}

// setKindsAside moves the damaged rows that are wanted, all or none.
func setKindsAside(ctx context.Context, conn *sql.Conn, now time.Time, wanted func(DamagedRow) bool) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	found, err := findDamaged(ctx, tx)
	if err != nil {
		return err
	}
	for _, d := range found {
		for _, g := range checksum.Tables {
			if d.At = now; g.Name != d.Kind || !wanted(d) {
				continue
			}
			if err := setAside(ctx, tx, g, d); err != nil {
				return fmt.Errorf("cannot set aside the damaged %s %s: %w", d.Kind, d.ID, err)
			}
		}
	}
	return tx.Commit()
}

// setAside moves one row, as it is, with its parts. It may be there no more.
func setAside(ctx context.Context, tx checksum.DB, g checksum.Table, d DamagedRow) error {
	content, err := checksum.Content(ctx, tx, g.Name, "r")
	if err != nil {
		return err
	}
	statements := []string{
		fmt.Sprintf(`INSERT OR REPLACE INTO damaged VALUES (?1, ?2, ?3, ?4, ?5,
			coalesce((SELECT content FROM damaged WHERE kind = ?1 AND id = ?2), (SELECT %s FROM %s r WHERE id = ?2), ''))`,
			content, g.Name),
	}
	if g.Parts != "" {
		part, err := checksum.Content(ctx, tx, g.Parts, "p")
		if err != nil {
			return err
		}
		statements = append(statements,
			fmt.Sprintf(`UPDATE damaged SET content = content || coalesce((SELECT group_concat(%s, '') FROM %s p WHERE %s = ?2), '')
				WHERE kind = ?1 AND id = ?2 AND vps = ?3`, part, g.Parts, g.Name),
			fmt.Sprintf(`DELETE FROM %s WHERE %s = ?2`, g.Parts, g.Name))
	}
	if g.Name == "option" {
		statements = append(statements, `DELETE FROM reminder WHERE option = ?2`)
	}
	statements = append(statements,
		fmt.Sprintf(`DELETE FROM %s WHERE id = ?2`, g.Name),
		`DELETE FROM checksum WHERE kind = ?1 AND id = ?2`)
	if g.Name == "token" { // before a migration no trigger does it for those that it has made
		statements = append(statements, `DELETE FROM checksum WHERE kind = ?1 AND id NOT IN (SELECT id FROM token)`)
	}
	for _, statement := range statements {
		args := []any{d.Kind, d.ID, d.VPS, d.Open, micros(d.At)}
		if _, err := tx.ExecContext(ctx, statement, args...); err != nil {
			return err
		}
	}
	return nil
}
