package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Retention is how long what is over stays in the record; 0: for ever.
type Retention struct {
	// Operations that are final, and the names of VPSes of which there is nothing more.
	Operations time.Duration
	// Snapshots that were deleted. The record of one that was given up, or that went to
	// another host, stays: without it nobody could tell what its files are.
	Snapshots time.Duration
	// OptionHistory is of the changes of options, and of options that are released. The
	// last change of each option that is open stays.
	OptionHistory time.Duration
	// Messages of the journal.
	Messages time.Duration
	// Events, of which the newest 50,000 are kept at most.
	Events time.Duration
}

// ofOneVPS is how much of the history of one VPS is kept at most, whatever the times say: the
// calls of one customer must not fill the record. With one take a day, of some 7 messages,
// it is that of years.
var ofOneVPS = []struct {
	table string
	only  string // which of its rows count
	most  int
	prune func(vpsID string, most int) pruning
}{
	{"message", "", 20_000, oldestOf("message", "")},
	{"operation", "", 5_000, oldestOf("operation", "AND +status IN ('succeeded', 'failed', 'cancelled')")},
	{"option_change", "", 5_000, oldestOf("option_change",
		"AND id < (SELECT max(id) FROM option_change l WHERE l.option = option_change.option)")},
	{"option", "", 1_000, func(vpsID string, most int) pruning {
		return removeOptions(`SELECT id FROM (SELECT id FROM option WHERE vps = ? AND state = 'released'
			ORDER BY updated_at DESC LIMIT -1 OFFSET ?) LIMIT ?`, vpsID, most)
	}},
	{"snapshot", " AND state = 'gone'", 1_000, func(vpsID string, most int) pruning {
		return removeSnapshots(`SELECT id FROM (SELECT * FROM snapshot WHERE vps = ? AND state = 'gone'
			ORDER BY updated_at DESC LIMIT -1 OFFSET ?) snapshot WHERE `+mergedAway, vpsID, most)
	}},
}

// oldestOf is the pruning of the oldest rows of a VPS, as far as they may go.
func oldestOf(table, over string) func(vpsID string, most int) pruning {
	return func(vpsID string, most int) pruning {
		return remove(`DELETE FROM `+table+` WHERE id IN (SELECT id FROM `+table+` WHERE vps = ?1 AND id <=
			(SELECT id FROM `+table+` WHERE vps = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2) `+over+` ORDER BY id LIMIT ?3)`,
			vpsID, most)
	}
}

// pruneAbove prunes each VPS that has more than it may. That is found out before anything
// is written.
func (s *Store) pruneAbove(ctx context.Context) error {
	known, err := s.KnownVPSes(ctx)
	if err != nil {
		return err
	}
	for id := range known {
		for _, of := range ofOneVPS {
			var n int
			err := s.q.QueryRowContext(ctx, `SELECT count(*) FROM `+of.table+` WHERE vps = ?`+of.only, id).Scan(&n)
			if err == nil && n > of.most {
				err = s.pruneAll(ctx, of.prune(id, of.most))
			}
			if err != nil {
				return fmt.Errorf("cannot prune the %ss of VPS %s: %w", of.table, id, err)
			}
		}
	}
	return nil
}

// pruneBatch is how many rows a transaction prunes, so that the others who write wait
// for a moment only.
const pruneBatch = 200

// pruning removes a batch of one kind of rows, and returns how many there were.
type pruning func(ctx context.Context, t *Tx) (int64, error)

// Prune removes what is over for longer than it is to be kept, until nothing is left of
// it or ctx ends. What is not final is never removed. Who calls it has noted before with
// SawVPS which VPSes are here. In small transactions: the bench has a year of history of
// 500 VPSes, and takes go on meanwhile (FAULTS.md, row 45).
func (s *Store) Prune(ctx context.Context, r Retention, now time.Time) error {
	for _, one := range []struct {
		what  string
		keep  time.Duration
		prune func(before int64) pruning
	}{
		{"operations", r.Operations, pruneOperations},
		{"snapshots", r.Snapshots, pruneSnapshots},
		{"changes of options", r.OptionHistory, pruneOptionChanges},
		{"options", r.OptionHistory, pruneOptions},
		{"messages", r.Messages, pruneMessages},
		{"events", r.Events, pruneEvents},
		{"deliveries", endedKept, pruneDeliveries},
		{"answers", answersKept, pruneAnswers},
		{"names", r.Operations, pruneNames}, // after everything that has a VPS
	} {
		if one.keep == 0 {
			continue
		}
		if err := s.pruneAll(ctx, one.prune(micros(now.Add(-one.keep)))); err != nil {
			return fmt.Errorf("cannot prune the %s of the record: %w", one.what, err)
		}
	}
	if err := s.pruneAll(ctx, pruneEventsAbove(eventsKept)); err != nil {
		return fmt.Errorf("cannot prune the events of the record: %w", err)
	}
	if err := s.pruneAbove(ctx); err != nil {
		return err
	}
	err := s.Write(ctx, func(tx *Tx) error { return tx.forgetDownloads(ctx, now) })
	if err != nil {
		return fmt.Errorf("cannot prune the downloads of the record: %w", err)
	}
	return nil
}

// pruneAll prunes batch by batch. Between two of them others can write.
func (s *Store) pruneAll(ctx context.Context, prune pruning) error {
	for {
		var n int64
		err := s.Write(ctx, func(tx *Tx) (err error) { n, err = prune(ctx, tx); return err })
		if err != nil || n < pruneBatch {
			return err
		}
	}
}

// remove is the pruning by one statement, whose last parameter is the size of a batch.
func remove(statement string, args ...any) pruning {
	return func(ctx context.Context, t *Tx) (int64, error) {
		res, err := t.tx.ExecContext(ctx, statement, append(args, pruneBatch)...)
		if err != nil {
			return 0, err
		}
		return res.RowsAffected()
	}
}

func pruneOperations(before int64) pruning {
	return remove(`DELETE FROM operation WHERE id IN (SELECT id FROM operation
		WHERE ended_at < ? AND +status IN ('succeeded', 'failed', 'cancelled') LIMIT ?)`, before)
}

// pruneSnapshots removes the records of those whose overlays were merged away, and which
// no operation works on any more. The record is what tells that such an overlay is stale,
// when it is there all the same: without it nobody says so of the file.
func pruneSnapshots(before int64) pruning {
	return removeSnapshots(`SELECT id FROM snapshot WHERE state = 'gone' AND updated_at < ? AND `+mergedAway, before)
}

const mergedAway = `EXISTS (SELECT 1 FROM snapshot_disk d WHERE d.snapshot = snapshot.id)
	AND NOT EXISTS (SELECT 1 FROM snapshot_disk d WHERE d.snapshot = snapshot.id AND NOT d.pivoted)
	AND NOT EXISTS (SELECT 1 FROM operation o WHERE o.vps = snapshot.vps AND o.status IN ('pending', 'running', 'needs_attention'))
	LIMIT ?`

func removeSnapshots(find string, args ...any) pruning {
	return removeWith(find, args,
		`DELETE FROM snapshot_disk WHERE snapshot IN (SELECT value FROM json_each(?))`,
		`DELETE FROM snapshot WHERE id IN (SELECT value FROM json_each(?))`)
}

// pruneOptionChanges removes all but the last change of each option.
func pruneOptionChanges(before int64) pruning {
	return remove(`DELETE FROM option_change WHERE id IN (SELECT id FROM option_change c
		WHERE at < ? AND id < (SELECT max(id) FROM option_change l WHERE l.option = c.option) LIMIT ?)`, before)
}

// pruneOptions removes options that are released, with what hangs on them.
func pruneOptions(before int64) pruning {
	return removeOptions(`SELECT id FROM option WHERE state = 'released' AND updated_at < ? LIMIT ?`, before)
}

func removeOptions(find string, args ...any) pruning {
	return removeWith(find, args,
		`DELETE FROM reminder WHERE option IN (SELECT value FROM json_each(?))`,
		`DELETE FROM option_change WHERE option IN (SELECT value FROM json_each(?))`,
		`DELETE FROM option WHERE id IN (SELECT value FROM json_each(?))`)
}

func pruneMessages(before int64) pruning {
	return remove(`DELETE FROM message WHERE id IN (SELECT id FROM message WHERE at < ? LIMIT ?)`, before)
}

func pruneEvents(before int64) pruning {
	return remove(`DELETE FROM event WHERE id IN (SELECT id FROM event WHERE at < ? LIMIT ?)`, before)
}

// pruneEventsAbove removes the oldest events when there are more than a number.
func pruneEventsAbove(most int64) pruning {
	return remove(`DELETE FROM event WHERE id IN (SELECT id FROM event
		WHERE id <= (SELECT max(id) FROM event) - ? ORDER BY id LIMIT ?)`, most)
}

func pruneDeliveries(before int64) pruning {
	return remove(`DELETE FROM delivery WHERE id IN (SELECT id FROM delivery WHERE ended_at < ? LIMIT ?)`, before)
}

func pruneAnswers(before int64) pruning {
	return remove(`DELETE FROM answer WHERE rowid IN (SELECT rowid FROM answer WHERE at < ? LIMIT ?)`, before)
}

// pruneNames removes the names of VPSes that are not here any more, and of which nothing
// is recorded that anybody could ask about, or that files may be left of.
func pruneNames(before int64) pruning {
	return remove(`DELETE FROM vps WHERE id IN (SELECT id FROM vps v WHERE last_seen < ?
		AND NOT EXISTS (SELECT 1 FROM option o WHERE o.vps = v.id)
		AND NOT EXISTS (SELECT 1 FROM snapshot s WHERE s.vps = v.id AND s.state <> 'gone')
		AND id NOT IN (SELECT s.vps FROM snapshot_disk d CROSS JOIN snapshot s ON s.id = d.snapshot WHERE NOT d.pivoted)
		AND NOT EXISTS (SELECT 1 FROM operation o WHERE o.vps = v.id)
		AND NOT EXISTS (SELECT 1 FROM message m WHERE m.vps = v.id)
		AND NOT EXISTS (SELECT 1 FROM promise p WHERE p.vps = v.id) LIMIT ?)`, before)
}

// removeWith is the pruning of rows that others hang on: their ids are found first, and
// handed to each statement as a JSON array.
func removeWith(find string, args []any, statements ...string) pruning {
	return func(ctx context.Context, t *Tx) (int64, error) {
		rows, err := t.q.QueryContext(ctx, find, append(slices.Clone(args), pruneBatch)...)
		ids, err := collect(rows, err, func(row scanner) (id string, err error) { return id, row.Scan(&id) })
		if err != nil || len(ids) == 0 {
			return 0, err
		}
		list, err := json.Marshal(ids)
		if err != nil {
			return 0, err
		}
		for _, statement := range statements {
			if err := t.exec(ctx, statement, string(list)); err != nil {
				return 0, err
			}
		}
		return int64(len(ids)), nil
	}
}
