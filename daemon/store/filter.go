package store

import "strings"

// filter is the WHERE clause of the terms that were asked for. A term that a parameter
// switches off, as in (? IS NULL OR vps = ?), keeps SQLite from using any index.
type filter struct {
	terms []string
	args  []any
}

// add adds a term. A "+" before a column keeps SQLite from choosing its index.
func (f *filter) add(term string, args ...any) {
	f.terms = append(f.terms, term)
	f.args = append(f.args, args...)
}

// where is the clause, "" without terms.
func (f *filter) where() string {
	if len(f.terms) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(f.terms, " AND ")
}
