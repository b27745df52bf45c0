package systemd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"unicode"

	"github.com/coreos/go-systemd/v22/journal"
	slogjournal "github.com/systemd/slog-journal"

	"vpssnapd/daemon/vps"
)

// Logger writes to the journal when systemd has connected our error output to it,
// with fields to search by, and else as text to the error output.
func Logger(level slog.Leveler) *slog.Logger {
	if ours, err := journal.StderrIsJournalStream(); err == nil && ours {
		if h, err := slogjournal.NewHandler(
			&slogjournal.Options{Level: level, ReplaceAttr: field, ReplaceGroup: strings.ToUpper},
		); err == nil {
			return slog.New(newStoryteller(h))
		}
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// storyteller puts the attributes into the message too: journalctl shows no other field.
type storyteller struct {
	journal, text slog.Handler
	line          *line
}

// line is what text writes to.
type line struct {
	mu sync.Mutex
	bytes.Buffer
}

func newStoryteller(journal slog.Handler) *storyteller {
	s := &storyteller{journal: journal, line: &line{}}
	s.text = slog.NewTextHandler(
		s.line,
		&slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			switch a.Key {
			case slog.TimeKey, slog.LevelKey, slog.MessageKey, vps.LogEventKey, "vps_uuid":
				return slog.Attr{} // the journal shows them by itself, or they help to search only
			}
			return a
		}},
	)
	return s
}

// Enabled is part of slog.Handler.
func (s *storyteller) Enabled(ctx context.Context, level slog.Level) bool {
	return s.journal.Enabled(ctx, level)
}

// Handle is part of slog.Handler.
func (s *storyteller) Handle(ctx context.Context, r slog.Record) error {
	s.line.mu.Lock()
	s.line.Reset()
	err := s.text.Handle(ctx, r)
	attributes := strings.TrimSpace(s.line.String())
	s.line.mu.Unlock()
	// Fields and text: the fields are for searching, the text is what journalctl shows.
	told := slog.NewRecord(r.Time, r.Level, oneLine(strings.TrimSpace(r.Message+" "+attributes)), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		told.AddAttrs(a)
		return true
	})
	return errors.Join(err, s.journal.Handle(ctx, told))
}

// WithAttrs is part of slog.Handler.
func (s *storyteller) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &storyteller{s.journal.WithAttrs(attrs), s.text.WithAttrs(attrs), s.line}
}

// WithGroup is part of slog.Handler.
func (s *storyteller) WithGroup(name string) slog.Handler {
	return &storyteller{s.journal.WithGroup(name), s.text.WithGroup(name), s.line}
}

const messageID = "MESSAGE_ID"

// field names an attribute as a field of the journal, as in VPSSNAP_VPS: in small
// letters it would vanish. An event gets the id of its entry in the catalogue too.
func field(groups []string, a slog.Attr) slog.Attr {
	if a.Key == messageID || strings.HasPrefix(a.Key, fieldPrefix) {
		return a // made below, and shown here again
	}
	if a.Key == vps.LogEventKey {
		if id, ok := messageIDs[a.Value.String()]; ok {
			return slog.Group("", slog.String(messageID, id), slog.String(fieldPrefix+"EVENT", a.Value.String()))
		}
	}
	// As text: of a duration a bare number would not say what it counts.
	return slog.String(fieldPrefix+fieldName(a.Key), oneLine(a.Value.String()))
}

// oneLine keeps lines together: slog-journal v0.1.0 leaves out the end of a field with
// several (seen), and journald then drops all that comes after it. What could steer the
// terminal of who reads the journal, or turn its text round, is left out.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			return '?'
		}
		return r
	}, strings.ReplaceAll(text, "\n", "; "))
}

const fieldPrefix = "VPSSNAP_"

// fieldName keeps what journald accepts in a name.
func fieldName(key string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
}

// messageIDs name the events that have an entry in the catalogue (vpssnapd.catalog);
// they never change.
var messageIDs = map[string]string{
	string(vps.EventOperationFailed):         "4995146ee0e568d4acb38e56cbe1732c",
	string(vps.EventOperationNeedsAttention): "3c9fe91b9d47cfcf514dc47e536f3869",
	string(vps.EventSpaceWarning):            "a34e713d9250b92aca57fced0993ad06",
	string(vps.EventSpaceCritical):           "6a8b645c70a370788b9987abc0e18c67",
	string(vps.EventSnapshotBroken):          "066f0c47e04279798176fb21da933fc4",
	vps.LogDatabaseUnusable:                  "eee938e1953bfcd1c29e47ca64ed09a5",
	vps.LogDatabaseOld:                       "32c3bc0818d63462f24532b958592c6e",
	vps.LogGuestStandsStill:                  "18696e1d6559c83cc792c9463cbd8c1a",
	vps.LogHung:                              "6bc4161b54051527a0900e208c8933b8",
	vps.LogConfigRefused:                     "d3ea239b763ffd6c923435f13f3ecea4",
}
