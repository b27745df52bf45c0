package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/pressly/goose/v3"

	"vpssnapd/daemon/vps"
)

var ctx = context.Background()

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(ctx, path, func() time.Time { return clock })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func fresh(t *testing.T) (*Store, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.db")
	return open(t, path), path
}

func write(t *testing.T, s *Store, do func(*Tx) error) {
	t.Helper()
	if err := s.Write(ctx, do); err != nil {
		t.Fatal(err)
	}
}

// moments as they are stored: UTC, whole microseconds.
var (
	now   = time.Date(2026, 11, 22, 10, 30, 0, 123456000, time.UTC)
	clock = now // of every store that open opens
	later = now.Add(time.Hour)
)

func snapshot(id, vpsID string, state vps.SnapshotState) vps.Snapshot {
	return vps.Snapshot{
		ID: id, VPS: vpsID, State: state, Description: "before", CreatedAt: now, Consistency: vps.ConsistencyCrash,
		FreezeMS: 3, SizeBytes: 1 << 40, RestoredAt: &later, UndoUntil: &later, UpdatedAt: now, NVRAM: "/n", NVRAMSaved: "/s", NVRAMUndo: "/u",
		Disks: []vps.SnapshotDisk{
			{Target: "vda", Base: "/b", BaseFormat: "raw", BaseInode: 1<<64 - 1, BaseModified: now.Add(7), SizeBytes: 5,
				Overlay: "/o", OverlayInode: 9, Undo: "/u", UndoInode: 10, Pivoted: true},
		},
	}
}

func operation(id, vpsID string, status vps.Status) vps.Operation {
	return vps.Operation{ID: id, VPS: vpsID, VPSName: "web1", Kind: vps.KindTake, Status: status, Step: "overlays",
		Actor: vps.Actor{Name: "x", Way: vps.WayPanel}, CreatedAt: now, Request: []byte("{}"), Plan: []byte("{}")}
}

// TestNewDatabase: private, and what was committed is there for the next who opens it.
func TestNewDatabase(t *testing.T) {
	s, path := fresh(t)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	want := snapshot("s1", "v1", vps.SnapshotAvailable)
	write(t, s, func(tx *Tx) error { return tx.SaveSnapshot(ctx, want) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := open(t, path).CurrentSnapshot(ctx, "v1")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestOlderSchema: what the first version wrote is read by this one.
func TestOlderSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	first, err := fs.ReadFile(migrations, "migration/00001_first.sql")
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", "file:"+path+"?"+pragmas)
	if err != nil {
		t.Fatal(err)
	}
	old, err := goose.NewProvider(goose.DialectSQLite3, db, fstest.MapFS{"00001_first.sql": {Data: first}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.Up(ctx); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`INSERT INTO snapshot VALUES ('s1','v1','available','','kept',1,'crash',0,5,NULL,NULL,'','','',1)`,
		`INSERT INTO snapshot_disk VALUES ('s1','vda','/b','raw',1,5,'/o',2,'',0,0)`,
	} {
		if _, err := db.ExecContext(ctx, line); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := open(t, path).CurrentSnapshot(ctx, "v1")
	if err != nil || got.Description != "kept" || len(got.Disks) != 1 || !got.Disks[0].BaseModified.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	s, path := fresh(t)
	write(t, s, func(tx *Tx) error {
		return tx.exec(ctx, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)`)
	})
	s.Close()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, path, nil); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Fatalf("opened, or: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("a refused database was changed (%v)", err)
	}
}

// TestDamagedIsRefused: truncated, bits flipped, or no database at all.
func TestDamagedIsRefused(t *testing.T) {
	whole := func() []byte {
		s, path := fresh(t)
		for i := range 300 {
			write(t, s, func(tx *Tx) error {
				return tx.AddMessage(ctx, vps.Message{VPS: fmt.Sprint(i), Text: strings.Repeat("x", 200)})
			})
		}
		s.Close()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}()
	flipped := append([]byte{}, whole...)
	page := len(flipped) / 2 / 4096 * 4096 // of what stands in it a text could be anything
	for i := page; i < page+64; i++ {
		flipped[i] ^= 0xff
	}
	for name, data := range map[string][]byte{
		"truncated": whole[:len(whole)/2], "torn": whole[:len(whole)-100], "flipped": flipped, "text": []byte(strings.Repeat("hello ", 1000)),
	} {
		path := filepath.Join(t.TempDir(), "test.db")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(ctx, path, nil); err == nil {
			s.Close()
			t.Errorf("%s: opened", name)
		}
	}
}

// damaged is an open database that something else has written zeros into.
func damaged(t *testing.T) *Store {
	t.Helper()
	s, path := fresh(t)
	write(t, s, func(tx *Tx) error { return tx.AddMessage(ctx, vps.Message{Text: strings.Repeat("x", 100_000)}) })
	if _, err := s.writer.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, info.Size()-4096), 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := s.writer.ExecContext(ctx, "PRAGMA shrink_memory"); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestDamageStopsTheWriting: damage that is come upon later, in a write or, as
// when the file system fails, in a read (FAULTS row 28).
func TestDamageStopsTheWriting(t *testing.T) {
	insert := func(tx *Tx) error { return tx.AddMessage(ctx, vps.Message{Text: "new"}) }
	for name, find := range map[string]func(s *Store) error{
		"write": func(s *Store) error { return s.Write(ctx, insert) },
		"read":  func(s *Store) error { _, err := s.OpenOptions(ctx); return err },
		"row":   func(s *Store) error { _, err := s.Operation(ctx, "op-1"); return err },
	} {
		s := damaged(t)
		if err := find(s); vps.CodeOf(err) != vps.CodeInternal {
			t.Fatalf("%s: in a damaged file: %v", name, err)
		}
		if err := s.Write(ctx, func(*Tx) error { return nil }); err == nil {
			t.Errorf("%s: it still writes", name)
		}
		if s.Ping(ctx) == nil {
			t.Errorf("%s: it says that it is well", name)
		}
	}
}

// TestFullDisk is told apart, and heals (FAULTS row 27).
func TestFullDisk(t *testing.T) {
	s, _ := fresh(t)
	limit := func(pages int) {
		if _, err := s.writer.ExecContext(ctx, fmt.Sprintf("PRAGMA max_page_count = %d", pages)); err != nil {
			t.Fatal(err)
		}
	}
	limit(1)
	big := func(tx *Tx) error { return tx.AddMessage(ctx, vps.Message{Text: strings.Repeat("x", 1<<20)}) }
	err := s.Write(ctx, big)
	if vps.CodeOf(err) != vps.CodeInsufficientSpace || !IsFull(err) {
		t.Fatalf("%v", err)
	}
	limit(1 << 20)
	write(t, s, big)
}

// TestLockedByAnother program: an error in bounded time, not a hang.
func TestLockedByAnother(t *testing.T) {
	t.Parallel()
	s, path := fresh(t)
	other, err := sql.Open("sqlite", "file:"+path+"?_txlock=exclusive")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	tx, err := other.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	err = s.Write(ctx, func(*Tx) error { return nil })
	if vps.CodeOf(err) != vps.CodeHypervisorUnavailable || time.Since(began) > 15*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	write(t, s, func(*Tx) error { return nil })
}

// TestSQLIsText: whatever stands in a field is stored as it is.
func TestSQLIsText(t *testing.T) {
	s, _ := fresh(t)
	for i, evil := range []string{
		"'); DROP TABLE snapshot; --", `" OR 1=1 --`, "?1 $2 :x @y", "\x00\x01", "a\r\nb", "Ω🙂", strings.Repeat("'", 1000), "",
	} {
		id := fmt.Sprint("id", i)
		snap := snapshot(id, "v"+evil, vps.SnapshotAvailable)
		snap.Description, snap.Reason, snap.Disks[0].Base = evil, evil, evil
		op := operation(id, "v"+evil, vps.StatusPending)
		op.VPSName, op.Result, op.Actor.Name = evil, evil, evil
		op.Error = &vps.Error{Code: "x", Detail: evil, Remedy: evil}
		option := vps.Option{
			ID:           id,
			VPS:          "v" + evil,
			State:        vps.OptionActive,
			OrderRef:     evil,
			ContactEmail: evil,
			Locale:       evil,
			OrderedAt:    now,
			UpdatedAt:    now,
		}
		message := vps.Message{ID: int64(i + 1), At: now, VPS: "v" + evil, VPSName: evil, Text: evil, Detail: evil}
		write(t, s, func(tx *Tx) error {
			return errors.Join(
				tx.SaveSnapshot(ctx, snap), tx.InsertOperation(ctx, op),
				tx.SaveOption(ctx, option, vps.Actor{Name: evil}, evil), tx.AddMessage(ctx, message),
			)
		})
		gotSnap, err1 := s.CurrentSnapshot(ctx, "v"+evil)
		gotOp, err2 := s.ActiveOperation(ctx, "v"+evil)
		gotOption, err3 := s.OptionByOrder(ctx, "v"+evil, evil)
		page, err4 := s.Messages(ctx, vps.MessageQuery{VPS: "v" + evil, Limit: 10})
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			t.Fatalf("%q: %v", evil, err)
		}
		for _, diff := range []string{cmp.Diff(snap, gotSnap), cmp.Diff(op, gotOp, cmpopts.IgnoreUnexported(vps.Error{})), cmp.Diff(option, gotOption), cmp.Diff([]vps.Message{message}, page.Messages)} {
			if diff != "" {
				t.Errorf("%q: %s", evil, diff)
			}
		}
	}
}

// TestPaging: every row once, newest first, also while rows are added.
func TestPaging(t *testing.T) {
	s, _ := fresh(t)
	const rows, size = 23, 5
	for i := range rows {
		write(t, s, func(tx *Tx) error {
			return errors.Join(tx.AddMessage(ctx, vps.Message{VPS: fmt.Sprint("v", i%2), Text: fmt.Sprint(i)}),
				tx.InsertOperation(ctx, operation(fmt.Sprintf("op-%03d", i), fmt.Sprint("v", i), vps.StatusPending)))
		})
	}
	var texts, ids []string
	for q := (vps.MessageQuery{Limit: size}); ; {
		page, err := s.Messages(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range page.Messages {
			texts = append(texts, m.Text)
		}
		write(t, s, func(tx *Tx) error { return tx.AddMessage(ctx, vps.Message{Text: "new"}) })
		if q.Before = page.Next; page.Next == 0 {
			break
		}
	}
	for q := (vps.OperationQuery{Limit: size}); ; {
		page, err := s.Operations(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Operations {
			ids = append(ids, o.ID)
		}
		if q.Before = page.Next; page.Next == "" {
			break
		}
	}
	if len(texts) != rows || len(ids) != rows {
		t.Fatalf("%d messages and %d operations of %d", len(texts), len(ids), rows)
	}
	for i := range rows {
		if want := rows - 1 - i; texts[i] != fmt.Sprint(want) || ids[i] != fmt.Sprintf("op-%03d", want) {
			t.Errorf("row %d is %s and %s", i, texts[i], ids[i])
		}
	}
	page, err := s.Messages(ctx, vps.MessageQuery{VPS: "v1", Limit: 100})
	if err != nil || len(page.Messages) != rows/2 || page.Next != 0 {
		t.Errorf("of v1: %d, next %d, %v", len(page.Messages), page.Next, err)
	}
}

// TestOneOfEach: one operation, one open option and one snapshot per VPS.
func TestOneOfEach(t *testing.T) {
	s, _ := fresh(t)
	add := func(id string, status vps.Status) error {
		return s.Write(ctx, func(tx *Tx) error { return tx.InsertOperation(ctx, operation(id, "v1", status)) })
	}
	if err := add("op-1", vps.StatusNeedsAttention); err != nil {
		t.Fatal(err)
	}
	for _, status := range []vps.Status{vps.StatusPending, vps.StatusRunning, vps.StatusNeedsAttention} {
		if err := add("op-2", status); !IsUnique(err) {
			t.Errorf("a second operation, %s: %v", status, err)
		}
	}
	if err := add("op-3", vps.StatusFailed); err != nil {
		t.Error(err)
	}
	write(t, s, func(tx *Tx) error { return tx.SaveSnapshot(ctx, snapshot("s1", "v1", vps.SnapshotAvailable)) })
	for _, state := range []vps.SnapshotState{vps.SnapshotAvailable, vps.SnapshotRestoring, vps.SnapshotBroken} {
		err := s.Write(ctx, func(tx *Tx) error { return tx.SaveSnapshot(ctx, snapshot("s2", "v1", state)) })
		if !IsUnique(err) {
			t.Errorf("a second snapshot, %s: %v", state, err)
		}
	}
	write(t, s, func(tx *Tx) error { return tx.SaveSnapshot(ctx, snapshot("s2", "v1", vps.SnapshotDeleting)) })
	if current, err := s.CurrentSnapshot(ctx, "v1"); err != nil || current.ID != "s1" {
		t.Errorf("the customer's is %s, %v", current.ID, err)
	}
}

// TestNothingHalf: a transaction that fails leaves nothing.
func TestNothingHalf(t *testing.T) {
	s, _ := fresh(t)
	stop := errors.New("stop")
	err := s.Write(ctx, func(tx *Tx) error {
		if err := tx.SaveSnapshot(ctx, snapshot("s1", "v1", vps.SnapshotAvailable)); err != nil {
			return err
		}
		return stop
	})
	if !errors.Is(err, stop) {
		t.Fatal(err)
	}
	if _, err := s.Snapshot(ctx, "s1"); !errors.Is(err, sql.ErrNoRows) {
		t.Errorf("half of it is there: %v", err)
	}
}

// TestReadOnly reads beside the writer and writes nothing.
func TestReadOnly(t *testing.T) {
	s, path := fresh(t)
	write(t, s, func(tx *Tx) error { return tx.SaveSnapshot(ctx, snapshot("s1", "v1", vps.SnapshotAvailable)) })
	r, err := OpenReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := r.Snapshot(ctx, "s1"); err != nil || got.ID != "s1" {
		t.Errorf("%+v, %v", got, err)
	}
}

// Events are numbered without gap, also when a transaction is given up, and what
// is too old or too much is pruned.
func TestEvents(t *testing.T) {
	s, path := fresh(t)
	tell := func(n int) {
		t.Helper()
		write(t, s, func(tx *Tx) error {
			for range n {
				if err := tx.AddEvent(ctx, vps.Event{Type: vps.EventMessage, VPS: "id-1", EventData: vps.EventData{Message: &vps.MessageEvent{ID: 7}}}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	write(t, s, func(tx *Tx) error { return tx.SawVPS(ctx, KnownVPS{ID: "id-1", Name: "web1", LastSeen: now}) })
	began, err := s.LastEvent(ctx)
	if err != nil || time.Since(time.UnixMilli(began)) > time.Hour {
		t.Fatalf("the ids begin at %d, not above those of an earlier database (%v)", began, err)
	}
	tell(1)
	select {
	case <-s.Committed():
	default:
		t.Error("a commit with an event is not told")
	}
	givenUp := errors.New("given up")
	err = s.Write(ctx, func(tx *Tx) error { return errors.Join(tx.AddMessage(ctx, vps.Message{Text: "x"}), givenUp) })
	if !errors.Is(err, givenUp) {
		t.Fatal(err)
	}
	tell(1)
	events, err := s.Events(ctx, 0, 10)
	if err != nil || len(events) != 2 || events[1].ID != began+2 || events[0].VPSName != "web1" || events[0].Message.ID != 7 {
		t.Fatalf("events are %+v (%v)", events, err)
	}
	write(t, s, func(tx *Tx) error { return tx.exec(ctx, `UPDATE event SET at = 0 WHERE id = ?`, began+1) })
	tell(1)
	if err := s.Prune(ctx, Retention{Events: 7 * 24 * time.Hour}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if events, err = s.Events(ctx, 0, 1000); err != nil || events[0].ID != began+2 {
		t.Errorf("an old event is still there: %+v (%v)", events[0], err)
	}
	write(t, s, func(tx *Tx) error { return tx.exec(ctx, `DELETE FROM event`) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	if last, err := s.LastEvent(ctx); err != nil || last != began+3 {
		t.Errorf("when all are pruned the last was %d (%v)", last, err)
	}
	tell(1)
	if events, err = s.Events(ctx, 0, 10); err != nil || len(events) != 1 || events[0].ID != began+4 {
		t.Errorf("then comes %+v (%v)", events, err)
	}
}

// A message is found by its time, and read with its phrase; one from before
// 00005 keeps its text.
func TestMessagesByTime(t *testing.T) {
	s, _ := fresh(t)
	defer func() { clock = now }()
	for i := range 5 {
		clock = now.Add(time.Duration(i) * time.Hour)
		write(t, s, func(tx *Tx) error {
			return tx.AddMessage(
				ctx, vps.Message{Phrase: vps.PhraseTakeDone, Params: map[string]string{"result": fmt.Sprint(i)}},
			)
		})
	}
	page, err := s.Messages(ctx, vps.MessageQuery{Since: now.Add(time.Hour), Until: now.Add(3 * time.Hour), Limit: 10})
	if err != nil || len(page.Messages) != 2 || page.Messages[0].Text != "The snapshot was taken: 2." ||
		page.Messages[1].Params["result"] != "1" {
		t.Errorf("found %+v (%v)", page.Messages, err)
	}
}

func TestMessageFromBefore(t *testing.T) {
	path := before(
		t, 3,
		`INSERT INTO message VALUES (1, 1000000, 'id-1', 'web1', 'warning', 'x', 'panel', '', 'The old text.', '')`,
	)
	s := open(t, path)
	page, err := s.Messages(ctx, vps.MessageQuery{Limit: 10})
	if err != nil || len(page.Messages) != 1 || page.Messages[0].In(vps.French) != "The old text." {
		t.Errorf("found %+v (%v)", page.Messages, err)
	}
}

// TestRecordsAreOfOneMoment (FAULTS row 48): a snapshot that is being deleted is never
// seen without its deletion, however often one begins and ends meanwhile.
func TestRecordsAreOfOneMoment(t *testing.T) {
	s, _ := fresh(t)
	snap := vps.Snapshot{ID: "snap", VPS: "v", State: vps.SnapshotAvailable, CreatedAt: now, UpdatedAt: now}
	write(t, s, func(tx *Tx) error { return tx.SaveSnapshot(ctx, snap) })
	ended := make(chan error, 1)
	go func() {
		var err error
		for n := 0; n < 200 && err == nil; n++ {
			op := vps.Operation{
				ID:        fmt.Sprint("op-", n),
				VPS:       "v",
				Kind:      vps.KindDelete,
				Status:    vps.StatusRunning,
				CreatedAt: now,
			}
			deleting := snap
			deleting.State = vps.SnapshotDeleting
			err = s.Write(
				ctx,
				func(tx *Tx) error { return errors.Join(tx.InsertOperation(ctx, op), tx.SaveSnapshot(ctx, deleting)) },
			)
			if err == nil {
				op.Status = vps.StatusFailed
				err = s.Write(
					ctx,
					func(tx *Tx) error { return errors.Join(tx.SaveOperation(ctx, op), tx.SaveSnapshot(ctx, snap)) },
				)
			}
		}
		ended <- err
	}()
	for {
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
			return
		default:
		}
		all, err := s.Records(ctx)
		if err != nil {
			t.Fatal(err)
		}
		one, err := s.Record(ctx, "v")
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range []Record{all["v"], one} {
			if deleting := rec.Snapshot.State == vps.SnapshotDeleting; deleting != (rec.Operation != nil) {
				t.Fatalf("the snapshot is %s, its operation %v", rec.Snapshot.State, rec.Operation)
			}
		}
	}
}

// TestEventsTellTheStoresTime (FAULTS row 48): as everything that is recorded does.
func TestEventsTellTheStoresTime(t *testing.T) {
	s, _ := fresh(t)
	write(t, s, func(tx *Tx) error { return tx.AddMessage(ctx, vps.Message{Text: "x"}) })
	if events, err := s.Events(ctx, 0, 1); err != nil || len(events) != 1 || !events[0].At.Equal(now) {
		t.Errorf("the event is %+v (%v)", events, err)
	}
}
