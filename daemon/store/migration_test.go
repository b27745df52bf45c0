package store

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"testing/fstest"
	"time"

	"github.com/pressly/goose/v3"

	"vpssnapd/daemon/vps"
)

// before makes a database as the version with the first n migrations left it.
func before(t *testing.T, n int, fill string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.db")
	db, err := sql.Open("sqlite", dsn(path))
	must(t, err)
	names, err := fs.Glob(migrations, "migration/*.sql")
	must(t, err)
	old := fstest.MapFS{}
	for _, name := range names[:n] {
		text, err := migrations.ReadFile(name)
		must(t, err)
		old[filepath.Base(name)] = &fstest.MapFile{Data: text}
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, old)
	must(t, err)
	_, err = provider.Up(t.Context())
	must(t, err)
	_, err = db.ExecContext(t.Context(), fill)
	must(t, err)
	must(t, db.Close())
	return path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A record from before 00003: nothing of it changes, and its VPSes have names.
func TestKnownMigration(t *testing.T) {
	path := before(t, 2, `
		INSERT INTO snapshot VALUES ('0123456789ab', 'id-1', 'available', '', 'kept', 1000000, 'crash', 0, 8, NULL, NULL, '', '', '', 2000000);
		INSERT INTO snapshot_disk VALUES ('0123456789ab', 'vda', '/b', 'raw', 7, 8, '/o', 9, '', 0, 0, NULL);
		INSERT INTO snapshot VALUES ('broken', 'id-2', 'broken', 'x', '', 1000000, 'crash', 0, 8, NULL, NULL, '', '', '', 2000000);
		INSERT INTO operation VALUES ('op-1', 'id-1', 'before', 'take', 'succeeded', '', 1, 0, 'x', 'panel', '0123456789ab', 1000000, NULL, NULL, '', '', '', '', NULL, NULL);
		INSERT INTO operation VALUES ('op-2', 'id-1', 'after', 'take', 'failed', '', 1, 0, 'x', 'panel', '', 3000000, NULL, NULL, '', '', '', '', NULL, NULL);`)
	s, err := Open(t.Context(), path, nil)
	must(t, err)
	defer s.Close()
	snap, err := s.CurrentSnapshot(t.Context(), "id-1")
	must(t, err)
	if snap.ID != "0123456789ab" || snap.Description != "kept" || snap.Heals || len(snap.Disks) != 1 ||
		snap.Disks[0].BaseInode != 7 ||
		!snap.Disks[0].BaseModified.IsZero() {
		t.Errorf("the snapshot is %+v", snap)
	}
	if b, err := s.CurrentSnapshot(t.Context(), "id-2"); err != nil || !b.Heals {
		t.Errorf("what was broken until its files are back is %+v (%v)", b, err)
	}
	known, err := s.KnownVPSes(t.Context())
	must(t, err)
	if v := known["id-1"]; len(known) != 1 || v.Name != "after" || !v.LastSeen.Equal(time.UnixMicro(3000000)) {
		t.Errorf("known are %+v", known)
	}
	at := time.UnixMicro(1234567).UTC()
	snap.State, snap.Heals, snap.Disks[0].BaseModified = vps.SnapshotBroken, true, at
	must(t, s.Write(t.Context(), func(tx *Tx) error { return tx.SaveSnapshot(context.Background(), snap) }))
	again, err := s.Snapshot(t.Context(), snap.ID)
	must(t, err)
	if !again.Heals || !again.Disks[0].BaseModified.Equal(at) {
		t.Errorf("written and read: %+v", again)
	}
}

// A record from before 00004 keeps what it has, and can have tokens and answers.
func TestAccessMigration(t *testing.T) {
	path := before(t, 3, `
		INSERT INTO option VALUES ('opt-1', 'id-1', 'active', 'A-1', 299, 'EUR', 'month', '', 'en', 1000000, 1000000, NULL, NULL, NULL, NULL, 1000000);`)
	s, err := Open(t.Context(), path, nil)
	must(t, err)
	defer s.Close()
	if o, err := s.OpenOption(t.Context(), "id-1"); err != nil || o.OrderRef != "A-1" {
		t.Errorf("the option is %+v (%v)", o, err)
	}
	if all, err := s.Tokens(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("tokens: %+v (%v)", all, err)
	}
}

// A record from before 00006 keeps its events, and can have deliveries.
func TestDeliveryMigration(t *testing.T) {
	path := before(
		t, 5,
		`INSERT INTO event (at, type, vps, vps_name, data) VALUES (1000000, 'option.active', 'id-1', 'web1', '{}');`,
	)
	s, err := Open(t.Context(), path, nil)
	must(t, err)
	defer s.Close()
	if events, err := s.Events(t.Context(), 0, 10); err != nil || len(events) != 1 || events[0].VPSName != "web1" {
		t.Errorf("the events are %+v (%v)", events, err)
	}
	if queues, err := s.DeliveryQueues(t.Context()); err != nil || len(queues) != 0 {
		t.Errorf("waiting: %+v (%v)", queues, err)
	}
}

// Packages read the version of the database beside it; it is put right at each opening.
func TestSchemaIsNoted(t *testing.T) {
	path := before(t, 1, `SELECT 1`)
	note := filepath.Join(filepath.Dir(path), "schema")
	names, err := fs.Glob(migrations, "migration/*.sql")
	must(t, err)
	want := strconv.Itoa(len(names)) + "\n"
	for range 2 {
		s, err := Open(t.Context(), path, nil)
		must(t, err)
		must(t, s.Close())
		if got, err := os.ReadFile(note); err != nil || string(got) != want {
			t.Errorf("noted is %q (%v), want %q", got, err, want)
		}
		must(t, os.WriteFile(note, []byte("0\n"), 0o600))
	}
}

// A record from before 00007 keeps its options, and can have reminders: one for each end.
func TestReminderMigration(t *testing.T) {
	path := before(t, 6, `
		INSERT INTO option VALUES ('opt-1', 'id-1', 'active', 'A-1', 299, 'EUR', 'month', 'a@example.org', 'fr', 1000000, 1000000, 9000000, NULL, NULL, NULL, 1000000);`)
	s, err := Open(t.Context(), path, nil)
	must(t, err)
	defer s.Close()
	if o, err := s.OpenOption(t.Context(), "id-1"); err != nil || o.ContactEmail != "a@example.org" {
		t.Errorf("the option is %+v (%v)", o, err)
	}
	for _, c := range []struct {
		kind  string
		end   int64
		first bool
	}{{"a", 9, true}, {"a", 9, false}, {"b", 9, true}, {"a", 10, true}, {"a", 10, false}} {
		told, err := s.Reminded(t.Context(), "opt-1", c.kind, time.UnixMicro(c.end))
		must(t, err)
		var first bool
		must(t, s.Write(t.Context(), func(tx *Tx) error {
			first, err = tx.AddReminder(t.Context(), "opt-1", c.kind, time.UnixMicro(c.end))
			return err
		}))
		if first != c.first || told == c.first {
			t.Errorf("%s for %d: told before %v, first %v", c.kind, c.end, told, first)
		}
	}
}

// A record from before 00008 keeps its snapshot, of which links can be made then.
func TestDownloadMigration(t *testing.T) {
	names, err := fs.Glob(migrations, "migration/*.sql")
	must(t, err)
	path := before(t, slices.Index(names, "migration/00008_download.sql"), `
		INSERT INTO snapshot VALUES ('0123456789ab', 'id-1', 'available', '', 'kept', 1000000, 'crash', 0, 8, NULL, NULL, '', '', '', 2000000, 0);`)
	s, err := Open(t.Context(), path, nil)
	must(t, err)
	defer s.Close()
	at := time.UnixMicro(5_000_000).UTC()
	link := vps.Download{
		ID:         "dl-1",
		VPS:        "id-1",
		SnapshotID: "0123456789ab",
		Disk:       "vda",
		Format:     vps.FormatQcow2,
		FileName:   "f",
		CreatedAt:  at,
		ExpiresAt:  at.Add(time.Hour),
		Image:      vps.Image{SizeBytes: 7, Map: []byte{1}, MapName: "m"},
	}
	must(t, s.Write(t.Context(), func(tx *Tx) error {
		return errors.Join(
			tx.AddDownload(t.Context(), link), tx.AddDownloadKey(t.Context(), []byte("a")),
			tx.AddDownloadKey(t.Context(), []byte("b")), tx.SetImageSum(t.Context(), link, []byte{9}),
		)
	}))
	link.Image.SHA256 = []byte{9}
	if got, err := s.Download(t.Context(), "dl-1"); err != nil || !reflect.DeepEqual(got, link) {
		t.Errorf("written %+v\nread    %+v (%v)", link, got, err)
	}
	if key, err := s.DownloadKey(t.Context()); err != nil || string(key) != "a" {
		t.Errorf("the key is %q (%v)", key, err)
	}
	// Another link long after the first, and after the snapshot, of which nothing is left then.
	later := vps.Download{
		ID:         "dl-2",
		VPS:        "id-1",
		SnapshotID: "x",
		Disk:       "vda",
		Format:     vps.FormatRaw,
		CreatedAt:  at.Add(2 * time.Hour),
		ExpiresAt:  at.Add(3 * time.Hour),
	}
	must(t, s.Write(t.Context(), func(tx *Tx) error {
		return errors.Join(tx.LetGoOfSnapshot(t.Context(), "0123456789ab", at), tx.AddDownload(t.Context(), later))
	}))
	if _, err := s.Download(t.Context(), "dl-1"); !errors.Is(err, sql.ErrNoRows) {
		t.Errorf("the expired link: %v", err)
	}
	if _, err := s.Image(t.Context(), "0123456789ab", "vda", vps.FormatQcow2); !errors.Is(err, sql.ErrNoRows) {
		t.Errorf("the image of a snapshot that is gone: %v", err)
	}
}

// A record from before 00009 keeps its history, page by page, and finds what is open in it.
func TestHistoryMigration(t *testing.T) {
	names, err := fs.Glob(migrations, "migration/*.sql")
	must(t, err)
	path := before(t, slices.Index(names, "migration/00009_history.sql"), `
		INSERT INTO option VALUES ('opt-1', 'id-1', 'released', 'A-1', 299, 'EUR', 'month', '', 'en', 1, 1, 2, NULL, NULL, 3, 3);
		INSERT INTO option VALUES ('opt-2', 'id-1', 'active', 'A-2', 299, 'EUR', 'month', '', 'en', 4, 4, 9000000, NULL, NULL, NULL, 4);
		INSERT INTO option VALUES ('opt-3', 'id-2', 'grace', 'A-3', 299, 'EUR', 'month', '', 'en', 4, 4, 5, NULL, 8000000, NULL, 5);
		INSERT INTO option_change (option, at, state, actor_name, actor_way, note) VALUES
			('opt-1', 1, 'active', 'x', 'order', 'first'), ('opt-3', 4, 'active', 'x', 'order', 'other'),
			('opt-1', 3, 'released', 'x', 'expiry', 'second'), ('opt-2', 4, 'active', 'x', 'order', 'third');
		INSERT INTO snapshot VALUES ('past', 'id-1', 'gone', '', '', 1, 'crash', 0, 8, NULL, NULL, '', '', '', 2, 0);
		INSERT INTO snapshot_disk VALUES ('past', 'vda', '/b', 'raw', 7, 8, '/past', 9, '', 0, 1, NULL);
		INSERT INTO snapshot VALUES ('lost', 'id-1', 'gone', '', '', 1, 'crash', 0, 8, NULL, NULL, '', '', '', 2, 0);
		INSERT INTO snapshot_disk VALUES ('lost', 'vda', '/b', 'raw', 7, 8, '/lost', 9, '', 0, 0, NULL);
		INSERT INTO snapshot VALUES ('here', 'id-1', 'available', '', '', 1, 'crash', 0, 8, 2, 7000000, '', '', '', 2, 0);
		INSERT INTO snapshot_disk VALUES ('here', 'vda', '/b', 'raw', 7, 8, '/here', 9, '', 0, 0, NULL);`)
	s := open(t, path)
	for before, want := range map[int64][]string{0: {"third", "second"}, 3: {"first"}} {
		page, err := s.OptionHistory(ctx, vps.OptionQuery{VPS: "id-1", Before: before, Limit: 2})
		must(t, err)
		var notes []string
		for _, c := range page.Changes {
			notes = append(notes, c.Note)
		}
		if !slices.Equal(notes, want) {
			t.Errorf("before %d: %q, want %q", before, notes, want)
		}
	}
	for _, want := range []int64{7_000_000, 8_000_000, 9_000_000} {
		next, err := s.NextDeadline(ctx)
		if err != nil || next == nil || next.UnixMicro() != want {
			t.Errorf("the next deadline is %v (%v), want %d", next, err, want)
		}
		must(t, s.Write(ctx, func(tx *Tx) error {
			return errors.Join(tx.exec(ctx, `UPDATE snapshot SET undo_until = NULL WHERE undo_until = ?`, want),
				tx.exec(ctx, `UPDATE option SET state = 'released' WHERE grace_until = ?`, want))
		}))
	}
	due, err := s.DueOptions(ctx, time.UnixMicro(9_000_000))
	if err != nil || len(due) != 1 || due[0].ID != "opt-2" {
		t.Errorf("due are %+v (%v)", due, err)
	}
	if left, err := s.OverlaysLeft(ctx); err != nil || !slices.Equal(left, []string{"/lost"}) {
		t.Errorf("left are %q (%v)", left, err)
	}
	if all, err := s.Snapshots(ctx); err != nil || len(all) != 1 || all[0].ID != "here" {
		t.Errorf("there are %+v (%v)", all, err)
	}
}
