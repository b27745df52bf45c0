// Package storetest fills databases of daemon/store, to measure what reads them.
package storetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"time"
	"vpssnapd/daemon/store/checksum"
)

// dayTable has the days, oldest first, each with its time.
const dayTable = `CREATE TEMP TABLE day AS WITH RECURSIVE d (n) AS (SELECT 1 WHERE ?1 > 0 UNION ALL SELECT n + 1 FROM d WHERE n < ?1)
	SELECT n, ?2 - n * 86400000000 AS at FROM d ORDER BY n DESC`

// history fills each table: every day each VPS has its snapshot deleted and another
// taken, and once a month its option is renewed. Sizes are as the daemon writes them.
var history = []string{
	`INSERT INTO operation SELECT printf('op-%012x%08x', d.at / 1000, v.rowid), v.id, v.name, 'take', 'succeeded', 'metadata', 1, 0, 'panel', 'panel',
		printf('%06x%06x', d.n, v.rowid), d.at, d.at, d.at, '', '', '', '', CAST(printf('{%100s}', '') AS BLOB), CAST(printf('{%600s}', '') AS BLOB), 0 FROM day d, temp.host v`,
	`INSERT INTO snapshot SELECT printf('%06x%06x', d.n, v.rowid), v.id, 'gone', '', 'before the upgrade', d.at, 'crash', 0, 1048576, NULL, NULL,
		'', '', '', d.at, 0 FROM day d, temp.host v`,
	`INSERT INTO snapshot_disk SELECT id, 'vda', '/var/lib/libvirt/images/disk.qcow2', 'qcow2', 1, 1048576,
		'/var/lib/libvirt/images/disk.vpssnap-' || id || '.qcow2', 2, '', 0, 1, NULL FROM snapshot`,
	`INSERT INTO message (at, vps, vps_name, kind, actor_name, actor_way, operation, text, detail, phrase, params)
		SELECT created_at, vps, vps_name, m.column1, 'panel', 'panel', id, 'The snapshot was taken, and holds the disks as they were.', '', m.column2, '{}'
		FROM operation, (VALUES ('operation_started', 'take_started'), ('operation_succeeded', 'take_done')) m ORDER BY created_at`,
	`INSERT INTO option SELECT 'past-' || rowid, id, 'released', 'B', 299, 'EUR', 'month', '', 'en', 1, 1, 1, NULL, NULL, 1, 1 FROM temp.host`,
	`INSERT INTO option_change (vps, option, at, state, actor_name, actor_way, note)
		SELECT v.id, 'past-' || v.rowid, d.at, 'active', 'shop', 'order', '' FROM day d, temp.host v WHERE d.n % 30 = 0 ORDER BY d.n DESC`,
}

// VPS is one that has a history.
type VPS struct{ ID, Name string }

// AddHistory writes into the database of a daemon what so many days leave there. It is
// for a database without any snapshot, and for programs that link daemon/store.
func AddHistory(ctx context.Context, path string, vpses []VPS, days int) (err error) {
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?_txlock=immediate&_busy_timeout=5000")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1) // it has the temporary tables
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, `CREATE TEMP TABLE host (id TEXT, name TEXT)`); err != nil {
		return err
	}
	for _, v := range vpses {
		if _, err := tx.ExecContext(ctx, `INSERT INTO temp.host VALUES (?, ?)`, v.ID, v.Name); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, dayTable, days, time.Now().UnixMicro()); err != nil {
		return err
	}
	for _, statement := range history {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("cannot write the history: %w", err)
		}
	}
	if err := checksum.Seal(ctx, tx); err != nil {
		return fmt.Errorf("cannot write the history: %w", err)
	}
	return tx.Commit()
}
