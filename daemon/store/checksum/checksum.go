// Package checksum keeps a checksum of each row that decides, so that a bit that flips in the
// database, or a change by somebody else, is found before anything is done on its word.
package checksum

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"modernc.org/sqlite"
)

// Rows that decide have a checksum, which triggers of the connection that writes keep in
// the transaction of every change. So no statement can forget it, a column that is added
// later is covered, and what another program writes into the file does not count. A row
// that does not fit its sum is moved to the table damaged by daemon/store: whatever
// reads, reads whole rows only, and at no cost.

// Table is one whose rows have checksums.
type Table struct {
	Name  string
	VPS   string // whose a row is; an expression of SQL, as Open
	Open  string // that it still counts, and is not history
	Parts string // a table of rows that belong to one of this table, named after it; "": none
}

// Tables are all of them.
var Tables = []Table{
	{Name: "option", VPS: "vps", Open: "state <> 'released'"},
	{Name: "snapshot", VPS: "vps", Open: "state <> 'gone'", Parts: "snapshot_disk"},
	{Name: "operation", VPS: "vps", Open: "status NOT IN ('succeeded', 'failed', 'cancelled')"},
	{Name: "token", VPS: "''", Open: "1"},
}

// Function is how SQL calls rowSum.
const Function = "vpssnap_row_sum"

func init() { sqlite.MustRegisterDeterministicScalarFunction(Function, -1, rowSum) }

// rowSum is the checksum of a list of values. Each is written with its type and length, so
// that no two lists are alike.
func rowSum(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
	var text []byte
	add := func(kind byte, value []byte) {
		text = append(text, kind)
		text = binary.BigEndian.AppendUint64(text, uint64(len(value)))
		text = append(text, value...)
	}
	for _, arg := range args {
		switch v := arg.(type) {
		case nil:
			add('n', nil)
		case int64:
			add('i', binary.BigEndian.AppendUint64(nil, uint64(v)))
		case string:
			add('t', []byte(v))
		case []byte:
			add('b', v)
		default:
			return nil, fmt.Errorf("a column holds a %T, which no table has", arg)
		}
	}
	sum := sha256.Sum256(text)
	return sum[:16], nil
}

// DB is a database, a connection or a transaction.
type DB interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// tableColumn is one of a table, as the file has it.
type tableColumn struct {
	name string
	blob bool
}

func columnsOf(ctx context.Context, db DB, table string) ([]tableColumn, error) {
	rows, err := db.QueryContext(ctx, `SELECT name, type = 'BLOB' FROM pragma_table_info(?) ORDER BY cid`, table)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []tableColumn
	for rows.Next() {
		var c tableColumn
		if err := rows.Scan(&c.name, &c.blob); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, rows.Err()
}

// Sum is the expression of the checksum of a row that is named as said.
func (g Table) Sum(ctx context.Context, db DB, row string) (string, error) {
	own, err := sumCall(ctx, db, g.Name, row)
	if err != nil || g.Parts == "" {
		return own + ")", err
	}
	part, err := sumCall(ctx, db, g.Parts, "part")
	return fmt.Sprintf("%s, (SELECT group_concat(hex(%s)), '') FROM (SELECT * FROM %s WHERE %s = %s.id ORDER BY 1, 2) part))",
		own, part, g.Parts, g.Name, row), err
}

// sumCall is the call of rowSum for all columns of a table, without its end.
func sumCall(ctx context.Context, db DB, table, row string) (string, error) {
	columns, err := columnsOf(ctx, db, table)
	call := Function + "('" + table + "'"
	for _, c := range columns {
		call += ", " + row + "." + c.name
	}
	return call, err
}

// Content is the expression of a row as JSON.
func Content(ctx context.Context, db DB, table, row string) (string, error) {
	columns, err := columnsOf(ctx, db, table)
	var parts []string
	for _, c := range columns {
		value := row + "." + c.name
		if c.blob {
			value = "hex(" + value + ")"
		}
		parts = append(parts, "'"+c.name+"', "+value)
	}
	return "json_object(" + strings.Join(parts, ", ") + ")", err
}

// Guard makes the triggers of a connection, unless it has them: database/sql may open
// another one at any time.
func Guard(ctx context.Context, db DB) error {
	var there bool
	err := db.QueryRowContext(ctx, `SELECT count(*) > 0 FROM sqlite_temp_master WHERE type = 'trigger'`).Scan(&there)
	if err != nil || there {
		return err
	}
	for _, g := range Tables {
		triggers, err := g.triggers(ctx, db)
		if err != nil {
			return err
		}
		for _, trigger := range triggers {
			if _, err := db.ExecContext(ctx, `CREATE TEMP TRIGGER `+trigger); err != nil {
				return fmt.Errorf("cannot guard the table %s: %w", g.Name, err)
			}
		}
	}
	return nil
}

// triggers keep the sums of a table. A row that does not fit its sum is not changed: the
// change would make it one that does.
func (g Table) triggers(ctx context.Context, db DB) ([]string, error) {
	before, err1 := g.Sum(ctx, db, "OLD")
	after, err2 := g.Sum(ctx, db, "NEW")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	write := fmt.Sprintf(`INSERT INTO checksum VALUES ('%s', NEW.id, %s, %s, %s) ON CONFLICT (kind, id)
		DO UPDATE SET vps = excluded.vps, open = excluded.open, sum = excluded.sum`,
		g.Name, Of("NEW", g.VPS), Of("NEW", g.Open), after)
	sum := fmt.Sprintf(`(SELECT sum FROM checksum WHERE kind = '%s' AND id = OLD.id)`, g.Name)
	all := []string{
		fmt.Sprintf(`%s_unfit BEFORE UPDATE ON main.%s WHEN %s IS NOT %s BEGIN SELECT RAISE(ABORT, 'a damaged row'); END`,
			g.Name, g.Name, sum, before),
		fmt.Sprintf(`%s_added AFTER INSERT ON main.%s BEGIN %s; END`, g.Name, g.Name, write),
		fmt.Sprintf(`%s_changed AFTER UPDATE ON main.%s BEGIN %s; END`, g.Name, g.Name, write),
		fmt.Sprintf(`%s_removed AFTER DELETE ON main.%s BEGIN DELETE FROM checksum WHERE kind = '%s' AND id = OLD.id; END`,
			g.Name, g.Name, g.Name),
	}
	if g.Parts == "" {
		return all, nil
	}
	whole, err := g.Sum(ctx, db, "whole")
	for event, row := range map[string]string{"INSERT": "NEW", "UPDATE": "NEW", "DELETE": "OLD"} {
		all = append(all, fmt.Sprintf(`%s_%s AFTER %s ON main.%s BEGIN UPDATE checksum
			SET sum = coalesce((SELECT %s FROM %s whole WHERE whole.id = %s.%s), sum) WHERE kind = '%s' AND id = %s.%s; END`,
			g.Parts, event, event, g.Parts, whole, g.Name, row, g.Name, g.Name, row, g.Name))
	}
	return all, err
}

// Of names the row in an expression of its first column.
func Of(row, expression string) string {
	if strings.HasPrefix(expression, "'") || expression == "1" {
		return expression
	}
	return row + "." + expression
}

// IsSealed reports whether the schema has checksums.
func IsSealed(ctx context.Context, db DB) (yes bool, err error) {
	err = db.QueryRowContext(ctx, `SELECT count(*) > 0 FROM sqlite_master WHERE name = 'checksum'`).Scan(&yes)
	return yes, err
}

// SealedFor is the version of the schema for which there are sums.
func SealedFor(ctx context.Context, db DB) (version int64, err error) {
	err = db.QueryRowContext(ctx, `SELECT CAST(vps AS INTEGER) FROM checksum WHERE kind = 'schema'`).Scan(&version)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return version, err
}

// Seal makes the sums of all rows as they are. It is for a schema that has changed, and for
// rows that were written without a Store.
func Seal(ctx context.Context, db DB) error {
	if _, err := db.ExecContext(ctx, `DELETE FROM checksum WHERE kind <> 'schema'`); err != nil {
		return err
	}
	for _, g := range Tables {
		sum, err := g.Sum(ctx, db, "r")
		if err != nil {
			return err
		}
		_, err = db.ExecContext(ctx, fmt.Sprintf(`INSERT INTO checksum SELECT '%s', r.id, %s, %s, %s FROM %s r`,
			g.Name, Of("r", g.VPS), Of("r", g.Open), sum, g.Name))
		if err != nil {
			return fmt.Errorf("cannot make the checksums of the table %s: %w", g.Name, err)
		}
	}
	return nil
}

// SealFor is Seal with a note of the version, all or nothing.
func SealFor(ctx context.Context, db *sql.DB, version int64) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := Seal(ctx, tx); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO checksum VALUES ('schema', '', ?, 0, x'') ON CONFLICT DO UPDATE SET vps = excluded.vps`,
		fmt.Sprint(version))
	if err != nil {
		return err
	}
	return tx.Commit()
}
