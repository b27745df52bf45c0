package server

import (
	"encoding/base64"
	"slices"
	"strconv"
	"strings"

	"vpssnapd/daemon/vps"
)

// A cursor says behind which entry of which list the next page begins. It is given out in a
// form that nobody is tempted to read or to make, and names an entry of the page itself.
const (
	cursorOperation = "o:"
	cursorMessage   = "m:"
	cursorChange    = "c:"
)

// cursorOf is the cursor behind an entry; "" where there is no next page.
func cursorOf(list, id string) string {
	if id == "" {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString([]byte(list + id))
}

// readCursor returns the entry behind which a page begins; "" for the first page.
func readCursor(list string, cursor *string) (string, error) {
	if value(cursor) == "" {
		return "", nil
	}
	text, err := base64.RawURLEncoding.DecodeString(*cursor)
	id, ours := strings.CutPrefix(string(text), list)
	if err != nil || !ours || id == "" {
		return "", invalid("the parameter cursor is not one that was given out")
	}
	return id, nil
}

// numbered is readCursor of a list whose entries are numbered; 0 for the first page.
func numbered(list string, cursor *string) (int64, error) {
	id, err := readCursor(list, cursor)
	if id == "" || err != nil {
		return 0, err
	}
	before, err := strconv.ParseInt(id, 10, 64)
	if err != nil || before < 1 {
		return 0, invalid("the parameter cursor is not one that was given out")
	}
	return before, nil
}

// numberOf is cursorOf of an entry with a number; 0: there is no next page.
func numberOf(list string, next int64) string {
	if next == 0 {
		return ""
	}
	return cursorOf(list, strconv.FormatInt(next, 10))
}

// merged makes one page of a list for a caller, of the VPS that was asked for or of all. Who
// is bound reads each of its own by itself: entries of others are never read, nor told of by
// a cursor. read returns a page of one VPS, "" for all, newest first, and whether it has a next.
func merged[T any](
	who *caller, asked string, most int, newer func(a, b T) int, read func(vpsID string) ([]T, bool, error),
) (page []T, more bool, err error) {
	of := []string{asked}
	switch {
	case asked == "" && who.bound():
		of = vps.Unique(who.token.VPS)
	case asked != "" && !who.sees(asked):
		of = nil
	}
	for _, id := range of {
		some, next, err := read(id)
		if asked == "" && vps.CodeOf(err) == vps.CodeNotFound {
			continue // one that is gone takes nothing from the others
		}
		if err != nil {
			return nil, false, err
		}
		page, more = append(page, some...), more || next
	}
	slices.SortStableFunc(page, newer)
	if len(page) > most {
		page, more = page[:most], true
	}
	return page, more, nil
}
