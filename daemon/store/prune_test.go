package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"vpssnapd/daemon/vps"
)

const year = 365 * 24 * time.Hour

// longAgo is longer ago than anything is kept in these tests.
var longAgo = now.Add(-2 * year)

func prune(t *testing.T, s *Store, r Retention) {
	t.Helper()
	must(t, s.Prune(ctx, r, now))
}

// column reads what one column has, in order.
func column(t *testing.T, s *Store, query string) []string {
	t.Helper()
	rows, err := s.q.QueryContext(ctx, query)
	all, err := collect(rows, err, func(row scanner) (one string, err error) { return one, row.Scan(&one) })
	must(t, err)
	return all
}

func wantColumn(t *testing.T, s *Store, query string, want ...string) {
	t.Helper()
	if got := column(t, s, query); !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", query, got, want)
	}
}

// Operations are kept while they are not final, and then for their time; in batches, so
// that others can write meanwhile.
func TestPruneOperations(t *testing.T) {
	s, _ := fresh(t)
	add := func(tx *Tx, id, of string, status vps.Status, ended *time.Time) {
		op := operation(id, of, status)
		op.CreatedAt, op.EndedAt = longAgo, ended
		must(t, tx.InsertOperation(ctx, op))
	}
	write(t, s, func(tx *Tx) error {
		for i := range 2*pruneBatch + 1 {
			add(tx, fmt.Sprintf("old-%04d", i), "v1", vps.StatusSucceeded, &longAgo)
		}
		add(tx, "op-failed", "v1", vps.StatusFailed, &longAgo)
		add(tx, "op-new", "v1", vps.StatusCancelled, &now)
		add(tx, "op-parked", "v1", vps.StatusNeedsAttention, &longAgo)
		add(tx, "op-runs", "v2", vps.StatusRunning, nil)
		return nil
	})
	before, _ := s.Commits()
	prune(t, s, Retention{})
	if n := len(column(t, s, `SELECT id FROM operation`)); n != 2*pruneBatch+5 {
		t.Fatalf("kept for ever are %d", n)
	}
	between, _ := s.Commits()
	prune(t, s, Retention{Operations: year})
	wantColumn(t, s, `SELECT id FROM operation ORDER BY id`, "op-new", "op-parked", "op-runs")
	after, _ := s.Commits()
	if after-between < between-before+3 {
		t.Errorf("%d operations were pruned in %d transactions", 2*pruneBatch+2, after-between)
	}
}

// Of a snapshot that was merged away the record ends with its time. All others stay: they
// tell what a file is that still lies there.
func TestPruneSnapshots(t *testing.T) {
	s, _ := fresh(t)
	add := func(tx *Tx, id, of string, state vps.SnapshotState, at time.Time, pivoted bool) {
		snap := snapshot(id, of, state)
		snap.UpdatedAt, snap.UndoUntil = at, nil
		snap.Disks[0].Pivoted, snap.Disks[0].Overlay = pivoted, "/d/"+id
		must(t, tx.SaveSnapshot(ctx, snap))
	}
	write(t, s, func(tx *Tx) error {
		add(tx, "merged", "v1", vps.SnapshotGone, longAgo, true)
		add(tx, "merged-now", "v1", vps.SnapshotGone, now, true)
		add(tx, "given-up", "v1", vps.SnapshotGone, longAgo, false)
		add(tx, "moved", "v1", vps.SnapshotAvailable, longAgo, true)
		must(t, tx.LetGoOfSnapshot(ctx, "moved", longAgo))
		add(tx, "had", "v1", vps.SnapshotAvailable, longAgo, true)
		add(tx, "worked-on", "v2", vps.SnapshotGone, longAgo, true)
		return tx.InsertOperation(ctx, operation("op-1", "v2", vps.StatusNeedsAttention))
	})
	prune(t, s, Retention{Operations: year, Snapshots: year})
	wantColumn(t, s, `SELECT id FROM snapshot ORDER BY id`, "given-up", "had", "merged-now", "moved", "worked-on")
	wantColumn(t, s, `SELECT snapshot FROM snapshot_disk ORDER BY snapshot`, "given-up", "had", "merged-now", "worked-on")
	left, err := s.OverlaysLeft(ctx)
	if err != nil || !slices.Equal(left, []string{"/d/given-up"}) {
		t.Errorf("files that may lie there are %q (%v)", left, err)
	}
	if _, err := s.Snapshot(ctx, "merged"); !errors.Is(err, sql.ErrNoRows) {
		t.Errorf("the merged one is known still: %v", err)
	}
}

// An option that is open keeps its last change, however old; one that is released goes
// with everything of it.
func TestPruneOptions(t *testing.T) {
	s, _ := fresh(t)
	save := func(tx *Tx, id, of string, state vps.OptionState, at time.Time, note string) {
		o := vps.Option{ID: id, VPS: of, State: state, OrderRef: id, OrderedAt: longAgo, UpdatedAt: at}
		must(t, tx.SaveOption(ctx, o, vps.Actor{}, note))
	}
	write(t, s, func(tx *Tx) error {
		save(tx, "over", "v1", vps.OptionActive, longAgo, "over")
		save(tx, "over", "v1", vps.OptionReleased, longAgo, "released long ago")
		save(tx, "ended", "v1", vps.OptionActive, longAgo, "ended")
		save(tx, "ended", "v1", vps.OptionReleased, now, "released now")
		save(tx, "open", "v1", vps.OptionOrdered, longAgo, "ordered")
		save(tx, "open", "v1", vps.OptionActive, longAgo, "activated")
		for _, id := range []string{"over", "open"} {
			if _, err := tx.AddReminder(ctx, id, "ends", now); err != nil {
				return err
			}
		}
		return nil
	})
	prune(t, s, Retention{OptionHistory: year})
	wantColumn(t, s, `SELECT id FROM option ORDER BY id`, "ended", "open")
	wantColumn(t, s, `SELECT note FROM option_change ORDER BY id`, "released now", "activated")
	wantColumn(t, s, `SELECT option FROM reminder`, "open")
	page, err := s.OptionHistory(ctx, vps.OptionQuery{VPS: "v1", Limit: 10})
	if err != nil || len(page.Changes) != 2 || page.Changes[0].Option != "open" {
		t.Errorf("the history is %+v (%v)", page, err)
	}
}

// When every message is pruned, the database is no old copy for that.
func TestPruneMessages(t *testing.T) {
	s, path := fresh(t)
	write(t, s, func(tx *Tx) error { return tx.AddMessage(ctx, vps.Message{At: longAgo, VPS: "v1", Text: "x"}) })
	prune(t, s, Retention{Operations: year, Snapshots: year, OptionHistory: year, Events: year})
	if n := len(column(t, s, `SELECT id FROM message`)); n != 1 {
		t.Fatalf("without being asked it has pruned: %d", n)
	}
	must(t, s.Prune(ctx, Retention{Messages: year}, time.Now().Add(2*year)))
	wantColumn(t, s, `SELECT id FROM message`)
	must(t, s.Close())
	s = open(t, path)
	if s.Outdated() {
		t.Error("it is taken for an old copy")
	}
	write(t, s, func(tx *Tx) error { return tx.AddMessage(ctx, vps.Message{VPS: "v1", Text: "x"}) })
	wantColumn(t, s, `SELECT id FROM message`, "2")
}

// No more events are kept than the API says, however new they are.
func TestPruneEventsAboveTheMost(t *testing.T) {
	s, _ := fresh(t)
	write(t, s, func(tx *Tx) error {
		return tx.exec(ctx, `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
			INSERT INTO event (id, at, type, vps, vps_name, data) SELECT i, ?, '', '', '', '{}' FROM n`, eventsKept+pruneBatch+7, micros(now))
	})
	prune(t, s, Retention{})
	wantColumn(t, s, `SELECT min(id) FROM event`, fmt.Sprint(pruneBatch+8))
	wantColumn(t, s, `SELECT count(*) FROM event`, fmt.Sprint(eventsKept))
}

// A name stays while anything is recorded of its VPS, or the VPS is here.
func TestPruneNames(t *testing.T) {
	s, _ := fresh(t)
	write(t, s, func(tx *Tx) error {
		for _, id := range []string{"gone", "operation", "snapshot", "given-up", "option", "message", "promise"} {
			must(t, tx.SawVPS(ctx, KnownVPS{ID: id, Name: id, LastSeen: longAgo}))
		}
		must(t, tx.SawVPS(ctx, KnownVPS{ID: "here", Name: "here", LastSeen: now}))
		must(t, tx.InsertOperation(ctx, operation("op-1", "operation", vps.StatusPending)))
		must(t, tx.SaveSnapshot(ctx, snapshot("s1", "snapshot", vps.SnapshotAvailable)))
		given := snapshot("s2", "given-up", vps.SnapshotGone)
		given.Disks[0].Pivoted = false
		must(t, tx.SaveSnapshot(ctx, given))
		must(t, tx.SaveOption(ctx, vps.Option{ID: "o1", VPS: "option", State: vps.OptionActive}, vps.Actor{}, ""))
		must(t, tx.Owe(ctx, Debt{VPS: "promise", Kind: DebtThaw, Since: longAgo}))
		return tx.AddMessage(ctx, vps.Message{VPS: "message", Text: "x"})
	})
	prune(t, s, Retention{Snapshots: year})
	if known, err := s.KnownVPSes(ctx); err != nil || len(known) != 8 {
		t.Fatalf("kept for ever are %+v (%v)", known, err)
	}
	prune(t, s, Retention{Operations: year})
	wantColumn(
		t, s, `SELECT id FROM vps ORDER BY id`, "given-up", "here", "message", "operation", "option", "promise",
		"snapshot",
	)
}

// What has a time of its own needs no setting: deliveries that have ended, answers to
// calls, links to downloads and images of snapshots that are gone.
func TestPruneWhatHasExpired(t *testing.T) {
	s, _ := fresh(t)
	link := func(tx *Tx, id, of string, until time.Time) {
		must(t, tx.AddDownload(ctx, vps.Download{ID: id, VPS: "v1", SnapshotID: of, Disk: "vda", Format: vps.FormatRaw,
			CreatedAt: longAgo, ExpiresAt: until, Image: vps.Image{Map: []byte{1}}}))
	}
	write(t, s, func(tx *Tx) error {
		for i, ended := range []any{nil, micros(now), micros(longAgo)} {
			must(t, tx.exec(ctx, `INSERT INTO delivery (id, kind, target, vps, payload, created_at, next_at, ended_at)
				VALUES (?, 'mail', '', '', x'', 0, 0, ?)`, fmt.Sprint("d", i), ended))
		}
		for id, at := range map[string]time.Time{"a0": now, "a1": longAgo} {
			must(
				t,
				tx.exec(ctx, `INSERT INTO answer (client, key, sum, at, answer) VALUES (?, '', x'', ?, x'')`, id, micros(at)),
			)
		}
		must(t, tx.SaveSnapshot(ctx, snapshot("s1", "v1", vps.SnapshotAvailable)))
		must(t, tx.SaveSnapshot(ctx, snapshot("s2", "v2", vps.SnapshotAvailable)))
		link(tx, "l0", "s1", later)
		link(tx, "l1", "s1", longAgo)
		link(tx, "l2", "s2", later)
		return tx.SaveSnapshot(ctx, snapshot("s2", "v2", vps.SnapshotGone))
	})
	prune(t, s, Retention{})
	wantColumn(t, s, `SELECT id FROM delivery ORDER BY id`, "d0", "d1")
	wantColumn(t, s, `SELECT client FROM answer`, "a0")
	wantColumn(t, s, `SELECT id FROM download`, "l0")
	wantColumn(t, s, `SELECT snapshot FROM image`, "s1")
}

// A daemon that is stopped does not wait for what is left to prune.
func TestPruneEndsWithItsContext(t *testing.T) {
	s, _ := fresh(t)
	write(t, s, func(tx *Tx) error { return tx.AddMessage(ctx, vps.Message{At: longAgo, Text: "x"}) })
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Prune(ended, Retention{Messages: year}, now); !errors.Is(err, context.Canceled) {
		t.Errorf("it ends with %v", err)
	}
	wantColumn(t, s, `SELECT count(*) FROM message`, "1")
}
