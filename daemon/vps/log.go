package vps

import "log/slog"

// LogAttr names a VPS in the log: by its name, by which people search, and by its id,
// which stays when it is renamed.
func LogAttr(id, name string) slog.Attr { return slog.Group("", "vps", name, "vps_uuid", id) }

// LogAttr names an operation and its VPS in the log.
func (o Operation) LogAttr() slog.Attr {
	return slog.Group("", "operation", o.ID, "vps", o.VPSName, "vps_uuid", o.VPS)
}

// LogEventKey is the attribute that says which event a line of the log tells of: one
// of the types of Event, or one of those below.
const LogEventKey = "event"

// LogEvent says so.
func LogEvent[T ~string](event T) slog.Attr { return slog.String(LogEventKey, string(event)) }

// What only the log tells of: the record cannot, or nobody outside has to know.
const (
	// LogDatabaseUnusable: the database is damaged, was written by a newer program,
	// or failed while the daemon worked.
	LogDatabaseUnusable = "database.unusable"
	// LogDatabaseOld: an old copy of the database was put back.
	LogDatabaseOld = "database.old"
	// LogGuestStandsStill: a guest that we froze or suspended does not run again yet.
	LogGuestStandsStill = "guest.stands_still"
	// LogHung: the daemon hangs, and is started again.
	LogHung = "daemon.hung"
	// LogConfigRefused: the configuration was to be read again, and cannot be used.
	LogConfigRefused = "config.refused"
)
