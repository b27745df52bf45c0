package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"vpssnapd/daemon/vps"
)

// answered makes a call with a key, whose answer has so many bytes.
func answered(t *testing.T, s *Store, owner, client, key string, result any, bytes int) {
	t.Helper()
	c := vps.Call{Client: client, Owner: owner, Key: key, Record: func(any) ([]byte, error) {
		return []byte(strings.Repeat("x", bytes)), nil
	}}
	must(t, s.KeepAnswer(vps.WithCall(ctx, c), result))
}

// Kept answers are bounded in number and bytes, by token with what it has made, and by VPS;
// the oldest go first, and none whose operation still runs.
func TestAnswersAreBounded(t *testing.T) {
	for _, c := range []struct {
		what  string
		calls int
		bytes int
		want  int
		of    func(i int) (owner, client string, result any)
	}{
		{"many", 2 * answersAtMost, 100, answersAtMost, func(int) (string, string, any) {
			return "a", "a", vps.Snapshot{VPS: "v1"}
		}},
		{"long ones", 40, answerBytes / 10, 9, func(int) (string, string, any) { return "a", "a", vps.Option{VPS: "v1"} }},
		{"one that is too long", 1, 2 * answerBytes, 0, func(int) (string, string, any) {
			return "a", "a", vps.Download{VPS: "v1"}
		}},
		{"without a VPS", 2 * answersAtMost, 100, answersAtMost, func(int) (string, string, any) { return "a", "a", nil }},
		{"by child tokens", 2 * answersAtMost, 100, answersAtMost, func(i int) (string, string, any) {
			return "a", fmt.Sprint("child", i), vps.Snapshot{VPS: "v1"}
		}},
		{"of two VPSes", 2 * answersAtMost, 100, 2 * answersAtMost, func(i int) (string, string, any) {
			return "a", "a", vps.Snapshot{VPS: fmt.Sprint("v", i%2)}
		}},
		{"of two tokens", 2 * answersAtMost, 100, 2 * answersAtMost, func(i int) (string, string, any) {
			return fmt.Sprint(i % 2), fmt.Sprint(i % 2), vps.Snapshot{VPS: "v1"}
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			s, _ := fresh(t)
			must(t, s.Write(ctx, func(tx *Tx) error {
				must(t, tx.InsertOperation(ctx, operation("op-runs", "v1", vps.StatusRunning)))
				return tx.InsertOperation(ctx, operation("op-over", "v9", vps.StatusSucceeded))
			}))
			answered(t, s, "a", "a", "runs", vps.Operation{ID: "op-runs", VPS: "v1"}, 10)
			answered(t, s, "a", "a", "over", vps.Operation{ID: "op-over", VPS: "v1"}, 10)
			for i := range c.calls {
				owner, client, result := c.of(i)
				answered(t, s, owner, client, fmt.Sprintf("key-%04d", i), result, c.bytes)
			}
			keys := column(t, s, `SELECT key FROM answer WHERE key LIKE 'key-%' ORDER BY key`)
			if n := len(keys); n > c.want || n < c.want-2 {
				t.Errorf("%d answers are kept, and not %d", n, c.want)
			}
			if newest := fmt.Sprintf("key-%04d", c.calls-1); c.want > 0 && !slices.Contains(keys, newest) {
				t.Error("the newest is not kept")
			}
			if kept := column(t, s, `SELECT key FROM answer WHERE key = 'runs'`); len(kept) != 1 {
				t.Error("the answer of an operation that runs is gone")
			}
		})
	}
}

// Of one VPS only so much waits for a target: the news of others find room.
func TestDeliveriesOfOneVPS(t *testing.T) {
	s, _ := fresh(t)
	add := func(vpsID string, n int) {
		must(t, s.Write(ctx, func(tx *Tx) error {
			for range n {
				d := vps.Delivery{Kind: vps.DeliveryWebhook, Target: "wh-1", VPS: vpsID, Payload: []byte("{}"), CreatedAt: now}
				must(t, tx.AddDelivery(ctx, d))
			}
			return nil
		}))
	}
	add("v1", mostWaitingOfOne+50)
	add("v2", 1)
	wantColumn(t, s, `SELECT vps || ' ' || count(*) FROM delivery GROUP BY vps ORDER BY vps`,
		fmt.Sprint("v1 ", mostWaitingOfOne), "v2 1")
	if n := s.DroppedDeliveries(vps.DeliveryWebhook); n != 50 {
		t.Errorf("%d are counted as dropped", n)
	}
}

// The history of one VPS is bounded by number, whatever its age; what is not over stays.
func TestHistoryOfOneVPSIsBounded(t *testing.T) {
	s, _ := fresh(t)
	fill := func(query string, args ...any) {
		must(t, s.Write(ctx, func(tx *Tx) error { return tx.exec(ctx, query, args...) }))
	}
	must(t, s.Write(ctx, func(tx *Tx) error {
		must(t, tx.InsertOperation(ctx, operation("op-0", "v2", vps.StatusNeedsAttention)))
		must(t, tx.InsertOperation(ctx, operation("op-1", "v1", vps.StatusSucceeded)))
		snap := snapshot("s-0", "v1", vps.SnapshotGone)
		snap.Disks[0].Pivoted = true
		return tx.SaveSnapshot(ctx, snap)
	}))
	must(t, s.Write(ctx, func(tx *Tx) error {
		return tx.SawVPS(ctx, KnownVPS{ID: "v1", Name: "web1", LastSeen: now})
	}))
	const many = `WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?1) `
	fill(many+`INSERT INTO message (at, vps, vps_name, kind, actor_name, actor_way, operation, text, detail)
		SELECT ?2, CASE n WHEN 1 THEN 'v2' ELSE 'v1' END, '', 'warning', '', 'panel', '', '', '' FROM n`, 20_300, micros(now))
	fill(many+`INSERT INTO operation SELECT 'op-2' || printf('%06d', n), vps, vps_name, kind, status, step, irrevocable,
		cancel_requested, actor_name, actor_way, snapshot, created_at, started_at, ?2, error_code, error_detail,
		error_remedy, result, request, plan, longest_pause_ms FROM n, operation WHERE id = 'op-1'`, 5_300, micros(now))
	fill(many+`INSERT INTO option SELECT 'opt-' || n, 'v1', CASE n WHEN 1 THEN 'active' ELSE 'released' END, '', 1, 'EUR',
		'month', '', '', ?2, NULL, NULL, NULL, NULL, NULL, ?2 + n FROM n`, 1_300, micros(now))
	fill(many+`INSERT INTO option_change (option, at, state, actor_name, actor_way, note, vps)
		SELECT 'opt-1', ?2, 'active', '', 'order', '', 'v1' FROM n`, 5_300, micros(now))
	fill(many+`INSERT INTO snapshot (id, vps, state, reason, description, created_at, consistency, freeze_ms, size_bytes, nvram,
		nvram_saved, nvram_undo, updated_at) SELECT 's-' || n, 'v1', 'gone', '', '', ?2, '', 0, 0, '', '', '', ?2 + n FROM n`,
		1_300, micros(now))
	fill(`INSERT INTO snapshot_disk SELECT s.id, target, base, base_format, base_inode, d.size_bytes, overlay, overlay_inode, undo,
		undo_inode, s.id <> 's-2', base_modified FROM snapshot s, snapshot_disk d WHERE d.snapshot = 's-0' AND s.id <> 's-0'`)
	fill(`DELETE FROM snapshot_disk WHERE snapshot = 's-1'`)
	prune(t, s, Retention{})
	for query, want := range map[string]string{
		`SELECT count(*) FROM message WHERE vps = 'v1'`:          "20000",
		`SELECT count(*) FROM message WHERE vps = 'v2'`:          "1",
		`SELECT max(id) FROM message`:                            "20300",
		`SELECT count(*) FROM operation WHERE ended_at NOT NULL`: "5000",
		`SELECT count(*) FROM snapshot`:                          "1002", // two are not known to be merged away
		`SELECT count(*) FROM option`:                            "1001",
		`SELECT state FROM option WHERE id = 'opt-1'`:            "active",
		`SELECT count(*) FROM option_change`:                     "5000",
	} {
		if got := column(t, s, query); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v, want %s", query, got, want)
		}
	}
}
