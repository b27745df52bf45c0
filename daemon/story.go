package daemon

import (
	"context"
	"log/slog"

	"vpssnapd/daemon/vps"
)

// story writes what has happened to the log, so that the log alone tells the story of
// a VPS: who asked for what, each step, and how it ended.
func (d *Daemon) story(events []vps.Event) {
	for _, e := range events {
		about := vps.LogAttr(e.VPS, e.VPSName)
		switch {
		case e.Message != nil:
			d.tellMessage(*e.Message, about)
		case e.Type == vps.EventOperationStep, e.Type == vps.EventOperationRunning:
			d.Logger.Info("operation has begun a step", about, "operation", e.Operation.ID, "kind", e.Operation.Kind, "step", e.Operation.Step)
		case e.Type == vps.EventOperationFailed, e.Type == vps.EventOperationNeedsAttention:
			d.tellTrouble(e.Type, *e.Operation, about)
		case e.Type == vps.EventSnapshotBroken:
			d.Logger.Error("snapshot is broken", vps.LogEvent(e.Type), about, "reason", e.Snapshot.Reason)
		case e.Space != nil:
			d.tellSpaceLog(e.Type, *e.Space)
		}
	}
}

// tellMessage writes a message of the journal, but for those that another event tells of better.
func (d *Daemon) tellMessage(m vps.MessageEvent, about slog.Attr) {
	level := slog.LevelInfo
	switch m.Kind {
	case vps.MessageOperationFailed, vps.MessageNeedsAttention, vps.MessageSpace:
		return
	case vps.MessageWarning:
		level = slog.LevelWarn
	}
	line := []any{about, "kind", m.Kind}
	if m.Operation != "" {
		line = append(line, "operation", m.Operation)
	}
	d.Logger.Log(d.ctx, level, m.Text, line...)
}

func (d *Daemon) tellTrouble(t vps.EventType, op vps.OperationEvent, about slog.Attr) {
	text := "operation has failed"
	if t == vps.EventOperationNeedsAttention {
		text = "operation waits for an operator"
	}
	d.Logger.Error(text, vps.LogEvent(t), about, "operation", op.ID, "kind", op.Kind, "step", op.Step,
		"by", op.ActorName, "way", op.ActorWay, "code", op.Code, "detail", op.Detail, "remedy", op.Remedy)
}

func (d *Daemon) tellSpaceLog(t vps.EventType, s vps.SpaceEvent) {
	d.Logger.Warn("space", vps.LogEvent(t), "space", s.Level, "directory", s.Path, "free", s.FreeBytes, "full_in_seconds", s.FullInSeconds)
}

// watchStore says once that the database fails.
func (d *Daemon) watchStore(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-d.store.Broken():
		d.Logger.Error("nothing can be recorded any more", vps.LogEvent(vps.LogDatabaseUnusable), "error", d.store.Ping(ctx))
	}
}
