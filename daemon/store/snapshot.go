package store

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"vpssnapd/daemon/vps"
)

const snapshotColumns = `id, vps, state, reason, description, created_at, consistency, freeze_ms, size_bytes,
	restored_at, undo_until, nvram, nvram_saved, nvram_undo, updated_at, heals`

func scanSnapshot(row scanner) (vps.Snapshot, error) {
	var s vps.Snapshot
	err := row.Scan(&s.ID, &s.VPS, &s.State, &s.Reason, &s.Description, moment{&s.CreatedAt}, &s.Consistency,
		&s.FreezeMS, &s.SizeBytes, momentOrNil{&s.RestoredAt}, momentOrNil{&s.UndoUntil},
		&s.NVRAM, &s.NVRAMSaved, &s.NVRAMUndo, moment{&s.UpdatedAt}, &s.Heals)
	return s, err
}

// Snapshot returns one snapshot with its disks; sql.ErrNoRows when there is none.
func (s queries) Snapshot(ctx context.Context, id string) (vps.Snapshot, error) {
	snap, err := scanSnapshot(s.q.QueryRowContext(ctx, `SELECT `+snapshotColumns+` FROM snapshot WHERE id = ?`, id))
	if err != nil {
		return snap, err
	}
	return s.withDisks(ctx, snap)
}

// CurrentSnapshot returns the snapshot that a VPS has, as a customer counts:
// the usable one, else the one being deleted, else the one being made.
// sql.ErrNoRows when there is none.
func (s queries) CurrentSnapshot(ctx context.Context, vpsID string) (vps.Snapshot, error) {
	snap, err := scanSnapshot(s.q.QueryRowContext(ctx, `SELECT `+snapshotColumns+` FROM snapshot
		WHERE vps = ? AND state <> 'gone'
		ORDER BY CASE state WHEN 'deleting' THEN 1 WHEN 'creating' THEN 2 ELSE 0 END LIMIT 1`, vpsID))
	if err != nil {
		return snap, err
	}
	return s.withDisks(ctx, snap)
}

// Snapshots returns every snapshot that is not gone, with its disks.
func (s queries) Snapshots(ctx context.Context) ([]vps.Snapshot, error) {
	return s.SnapshotsOf(ctx, "")
}

// SnapshotsOf returns every snapshot of a VPS that is not gone, of all VPSes for "".
func (s queries) SnapshotsOf(ctx context.Context, vpsID string) ([]vps.Snapshot, error) {
	f := filter{terms: []string{"state <> 'gone'"}}
	if vpsID != "" {
		f.add("vps = ?", vpsID)
	}
	rows, err := s.q.QueryContext(ctx, `SELECT `+snapshotColumns+` FROM snapshot`+f.where()+` ORDER BY created_at`, f.args...)
	all, err := collect(rows, err, scanSnapshot)
	if err != nil {
		return nil, err
	}
	return all, s.readDisks(ctx, all)
}

// CountWithSnapshot counts the VPSes that have one which is not gone.
func (s queries) CountWithSnapshot(ctx context.Context) (n int, err error) {
	err = s.q.QueryRowContext(ctx, `SELECT count(DISTINCT vps) FROM snapshot WHERE state <> 'gone'`).Scan(&n)
	return n, err
}

// EndedUndos returns the snapshots for which an undo is kept whose time is over.
func (s queries) EndedUndos(ctx context.Context, now time.Time) ([]vps.Snapshot, error) {
	rows, err := s.q.QueryContext(ctx, `SELECT `+snapshotColumns+` FROM snapshot
		WHERE state <> 'gone' AND undo_until IS NOT NULL AND undo_until <= ?`, micros(now))
	all, err := collect(rows, err, scanSnapshot)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return all, s.readDisks(ctx, all)
}

// OverlaysLeft returns the overlays of snapshots that are gone without having been
// merged: what is left of them may still lie there. (CROSS JOIN is an order to SQLite:
// few disks are not merged, and most snapshots are gone.)
func (s queries) OverlaysLeft(ctx context.Context) ([]string, error) {
	rows, err := s.q.QueryContext(ctx, `SELECT overlay FROM snapshot_disk d CROSS JOIN snapshot s ON s.id = d.snapshot
		WHERE NOT d.pivoted AND s.state = 'gone'`)
	return collect(rows, err, func(row scanner) (path string, err error) { return path, row.Scan(&path) })
}

func (s queries) withDisks(ctx context.Context, snap vps.Snapshot) (vps.Snapshot, error) {
	one := []vps.Snapshot{snap}
	err := s.readDisks(ctx, one)
	return one[0], err
}

// readDisks reads the disks of all these snapshots in one query.
func (s queries) readDisks(ctx context.Context, all []vps.Snapshot) error {
	at := map[string]int{}
	for i, snap := range all {
		at[snap.ID] = i
	}
	ids, err := json.Marshal(slices.Collect(maps.Keys(at)))
	if err != nil {
		return err
	}
	rows, err := s.q.QueryContext(
		ctx,
		`SELECT snapshot, target, base, base_format, base_inode, size_bytes, overlay, overlay_inode,
		undo, undo_inode, pivoted, base_modified FROM snapshot_disk WHERE snapshot IN (SELECT value FROM json_each(?)) ORDER BY target`,
		string(ids),
	)
	_, err = collect(rows, err, func(row scanner) (d vps.SnapshotDisk, err error) {
		var id string
		err = row.Scan(
			&id, &d.Target, &d.Base, &d.BaseFormat, inode{&d.BaseInode}, &d.SizeBytes, &d.Overlay,
			inode{&d.OverlayInode}, &d.Undo, inode{&d.UndoInode}, &d.Pivoted, fileTime{&d.BaseModified},
		)
		if snap := &all[at[id]]; err == nil {
			snap.Disks = append(snap.Disks, d)
		}
		return d, err
	})
	return err
}

// SaveSnapshot inserts or updates a snapshot and all its disks. The description
// is inserted only: an operation that has read it long ago must not take back
// what DescribeSnapshot wrote meanwhile.
func (t *Tx) SaveSnapshot(ctx context.Context, s vps.Snapshot) error {
	if err := t.tellSnapshot(ctx, s); err != nil {
		return err
	}
	err := t.exec(
		ctx,
		`INSERT INTO snapshot (`+snapshotColumns+`) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)
		ON CONFLICT (id) DO UPDATE SET state = excluded.state, reason = excluded.reason, created_at = excluded.created_at, consistency = excluded.consistency,
		freeze_ms = excluded.freeze_ms, size_bytes = excluded.size_bytes, restored_at = excluded.restored_at,
		undo_until = excluded.undo_until, nvram = excluded.nvram, nvram_saved = excluded.nvram_saved,
		nvram_undo = excluded.nvram_undo, updated_at = excluded.updated_at, heals = excluded.heals`,
		s.ID,
		s.VPS,
		s.State,
		s.Reason,
		s.Description,
		micros(s.CreatedAt),
		s.Consistency,
		s.FreezeMS,
		s.SizeBytes,
		microsOrNull(
			s.RestoredAt,
		),
		microsOrNull(s.UndoUntil),
		s.NVRAM,
		s.NVRAMSaved,
		s.NVRAMUndo,
		micros(s.UpdatedAt),
		s.Heals,
	)
	if err != nil {
		return err
	}
	for _, d := range s.Disks {
		err := t.exec(ctx, `INSERT OR REPLACE INTO snapshot_disk (snapshot, target, base, base_format, base_inode, size_bytes,
			overlay, overlay_inode, undo, undo_inode, pivoted, base_modified) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)`,
			s.ID, d.Target, d.Base, d.BaseFormat, int64(d.BaseInode), d.SizeBytes,
			d.Overlay, int64(d.OverlayInode), d.Undo, int64(d.UndoInode), d.Pivoted, nanosOrNull(d.BaseModified))
		if err != nil {
			return err
		}
	}
	return nil
}

// RenameDisks records the names that the disks of a snapshot have now, for what is kept of
// each disk by its name too. A disk is the same by its overlay; two may swap their names.
func (t *Tx) RenameDisks(ctx context.Context, was, now vps.Snapshot) error {
	names := map[string]string{}
	for _, disk := range was.Disks {
		names[disk.Overlay] = disk.Target
	}
	for _, table := range []string{"image", "download"} {
		for _, disk := range now.Disks {
			err := t.exec(ctx, `UPDATE `+table+` SET disk = ':' || ? WHERE snapshot = ? AND disk = ?`,
				disk.Target, now.ID, names[disk.Overlay])
			if err != nil {
				return err
			}
		}
		if err := t.exec(ctx, `UPDATE `+table+` SET disk = substr(disk, 2) WHERE snapshot = ? AND disk LIKE ':%'`,
			now.ID); err != nil {
			return err
		}
	}
	if err := t.exec(ctx, `DELETE FROM snapshot_disk WHERE snapshot = ?`, now.ID); err != nil {
		return err
	}
	return t.SaveSnapshot(ctx, now)
}

// LetGoOfSnapshot ends the record of a snapshot that went to another host with
// its VPS, and forgets its files: they are not of this host any more.
func (t *Tx) LetGoOfSnapshot(ctx context.Context, id string, now time.Time) error {
	snap, err := t.Snapshot(ctx, id)
	if err != nil {
		return err
	}
	snap.State, snap.UndoUntil = vps.SnapshotGone, nil
	if err := t.tellSnapshot(ctx, snap); err != nil {
		return err
	}
	if err := t.exec(ctx, `DELETE FROM snapshot_disk WHERE snapshot = ?`, id); err != nil {
		return err
	}
	return t.execOne(
		ctx,
		`UPDATE snapshot SET state = 'gone', heals = 0, undo_until = NULL, nvram = '', nvram_saved = '', nvram_undo = '', updated_at = ?
		WHERE id = ?`,
		micros(now),
		id,
	)
}

// DescribeSnapshot changes the description of the snapshot that a VPS has;
// sql.ErrNoRows (wrapped) when it has none.
func (t *Tx) DescribeSnapshot(ctx context.Context, vpsID, description string, now time.Time) error {
	current, err := t.CurrentSnapshot(ctx, vpsID)
	if err != nil {
		return err
	}
	current.Description = description
	if err := t.addSnapshotEvent(ctx, vps.EventSnapshotChanged, current); err != nil {
		return err
	}
	return t.execOne(
		ctx, `UPDATE snapshot SET description = ?, updated_at = ? WHERE id = ?`, description, micros(now), current.ID,
	)
}
