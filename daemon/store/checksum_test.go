package store

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vpssnapd/daemon/vps"
)

// decided fills a database with one row of each kind that decides, for two VPSes.
func decided(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), FileName)
	s, err := Open(ctx, path, nil)
	must(t, err)
	write(t, s, func(tx *Tx) error {
		var errs []error
		for _, of := range []string{"vps-aaaa", "vps-bbbb"} {
			snap := snapshot("snap-"+of, of, vps.SnapshotAvailable)
			snap.Reason, snap.Description, snap.NVRAM = "reason "+of, "described "+of, "/nvram/"+of
			op := operation("op-"+of, of, vps.StatusRunning)
			op.VPSName, op.Step, op.Result, op.SnapshotID = "name "+of, "step "+of, "result "+of, snap.ID
			op.Request, op.Plan = []byte("request "+of), []byte("plan "+of)
			errs = append(errs, tx.SaveSnapshot(ctx, snap), tx.InsertOperation(ctx, op),
				tx.SaveOption(ctx, vps.Option{ID: "opt-" + of, VPS: of, State: vps.OptionActive, OrderRef: "order " + of,
					ContactEmail: of + "@example.org", Locale: "fr", OrderedAt: now, UpdatedAt: now, EndsAt: &later}, vps.Actor{}, ""),
				tx.AddToken(ctx, vps.Token{ID: "tok-" + of, Name: "token " + of, Scopes: []vps.Scope{vps.ScopeRead},
					Way: vps.WayPanel, VPS: []string{of}, CreatedAt: now}, []byte("hash of "+of)))
		}
		return errors.Join(errs...)
	})
	must(t, s.Close())
	return path
}

// all is what a Store serves of a VPS, and of its token.
func served(s *Store, of string) (all struct {
	Record Record
	Token  *vps.Token
	Hash   []byte
}, err error) {
	if all.Record, err = s.Record(ctx, of); err != nil {
		return all, err
	}
	token, hash, err := s.Token(ctx, "tok-"+of)
	if err == nil {
		all.Token, all.Hash = &token, hash
	}
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return all, err
}

// raw opens a file as any program does.
func raw(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path)
	must(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

// TestFlippedColumns: whatever column of whatever row that decides is changed by another
// hand, that row is not served, it is told by name, and everything else is as it was.
func TestFlippedColumns(t *testing.T) {
	path := decided(t)
	whole, err := os.ReadFile(path)
	must(t, err)
	flips := 0
	for _, table := range []string{"option", "snapshot", "snapshot_disk", "operation", "token"} {
		type column struct {
			name string
			blob bool
		}
		rows, err := raw(t, path).QueryContext(ctx, `SELECT name, type = 'BLOB' FROM pragma_table_info(?)`, table)
		columns, err := collect(judgedRows{rows, asItIs}, err, func(row scanner) (c column, err error) { return c, row.Scan(&c.name, &c.blob) })
		must(t, err)
		for _, c := range columns {
			copied := filepath.Join(t.TempDir(), FileName)
			must(t, os.WriteFile(copied, whole, 0o600))
			db := raw(t, copied)
			id := "id"
			if table == "snapshot_disk" {
				id = "snapshot"
			}
			change := fmt.Sprintf(`PRAGMA ignore_check_constraints = ON; PRAGMA foreign_keys = OFF;
				UPDATE %[1]s SET %[2]s = CASE typeof(%[2]s) WHEN 'integer' THEN %[2]s | 1 << 41 WHEN 'text' THEN '~' || substr(%[2]s, 2)
				WHEN 'blob' THEN x'7e' ELSE 1 END WHERE %[3]s LIKE '%%vps-aaaa'`, table, c.name, id)
			if c.blob {
				change = strings.Replace(change, "ELSE 1 END", "ELSE x'01' END", 1)
			}
			_, err := db.ExecContext(ctx, change)
			if err != nil && strings.Contains(err.Error(), "cannot store INTEGER") { // NULL in a column of text
				_, err = db.ExecContext(ctx, strings.Replace(change, "ELSE 1 END", "ELSE '1' END", 1))
			}
			must(t, err)
			must(t, db.Close())
			flips++
			unserved(t, copied, table+"."+c.name, strings.TrimSuffix(table, "_disk"))
		}
	}
	if flips < 60 {
		t.Errorf("%d columns were tried", flips)
	}
}

// unserved fails unless the row of a kind of vps-aaaa is set aside in a database, and the
// rows of the other VPS are whole.
func unserved(t *testing.T, path, what, kind string) {
	t.Helper()
	s, err := Open(ctx, path, nil)
	if err != nil {
		t.Errorf("%s: nothing is served: %v", what, err)
		return
	}
	defer s.Close()
	damaged, err := s.DamagedRows(ctx)
	must(t, err)
	named := slices.ContainsFunc(damaged, func(d DamagedRow) bool {
		return d.Kind == kind && d.Open && strings.HasSuffix(d.ID, "vps-aaaa") && (d.VPS == "vps-aaaa" || kind == "token")
	})
	ours, err := served(s, "vps-aaaa")
	must(t, err)
	there := map[string]bool{"option": ours.Record.Option != nil, "snapshot": ours.Record.Snapshot != nil,
		"operation": ours.Record.Operation != nil, "token": ours.Token != nil}
	for other, is := range there {
		if is == (other == kind) {
			t.Errorf("%s is damaged: the %s is served: %v", what, other, is)
		}
	}
	if !named {
		t.Errorf("%s is damaged, told is %+v", what, damaged)
	}
	if others, err := served(s, "vps-bbbb"); err != nil || others.Record.Option == nil || others.Record.Operation == nil ||
		others.Record.Snapshot == nil || len(others.Record.Snapshot.Disks) == 0 || others.Token == nil {
		t.Errorf("%s is damaged, and of the other VPS is served %+v (%v)", what, others, err)
	}
}

// TestFlippedBytes flips a bit in the file wherever a text of vps-aaaa is stored, in the
// table or in an index: it is served as it was, or not at all, and nothing else stops.
func TestFlippedBytes(t *testing.T) {
	path := decided(t)
	whole, err := os.ReadFile(path)
	must(t, err)
	s, err := Open(ctx, path, nil)
	must(t, err)
	want, err := served(s, "vps-aaaa")
	must(t, err)
	must(t, s.Close())
	aside := 0
	for _, marker := range []string{
		"vps-aaaa", "snap-vps-aaaa", "described vps-aaaa", "reason vps-aaaa", "/nvram/vps-aaaa", "plan vps-aaaa", "step vps-aaaa",
		"order vps-aaaa", "vps-aaaa@example.org", "token vps-aaaa", "hash of vps-aaaa", `["vps-aaaa"]`, "op-vps-aaaa", "opt-vps-aaaa",
	} {
		for at := 0; ; at++ {
			next := bytes.Index(whole[at:], []byte(marker))
			if next < 0 {
				break
			}
			at += next
			copied := filepath.Join(t.TempDir(), FileName)
			flipped := bytes.Clone(whole)
			flipped[at+len(marker)/2] ^= 0x02
			must(t, os.WriteFile(copied, flipped, 0o600))
			s, err := Open(ctx, copied, nil)
			if err != nil {
				t.Errorf("%s at %d: nothing is served: %v", marker, at, err)
				continue
			}
			got, err := served(s, "vps-aaaa")
			must(t, err)
			damaged, err := s.DamagedRows(ctx)
			must(t, err)
			aside += len(damaged)
			got.Record.StateDamaged, got.Record.OptionDamaged = false, false
			for _, d := range damaged { // what is not served is told
				switch d.Kind {
				case "option":
					got.Record.Option = want.Record.Option
				case "snapshot":
					got.Record.Snapshot = want.Record.Snapshot
				case "operation":
					got.Record.Operation = want.Record.Operation
				case "token":
					got.Token, got.Hash = want.Token, want.Hash
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s at %d is damaged, told is %+v, served is (-whole +served)\n%s", marker, at, damaged, diff)
			}
			must(t, s.Close())
		}
	}
	if aside < 20 {
		t.Errorf("%d rows were set aside", aside)
	}
}

// TestEveryWriteKeepsTheSums: after each method that writes, whatever it was given, each
// row fits its sum.
func TestEveryWriteKeepsTheSums(t *testing.T) {
	s, _ := fresh(t)
	history(t, s)
	written := 0
	tx := reflect.TypeFor[*Tx]()
	for i := range tx.NumMethod() {
		method := tx.Method(i)
		if !asks(reflect.ValueOf(&Tx{}).Method(i).Type()) {
			continue
		}
		for _, args := range arguments(reflect.ValueOf(&Tx{}).Method(i).Type()) {
			before := changes(t, s)
			_ = s.Write(ctx, func(tx *Tx) error {
				out := reflect.ValueOf(tx).Method(i).Call(args)
				err, _ := out[len(out)-1].Interface().(error)
				return err
			})
			if changes(t, s) != before {
				written++
			}
			found, err := findDamaged(ctx, s.reader)
			if err != nil || len(found) > 0 {
				t.Fatalf("after %s: %+v (%v)", method.Name, found, err)
			}
		}
	}
	if written < 20 {
		t.Errorf("%d calls wrote anything", written)
	}
}

// changes counts what the connection that writes has changed.
func changes(t *testing.T, s *Store) (n int) {
	t.Helper()
	must(t, s.writer.QueryRowContext(ctx, `SELECT total_changes()`).Scan(&n))
	return n
}

// TestDamageWhileRunning: a row that is changed under a Store is not written over, which
// would make it right, and a verification sets it aside.
func TestDamageWhileRunning(t *testing.T) {
	path := decided(t)
	s, err := Open(ctx, path, nil)
	must(t, err)
	defer s.Close()
	op, err := s.ActiveOperation(ctx, "vps-aaaa")
	must(t, err)
	_, err = raw(t, path).ExecContext(ctx, `UPDATE operation SET kind = 'restorE' WHERE id = 'op-vps-aaaa'`)
	must(t, err)
	op.Step = "next"
	if err := s.Write(ctx, func(tx *Tx) error { return tx.SaveOperation(ctx, op) }); vps.CodeOf(err) != vps.CodeVPSChanged {
		t.Errorf("it is written over: %v", err)
	}
	must(t, s.Verify(ctx))
	unknown, err := s.DamagedState(ctx, "vps-aaaa")
	if _, gone := s.ActiveOperation(ctx, "vps-aaaa"); !unknown || err != nil || !errors.Is(gone, sql.ErrNoRows) {
		t.Errorf("it is served: %v, %v, %v", unknown, err, gone)
	}
	// What follows is guarded as before.
	write(t, s, func(tx *Tx) error { return tx.InsertOperation(ctx, operation("op-new", "vps-cccc", vps.StatusRunning)) })
	must(t, s.Verify(ctx))
	if _, err := s.ActiveOperation(ctx, "vps-cccc"); err != nil {
		t.Error(err)
	}
}

// TestRemovedRows: a row that somebody removes is told, too.
func TestRemovedRows(t *testing.T) {
	for _, table := range []string{"option", "snapshot", "snapshot_disk", "operation", "token"} {
		path := decided(t)
		id := map[bool]string{true: "snapshot", false: "id"}[table == "snapshot_disk"]
		db := raw(t, path)
		_, err := db.ExecContext(ctx, fmt.Sprintf(`PRAGMA foreign_keys = OFF; DELETE FROM %s WHERE %s LIKE '%%vps-aaaa'`, table, id))
		must(t, err)
		must(t, db.Close())
		unserved(t, path, "all of "+table, strings.TrimSuffix(table, "_disk"))
	}
}

// A record from before 00011: its rows are taken as they are, once.
func TestChecksumMigration(t *testing.T) {
	path := before(t, 10, `
		INSERT INTO snapshot VALUES ('0123456789ab', 'id-1', 'available', '', 'kept', 1000000, 'crash', 0, 8, NULL, NULL, '', '', '', 2000000, 0);
		INSERT INTO snapshot_disk VALUES ('0123456789ab', 'vda', '/b', 'raw', 7, 8, '/o', 9, '', 0, 0, NULL);
		INSERT INTO option VALUES ('opt-1', 'id-1', 'active', 'A-1', 299, 'EUR', 'month', '', 'en', 1, 1, 2, NULL, NULL, 3, 3);`)
	for range 2 {
		s, err := Open(ctx, path, nil)
		must(t, err)
		if rec, err := s.Record(ctx, "id-1"); err != nil || rec.Snapshot == nil || rec.Option == nil {
			t.Errorf("served is %+v (%v)", rec, err)
		}
		must(t, s.Close())
	}
	_, err := raw(t, path).ExecContext(ctx, `UPDATE snapshot_disk SET base = '/c'`)
	must(t, err)
	s, err := Open(ctx, path, nil)
	must(t, err)
	defer s.Close()
	if rec, err := s.Record(ctx, "id-1"); err != nil || rec.Snapshot != nil || rec.Option == nil {
		t.Errorf("with another base, served is %+v (%v)", rec, err)
	}
}
