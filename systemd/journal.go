package systemd

import (
	"log/slog"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
	slogjournal "github.com/systemd/slog-journal"

	"vpssnapd/daemon/vps"
)

// Logger writes to the journal when systemd has connected our error output to it,
// with fields to search by, and else as text to the error output.
func Logger(level slog.Leveler) *slog.Logger {
	if ours, err := journal.StderrIsJournalStream(); err == nil && ours {
		if h, err := slogjournal.NewHandler(&slogjournal.Options{Level: level, ReplaceAttr: field, ReplaceGroup: strings.ToUpper}); err == nil {
			return slog.New(h)
		}
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
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
	if a.Value.Kind() == slog.KindDuration { // a bare number would not say of what
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return slog.Attr{Key: fieldPrefix + fieldName(a.Key), Value: a.Value}
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
