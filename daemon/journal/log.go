package journal

import (
	"context"
	"log/slog"

	"vpssnapd/daemon/vps"
)

// log writes what has happened to the log, so that the log alone tells the story of
// a VPS: who asked for what, each step, and how it ended.
func (j *Journal) log(ctx context.Context, events []vps.Event) {
	for _, e := range events {
		about := vps.LogAttr(e.VPS, e.VPSName)
		switch {
		case e.Message != nil:
			j.logMessage(ctx, *e.Message, about)
		case e.Type == vps.EventOperationStep, e.Type == vps.EventOperationRunning:
			j.logger.Info(
				"operation has begun a step", about, "operation", e.Operation.ID, "kind", e.Operation.Kind, "step",
				e.Operation.Step,
			)
		case e.Type == vps.EventOperationFailed, e.Type == vps.EventOperationNeedsAttention:
			j.logTrouble(e.Type, *e.Operation, about)
		case e.Type == vps.EventSnapshotBroken:
			j.logger.Error("snapshot is broken", vps.LogEvent(e.Type), about, "reason", e.Snapshot.Reason)
		case e.Space != nil:
			j.logSpace(e.Type, *e.Space)
		}
	}
}

// logMessage writes a message of the journal, but for those that another event tells of better.
func (j *Journal) logMessage(ctx context.Context, m vps.MessageEvent, about slog.Attr) {
	level := slog.LevelInfo
	switch m.Kind {
	// Their events carry the code, the step and the remedy, which the message has not.
	case vps.MessageOperationFailed, vps.MessageNeedsAttention, vps.MessageSpace:
		return
	case vps.MessageWarning:
		level = slog.LevelWarn
	}
	line := []any{about, "kind", m.Kind}
	if m.Operation != "" {
		line = append(line, "operation", m.Operation)
	}
	j.logger.Log(ctx, level, m.Text, line...)
}

// logTrouble writes at the level error what an operator has to see, with the fields that
// journalctl can select by.
func (j *Journal) logTrouble(t vps.EventType, op vps.OperationEvent, about slog.Attr) {
	text := "operation has failed"
	if t == vps.EventOperationNeedsAttention {
		text = "operation waits for an operator"
	}
	j.logger.Error(text, vps.LogEvent(t), about, "operation", op.ID, "kind", op.Kind, "step", op.Step,
		"by", op.ActorName, "way", op.ActorWay, "code", op.Code, "detail", op.Detail, "remedy", op.Remedy)
}

// logSpace writes that a directory came near to being full.
func (j *Journal) logSpace(t vps.EventType, s vps.SpaceEvent) {
	j.logger.Warn(
		"space", vps.LogEvent(t), "space", s.Level, "directory", s.Path, "free", s.FreeBytes, "full_in_seconds",
		s.FullInSeconds,
	)
}

// WatchStore tells the log once that the database fails.
func (j *Journal) WatchStore(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-j.store.Broken():
		j.logger.Error("nothing can be recorded any more", vps.LogEvent(vps.LogDatabaseUnusable), "error", j.store.Ping(ctx))
	}
}
