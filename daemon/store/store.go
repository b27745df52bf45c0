// Package store is the daemon's durable record: one SQLite file with the
// options, snapshots, operations, promises and messages. It knows the nouns of
// daemon/vps and nothing of what the daemon does with them.
//
// Everything is written through one handle in immediate transactions with
// synchronous=FULL: a commit that returned survives a power cut. (NORMAL lost
// acknowledged rows in every replayed cut.)
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/store/checksum"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/work"
	"vpssnapd/hypervisor/durable"
)

// FileName is the record's name in the state directory.
const FileName = "vpssnapd.db"

//go:embed migration/*.sql
var migrations embed.FS

// pragmas are part of the DSN, so that every pooled connection has them.
// The file fits into the page cache of the system; SQLite's own, of 2 MB for each
// connection, would hold all of it five times.
const pragmas = "_pragma=cache_size(-256)&_txlock=immediate&_journal_mode=wal&_synchronous=full&_foreign_keys=on&_busy_timeout=5000&_defensive=1&_dqs=0"

// readers is how many connections read beside the one that writes: each holds most of
// a megabyte, and no query lasts.
const readers = 2

// Store is an open database. Its methods read; Write changes.
type Store struct {
	queries
	writer        *sql.DB
	reader        *sql.DB
	mark          *mark                 // nil when it is open to read only
	failed        atomic.Pointer[error] // why nothing is written any more
	broken        chan struct{}         // closed when failed is set
	written, lost atomic.Int64          // transactions, by outcome
	// committed is told of commits that added events, queued of those that added
	// deliveries.
	committed, queued work.Signal
	dropped           map[vps.DeliveryKind]*atomic.Int64
	clock             func() time.Time
}

// Tx is an open write transaction. It reads what it has written.
type Tx struct {
	queries
	tx      *sql.Tx
	now     time.Time
	message int64 // the last that it has added to the journal
	event   int64 // the last that it has added
	queued  bool  // it has added deliveries
	dropped []vps.DeliveryKind
}

// queries are the reads, the same inside and outside a transaction.
type queries struct{ q querier }

var (
	// ErrDamaged: the record cannot be trusted.
	ErrDamaged = errors.New("the database is damaged")
	// ErrNewer: a newer program wrote it.
	ErrNewer = errors.New("a newer vpssnapd wrote the database")
)

// Open opens the database at path, making it (mode 0600) or migrating it as
// needed. A file that is damaged (ErrDamaged), or that a newer program wrote, is
// refused. now tells the time of what is recorded; nil means time.Now.
func Open(ctx context.Context, path string, now func() time.Time) (*Store, error) {
	if err := ensure(ctx, path); err != nil {
		return nil, fmt.Errorf("cannot open the database %s: %w", path, err)
	}
	writer, err := openFile(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("cannot use the database %s: %w", path, err)
	}
	reader, err := sql.Open("sqlite", dsn(path)+"&_query_only=1")
	if err != nil {
		writer.Close()
		return nil, fmt.Errorf("cannot open the database %s: %w", path, err)
	}
	reader.SetMaxOpenConns(readers)
	reader.SetMaxIdleConns(readers) // otherwise a busy daemon opens one for every few queries
	reader.SetConnMaxIdleTime(time.Minute)
	s := newStore(reader, writer)
	if now != nil {
		s.clock = now
	}
	if s.mark, err = openMark(ctx, filepath.Join(filepath.Dir(path), markFile), s.queries); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.Outdated() {
		if err := beginAnew(ctx, writer); err != nil {
			return nil, errors.Join(fmt.Errorf("cannot use the database %s: %w", path, err), s.Close())
		}
	}
	return s, nil
}

func newStore(reader, writer *sql.DB) *Store {
	s := &Store{
		writer:    writer,
		reader:    reader,
		committed: work.NewSignal(),
		broken:    make(chan struct{}),
		queued:    work.NewSignal(),
		dropped:   map[vps.DeliveryKind]*atomic.Int64{vps.DeliveryWebhook: {}, vps.DeliveryMail: {}},
		clock:     time.Now,
	}
	s.q = querier{reader, s.judge}
	return s
}

// OpenReadOnly opens the database of a daemon that may be running, to read.
func OpenReadOnly(path string) (*Store, error) {
	reader, err := sql.Open(
		"sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?mode=ro&_busy_timeout=5000&_defensive=1&_dqs=0",
	)
	if err != nil {
		return nil, fmt.Errorf("cannot open the database %s: %w", path, err)
	}
	return newStore(reader, nil), nil
}

func dsn(path string) string { return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + pragmas }

// openFile opens the file and brings it up to date.
func openFile(ctx context.Context, path string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	if err := prepare(ctx, db, path); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// ensure makes a database where there is none. It is made beside its place and
// then put there, so that an empty file is never a new one, but one that lost
// everything.
func ensure(ctx context.Context, path string) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.Size() == 0:
		return fmt.Errorf("%w: the file is empty", ErrDamaged)
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if _, err := os.Stat(path + "-wal"); err == nil {
		return fmt.Errorf("%w: the file is missing, but its log is there", ErrDamaged)
	}
	fresh := path + ".new"
	for _, left := range []string{fresh, fresh + "-wal", fresh + "-shm"} {
		if err := os.Remove(left); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := createPrivate(fresh); err != nil {
		return err
	}
	db, err := openFile(ctx, fresh)
	if err != nil {
		return err
	}
	if err := errors.Join(beginAnew(ctx, db), db.Close(), durable.Sync(fresh)); err != nil {
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	return durable.SyncEntry(path)
}

// createPrivate makes the file before SQLite would, which would make it world-readable.
func createPrivate(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// MoveAside takes a damaged database, with its log, out of the way under another
// name, and returns the new names.
func MoveAside(path string, now time.Time) ([]string, error) {
	var moved []string
	for _, suffix := range []string{"", "-wal", "-shm"} {
		to := path + ".damaged-" + now.UTC().Format("20060102T150405.000") + suffix
		err := os.Rename(path+suffix, to)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return moved, fmt.Errorf("cannot put the damaged database aside: %w", err)
		}
		moved = append(moved, to)
	}
	return moved, durable.SyncEntry(path)
}

// Empty reports whether nothing worth keeping is recorded.
func (s queries) Empty(ctx context.Context) (bool, error) {
	var n int
	err := s.q.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM option) + EXISTS (SELECT 1 FROM snapshot) + EXISTS (SELECT 1 FROM operation)`).
		Scan(&n)
	return n == 0, err
}

// prepare checks that the file is whole and brings its schema up to date.
func prepare(ctx context.Context, db *sql.DB, path string) error {
	if err := integrity(ctx, db, path); err != nil {
		return err
	}
	dir, err := fs.Sub(migrations, "migration")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, dir)
	if err != nil {
		return err
	}
	have, err := provider.GetDBVersion(ctx)
	if err != nil {
		return err
	}
	sources := provider.ListSources()
	known := sources[len(sources)-1].Version
	if have > known {
		return fmt.Errorf(
			"%w: it has schema version %d, this program knows %d; install that version again", ErrNewer, have, known,
		)
	}
	// Before the database changes: a package may then be refused for nothing, but
	// is never installed over a database that it does not know.
	if err := noteSchema(ctx, filepath.Dir(path), known); err != nil {
		return err
	}
	sealed, err := verifyFor(ctx, db, have)
	if err != nil {
		return err
	}
	if _, err = provider.Up(ctx); err != nil || sealed && have == known {
		return err
	}
	return checksum.SealFor(ctx, db, known)
}

// verifyFor sets aside what is damaged, if there are sums for this version of the schema.
func verifyFor(ctx context.Context, db *sql.DB, version int64) (sealed bool, err error) {
	if there, err := checksum.IsSealed(ctx, db); err != nil || !there {
		return false, err
	}
	if have, err := checksum.SealedFor(ctx, db); err != nil || have != version {
		return false, err
	}
	found, err := findDamaged(ctx, db)
	if err == nil && len(found) > 0 {
		err = setDamagedAside(ctx, db, time.Now())
	}
	return true, err
}

// integrity refuses a damaged file: acting on a wrong record could cost a customer's disk.
// SQLite itself takes what a last page lacks for zeros.
func integrity(ctx context.Context, db *sql.DB, path string) error {
	var pageSize int64
	if err := db.QueryRowContext(ctx, "PRAGMA page_size").Scan(&pageSize); err != nil {
		return unreadable(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size()%pageSize != 0 {
		return fmt.Errorf("%w: it is cut short at %d bytes", ErrDamaged, info.Size())
	}
	answer, err := structure(ctx, db)
	if err == nil && answer != "ok" {
		answer, err = indexAgain(ctx, db, answer)
	}
	if err != nil {
		return unreadable(err)
	}
	if answer != "ok" {
		return fmt.Errorf("%w (%s)", ErrDamaged, answer)
	}
	return nil
}

// structure checks the file, and the constraints of tables whose rows have no checksum: a
// single damaged row of the others stops nothing (see daemon/store/checksum).
func structure(ctx context.Context, db checksum.DB) (answer string, err error) {
	rows, err := db.QueryContext(ctx, `SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%CHECK (%'`)
	tables, err := collect(judgedRows{rows, asItIs}, err, func(row scanner) (name string, err error) {
		return name, row.Scan(&name)
	})
	if err != nil {
		return "", err
	}
	if _, err := db.ExecContext(ctx, "PRAGMA ignore_check_constraints = ON"); err != nil {
		return "", err
	}
	err = db.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&answer)
	if _, err := db.ExecContext(ctx, "PRAGMA ignore_check_constraints = OFF"); err != nil {
		return "", err
	}
	for _, table := range tables {
		if err != nil || answer != "ok" {
			return answer, err
		}
		if !slices.ContainsFunc(checksum.Tables, func(g checksum.Table) bool { return g.Name == table }) {
			err = db.QueryRowContext(ctx, `PRAGMA integrity_check("`+table+`")`).Scan(&answer)
		}
	}
	return answer, err
}

// indexAgain makes the indexes again, if that is all that is wrong: the rows have checksums
// of their own. A file that is damaged otherwise is not changed.
func indexAgain(ctx context.Context, db *sql.DB, wrong string) (answer string, err error) {
	if sealed, err := checksum.IsSealed(ctx, db); err != nil || !sealed {
		return wrong, nil // without checksums an index is the only witness
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return "", err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, "REINDEX"); err != nil {
		return wrong, nil
	}
	if answer, err = structure(ctx, tx); err != nil || answer != "ok" {
		return wrong, nil
	}
	return answer, tx.Commit()
}

// unreadable tells damage from what may be over at the next try.
func unreadable(err error) error {
	var e *sqlite.Error
	if errors.As(err, &e) && (e.Code()&0xff == sqlite3.SQLITE_CORRUPT || e.Code()&0xff == sqlite3.SQLITE_NOTADB) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return fmt.Errorf("it cannot be read: %w", err)
}

// Now is the time as it is recorded: UTC, whole microseconds.
func (s *Store) Now() time.Time { return s.clock().UTC().Truncate(time.Microsecond) }

// Now is the time of everything that the transaction records.
func (t *Tx) Now() time.Time { return t.now }

// Close closes the database.
func (s *Store) Close() error {
	if s.writer == nil {
		return s.reader.Close()
	}
	return errors.Join(s.reader.Close(), s.writer.Close())
}

// Ping succeeds when the database can be read, and nothing forbids writing.
func (s *Store) Ping(ctx context.Context) error {
	if failed := s.failed.Load(); failed != nil {
		return *failed
	}
	var one int
	return s.q.QueryRowContext(ctx, "SELECT count(*) FROM promise").Scan(&one)
}

// Writable is nil when the lock of the writer can be had, or when something is wrong
// that is no hang: a full disk, another program's lock, a failed file system. It
// returns an error when ctx ends before, and no transaction has ended meanwhile.
func (s *Store) Writable(ctx context.Context) error {
	before := s.written.Load() + s.lost.Load()
	tx, err := s.writer.BeginTx(ctx, nil)
	if err == nil {
		_ = tx.Rollback() // nothing was written
		return nil
	}
	if ctx.Err() != nil && s.written.Load()+s.lost.Load() == before {
		return fmt.Errorf("nothing can be written to the database, and nothing ends: %w", err)
	}
	return nil
}

// Write runs do in one transaction. When Write returns nil everything do wrote is
// durable; otherwise nothing of it is. A full disk gives insufficient_space,
// which heals by itself. After an I/O error, or damage that was come upon, this
// Store writes no more: what a file system has once failed to write may be gone
// although the next try succeeds.
func (s *Store) Write(ctx context.Context, do func(*Tx) error) error {
	if failed := s.failed.Load(); failed != nil {
		return *failed
	}
	err := s.judge(s.write(ctx, do))
	if err != nil {
		s.lost.Add(1)
	} else {
		s.written.Add(1)
	}
	return err
}

// Commits tells how many transactions were committed since it was opened, and how
// many were not: refused by what they found, or failed.
func (s *Store) Commits() (committed, failed int64) { return s.written.Load(), s.lost.Load() }

// Broken is closed when an error came after which nothing is written any more.
func (s *Store) Broken() <-chan struct{} { return s.broken }

// judge notes an error after which nothing may be written any more, and says so.
// Reads are judged too: when a file system fails, they often are the first to tell.
func (s *Store) judge(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) || isFull(e) {
		return err
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		err = vps.Errorf(vps.CodeInternal, "the daemon's database failed; nothing is recorded any more").
			WithRemedy("look at the file system of the state directory (dmesg), cure it, and start vpssnapd again").
			Because(err)
		if s.failed.CompareAndSwap(nil, &err) {
			close(s.broken)
		}
	}
	return err
}

// read runs do on one state of the database, whatever is committed meanwhile.
func (s *Store) read(ctx context.Context, do func(queries) error) error {
	conn, err := s.reader.Conn(ctx)
	if err != nil {
		return s.judge(err)
	}
	defer conn.Close()
	// Not ended by ctx: database/sql would roll back on a goroutine that outlives Close.
	tx, err := conn.BeginTx(context.WithoutCancel(ctx), &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return s.judge(err)
	}
	defer tx.Rollback()
	return do(queries{querier{tx, s.judge}})
}

// write runs do in the one transaction that may write; the next one waits. What do returned
// as an error is rolled back.
func (s *Store) write(ctx context.Context, do func(*Tx) error) error {
	tx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return plain(err)
	}
	defer tx.Rollback()
	if err := checksum.Guard(ctx, tx); err != nil {
		return plain(err)
	}
	t := &Tx{queries: queries{querier{tx, asItIs}}, tx: tx, now: s.Now()}
	if err := do(t); err != nil {
		return plain(err)
	}
	if err := failpoint.Around(ctx, "commit", tx.Commit); err != nil {
		return plain(err)
	}
	s.mark.set(t.message)
	for _, kind := range t.dropped {
		s.dropped[kind].Add(1)
	}
	if t.event != 0 {
		s.committed.Wake()
	}
	if t.queued {
		s.queued.Wake()
	}
	return nil
}

// plain gives SQLite's errors the code that a caller may read, told apart by
// their number, never by their text.
func plain(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	if isFull(e) {
		return vps.Errorf(vps.CodeInsufficientSpace, "the file system of the daemon's state directory is full").Because(err)
	}
	if e.Code() == sqlite3.SQLITE_CONSTRAINT_TRIGGER { // only a guard raises one
		return vps.Errorf(vps.CodeVPSChanged, "its record is damaged, and is not acted on").
			WithRemedy("see vpssnap doctor, which tells what to do about it").Because(err)
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return vps.Errorf(vps.CodeHypervisorUnavailable, "the daemon's database is locked by another program").
			WithRemedy("end the program that has the database open, then try again").Because(err)
	}
	return err
}

// IsFull reports whether there was no room for what was to be written.
func IsFull(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && isFull(e)
}

// isFull says so also of the shared index of the log, which SQLite has another
// code for; it is never what has to be durable.
func isFull(e *sqlite.Error) bool {
	return e.Code()&0xff == sqlite3.SQLITE_FULL || e.Code() == sqlite3.SQLITE_IOERR_SHMSIZE
}

// IsUnique reports whether err is a violated uniqueness rule.
func IsUnique(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) &&
		(e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

// IsForeignKey reports whether what a row belongs to is not there.
func IsForeignKey(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code() == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
}

func (t *Tx) exec(ctx context.Context, query string, args ...any) error {
	_, err := t.tx.ExecContext(ctx, query, args...)
	return err
}

// execOne is exec for a statement that must change exactly one row.
func (t *Tx) execOne(ctx context.Context, query string, args ...any) error {
	res, err := t.tx.ExecContext(ctx, query, args...)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return fmt.Errorf("%d rows changed instead of one: %w", n, errors.Join(err, sql.ErrNoRows))
	}
	return nil
}

// scanner is a row, alone or of many.
type scanner interface{ Scan(dest ...any) error }

// querier asks the database, inside or outside a transaction, and has judge see
// every error.
type querier struct {
	on interface {
		QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
		QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	}
	judge func(error) error
}

// asItIs judges nothing: of a transaction, Write judges the outcome.
func asItIs(err error) error { return err }

func (q querier) QueryContext(ctx context.Context, query string, args ...any) (judgedRows, error) {
	rows, err := q.on.QueryContext(ctx, query, args...)
	return judgedRows{rows, q.judge}, q.judge(err)
}

func (q querier) QueryRowContext(ctx context.Context, query string, args ...any) scanner {
	return judgedRow{q.on.QueryRowContext(ctx, query, args...), q.judge}
}

type judgedRow struct {
	*sql.Row
	judge func(error) error
}

func (r judgedRow) Scan(dest ...any) error { return r.judge(r.Row.Scan(dest...)) }

type judgedRows struct {
	*sql.Rows
	judge func(error) error
}

func (r judgedRows) Err() error { return r.judge(r.Rows.Err()) }

// collect reads all rows with scan.
func collect[T any](rows judgedRows, err error, scan func(scanner) (T, error)) ([]T, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

// micros is how a time is stored.
func micros(t time.Time) int64 { return t.UnixMicro() }

func microsOrNull(t *time.Time) any {
	if t == nil {
		return nil
	}
	return t.UnixMicro()
}

// moment reads a stored time into a time.Time.
type moment struct{ to *time.Time }

func (m moment) Scan(v any) error {
	n, ok := v.(int64)
	if !ok {
		return fmt.Errorf("a time is stored as %T", v)
	}
	*m.to = time.UnixMicro(n).UTC()
	return nil
}

// momentOrNil reads a stored time that may be absent.
type momentOrNil struct{ to **time.Time }

func (m momentOrNil) Scan(v any) error {
	if v == nil {
		*m.to = nil
		return nil
	}
	*m.to = new(time.Time)
	return moment{*m.to}.Scan(v)
}

// nanosOrNull is how the time of a file's last change is stored: exactly, to be
// compared.
func nanosOrNull(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixNano()
}

// fileTime reads what nanosOrNull stored.
type fileTime struct{ to *time.Time }

func (f fileTime) Scan(v any) error {
	*f.to = time.Time{}
	if v == nil {
		return nil
	}
	n, ok := v.(int64)
	if !ok {
		return fmt.Errorf("a time is stored as %T", v)
	}
	*f.to = time.Unix(0, n).UTC()
	return nil
}

// inode reads the number of a file, which is stored with its 64 bits as they
// are: some network file systems use the highest, and SQLite has no unsigned.
type inode struct{ to *uint64 }

func (i inode) Scan(v any) error {
	n, ok := v.(int64)
	if !ok {
		return fmt.Errorf("a file's number is stored as %T", v)
	}
	*i.to = uint64(n)
	return nil
}
