package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"modernc.org/sqlite"

	"vpssnapd/daemon/store/checksum"
	"vpssnapd/daemon/vps"
)

// statements are the texts that were sent to SQLite, each with arguments that it had.
type statements struct {
	mu  sync.Mutex
	all map[string][]any
}

func (s *statements) note(query string, args []driver.NamedValue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	values := make([]any, len(args))
	for i, a := range args {
		values[i] = a.Value
	}
	s.all[query] = values
}

// recording opens connections that note what is sent over them.
type recording struct {
	driver.Connector
	to *statements
}

func (r recording) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := r.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return recordingConn{c.(connection), r.to}, nil
}

type connection interface {
	driver.Conn
	driver.ConnBeginTx
	driver.QueryerContext
	driver.ExecerContext
}

type recordingConn struct {
	connection
	to *statements
}

func (c recordingConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	c.to.note(query, args)
	return c.connection.QueryContext(ctx, query, args)
}

func (c recordingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	c.to.note(query, args)
	return c.connection.ExecContext(ctx, query, args)
}

// recorded opens a database with a history, and notes every statement.
func recorded(t *testing.T) (*Store, *sql.DB, *statements) {
	t.Helper()
	plain, path := fresh(t)
	history(t, plain)
	to := &statements{all: map[string][]any{}}
	connect := func() *sql.DB {
		c, err := sqlite.NewConnector(dsn(path))
		must(t, err)
		return sql.OpenDB(recording{c, to})
	}
	s := newStore(connect(), connect())
	s.mark = &mark{path: path + ".mark"}
	t.Cleanup(func() { s.Close() })
	return s, plain.reader, to
}

// history fills a database with what was, and a little of what is: all of one VPS,
// which everything of has the id "x".
func history(t *testing.T, s *Store) {
	t.Helper()
	write(t, s, func(tx *Tx) error {
		for i := range 200 {
			id, of := fmt.Sprint("past-", i), fmt.Sprint("id-", i%5)
			gone := snapshot(id, of, vps.SnapshotGone)
			over := vps.Option{ID: id, VPS: of, State: vps.OptionReleased, OrderedAt: now, UpdatedAt: now}
			ended := operation(id, of, vps.StatusSucceeded)
			ended.EndedAt = &now
			must(t, tx.SaveSnapshot(ctx, gone))
			must(t, tx.SaveOption(ctx, over, vps.Actor{}, ""))
			must(t, tx.InsertOperation(ctx, ended))
			must(t, tx.AddMessage(ctx, vps.Message{At: now, VPS: of, Kind: "x", Text: "x"}))
		}
		must(t, tx.SaveSnapshot(ctx, snapshot("x", "x", vps.SnapshotAvailable)))
		must(
			t,
			tx.SaveOption(
				ctx, vps.Option{ID: "x", VPS: "x", State: vps.OptionActive, OrderRef: "x", EndsAt: &now}, vps.Actor{},
				"",
			),
		)
		must(t, tx.InsertOperation(ctx, operation("x", "x", vps.StatusPending)))
		must(t, tx.SawVPS(ctx, KnownVPS{ID: "x", Name: "x"}))
		return tx.AddWebhook(ctx, vps.Webhook{ID: "x", URL: "https://x"})
	})
}

// callAll calls every method of what that may ask SQLite, with every combination of
// arguments set and not set. What they return does not matter: what is refused was
// asked for before.
func callAll(what any) {
	for _, method := range reflect.ValueOf(what).Methods() {
		if !asks(method.Type()) {
			continue
		}
		for _, args := range arguments(method.Type()) {
			method.Call(args)
		}
	}
}

// asks reports whether a method can ask SQLite, and is not only a way to do so.
func asks(method reflect.Type) bool {
	for in := range method.Ins() {
		if in.Kind() == reflect.Func {
			return false
		}
	}
	return method.NumIn() > 0 && method.In(0) == reflect.TypeFor[context.Context]()
}

// arguments are all combinations for a method.
func arguments(method reflect.Type) [][]reflect.Value {
	all := [][]reflect.Value{{}}
	for in := range method.Ins() {
		var longer [][]reflect.Value
		for _, value := range values(in) {
			for _, before := range all {
				longer = append(longer, append(slices.Clone(before), value))
			}
		}
		all = longer
	}
	return all
}

// called is the context of a call that its client may repeat.
var called = vps.WithCall(ctx, vps.Call{Client: "a", Key: "k", Record: func(any) ([]byte, error) { return nil, nil }})

// values are a zero and a set one of a type; of the terms of a query every combination.
func values(of reflect.Type) []reflect.Value {
	if of == reflect.TypeFor[context.Context]() {
		return []reflect.Value{reflect.ValueOf(called)}
	}
	if of.Kind() != reflect.Struct || of == reflect.TypeFor[time.Time]() {
		return []reflect.Value{reflect.Zero(of), set(of)}
	}
	if !strings.HasSuffix(of.Name(), "Query") {
		return []reflect.Value{set(of)}
	}
	var all []reflect.Value
	for which := range 1 << of.NumField() {
		v := reflect.New(of).Elem()
		for i := range of.NumField() {
			if which&(1<<i) != 0 || of.Field(i).Name == "Limit" {
				v.Field(i).Set(set(of.Field(i).Type))
			}
		}
		all = append(all, v)
	}
	return all
}

// set is a value of a type that is not zero, as deep as it goes.
func set(of reflect.Type) reflect.Value {
	v := reflect.New(of).Elem()
	switch of.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(time.Hour))
	case reflect.Pointer:
		v.Set(reflect.New(of.Elem()))
		v.Elem().Set(set(of.Elem()))
	case reflect.Slice:
		v.Set(reflect.Append(v, set(of.Elem())))
	case reflect.Struct:
		if of == reflect.TypeFor[time.Time]() {
			return reflect.ValueOf(later)
		}
		for i := range of.NumField() {
			if of.Field(i).IsExported() {
				v.Field(i).Set(set(of.Field(i).Type))
			}
		}
	}
	return v
}

var (
	// small are the tables that do not grow with time, or are emptied at each use.
	small = []string{
		"webhook",
		"token",
		"promise",
		"download",
		"download_key",
		"image",
		"vps",
		"json_each",
		"sqlite_sequence",
		"sqlite_temp_master",
		"pragma_table_info",
		"damaged",
	}
	// ofNow are the indexes that have only what is, and nothing of what was.
	ofNow = []string{
		"snapshot_open",
		"snapshot_undo",
		"snapshot_disk_left",
		"option_one_open",
		"operation_one_active",
		"delivery_waiting",
	}

	scan    = regexp.MustCompile(`^SCAN (\w+)(?:.* INDEX (\w+))?`)
	aliases = regexp.MustCompile(`(?:FROM|JOIN) (\w+) ([a-z])\b`)
)

// readsHistory tells what is wrong with a line of a plan.
func readsHistory(query, line string) string {
	if strings.Contains(query, checksum.Function) { // which is to look at every row
		return ""
	}
	if strings.Contains(line, "AUTOMATIC") {
		return "an index is made for each call"
	}
	if strings.Contains(line, "TEMP B-TREE") && strings.Contains(query, "LIMIT ?") {
		return "more than the page is sorted"
	}
	m := scan.FindStringSubmatch(line)
	if m == nil || m[1] == "CONSTANT" {
		return ""
	}
	table, index := m[1], m[2]
	for _, alias := range aliases.FindAllStringSubmatch(query, -1) {
		if alias[2] == table {
			table = alias[1]
		}
	}
	stops := !strings.Contains(query, "WHERE") && (strings.Contains(query, "LIMIT") || strings.Contains(query, "EXISTS"))
	if stops || slices.Contains(small, table) || slices.Contains(ofNow, index) {
		return ""
	}
	return "all of " + table + " is read"
}

// TestNoQueryReadsTheHistory: what any method of the store asks of SQLite is answered
// by an index, whatever is set. Methods that come later are called, too.
func TestNoQueryReadsTheHistory(t *testing.T) {
	s, plain, asked := recorded(t)
	callAll(s)
	reads := len(asked.all)
	_ = s.Write(ctx, func(tx *Tx) error { callAll(tx); return errors.New("undone") })
	if reads < 40 || len(asked.all) < reads+30 {
		t.Fatalf("the store has sent %d statements, and %d more to write", reads, len(asked.all)-reads)
	}
	for query, args := range asked.all {
		for _, line := range planOf(t, plain, query, args) {
			if why := readsHistory(query, line); why != "" {
				t.Errorf("%s: %s\n\t%s", why, line, query)
			}
		}
	}
}

// planOf is how SQLite would answer a query, a line for each step.
func planOf(t *testing.T, db *sql.DB, query string, args []any) (lines []string) {
	t.Helper()
	rows, err := db.QueryContext(ctx, "EXPLAIN QUERY PLAN "+query, args...)
	must(t, err)
	defer rows.Close()
	for rows.Next() {
		var id, parent, unused int
		var line string
		must(t, rows.Scan(&id, &parent, &unused, &line))
		lines = append(lines, line)
	}
	must(t, rows.Err())
	return lines
}
