package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"vpssnapd/hostfile"
)

// markFile is named so that whoever copies the database's files does not copy it, too.
const markFile = "journal.mark"

// mark is a file beside the database with the number of the last message of the
// journal. It is written after each commit that adds one, and not synced: so it
// never runs ahead of the database, and a database that lies behind it is an old
// copy that somebody has put back.
type mark struct {
	path     string
	outdated atomic.Bool
}

// openMark compares the file with the database. A mark that is missing tells nothing:
// the database may be older than marks are.
func openMark(ctx context.Context, path string, q queries) (*mark, error) {
	m := &mark{path: path}
	text, err := hostfile.Read(ctx, path, hostfile.Secret)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot tell whether the database is the last one: %w", err)
	}
	last, err := q.lastMessage(ctx)
	if err != nil {
		return nil, err
	}
	// A file that was torn by a power cut tells nothing.
	noted, err := strconv.ParseInt(strings.TrimSuffix(string(text), "\n"), 10, 64)
	m.outdated.Store(err == nil && strings.HasSuffix(string(text), "\n") && noted > last)
	return m, nil
}

// set notes a message. A failure makes the mark lag behind, which costs nothing
// but that an old copy might not be noticed.
func (m *mark) set(message int64) {
	if m == nil || message == 0 || m.outdated.Load() {
		return
	}
	_ = os.WriteFile(m.path, []byte(strconv.FormatInt(message, 10)+"\n"), 0o600)
}

// lastMessage is the number of the last message there ever was; 0: none yet. It may be
// pruned since.
func (s queries) lastMessage(ctx context.Context) (int64, error) {
	var id int64
	err := s.q.QueryRowContext(ctx, `SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'message'`).Scan(&id)
	return id, err
}

// Outdated reports whether the database is older than what this host's daemon has
// recorded last: an old copy was put back, or the database was lost.
func (s *Store) Outdated() bool { return s.mark != nil && s.mark.outdated.Load() }

// Accept makes an outdated database the present one.
func (s *Store) Accept(ctx context.Context) error {
	last, err := s.lastMessage(ctx)
	if err == nil {
		s.mark.outdated.Store(false)
		s.mark.set(last)
	}
	return err
}
