package vps

import (
	"slices"
	"strings"
	"time"
)

// EventType names what has happened; stable, for filters and for programs.
type EventType string

const (
	// EventOperationStep: an operation has begun its next step. The other types
	// of operations are named after the status that it has got.
	EventOperationStep           EventType = "operation.step"
	EventOperationPending        EventType = "operation.pending"
	EventOperationRunning        EventType = "operation.running"
	EventOperationSucceeded      EventType = "operation.succeeded"
	EventOperationFailed         EventType = "operation.failed"
	EventOperationCancelled      EventType = "operation.cancelled"
	EventOperationNeedsAttention EventType = "operation.needs_attention"

	// EventOptionChanged: something other than the state. The other types of
	// options are named after the state that it has got.
	EventOptionChanged  EventType = "option.changed"
	EventOptionOrdered  EventType = "option.ordered"
	EventOptionActive   EventType = "option.active"
	EventOptionGrace    EventType = "option.grace"
	EventOptionReleased EventType = "option.released"

	// EventSnapshotChanged: something other than the state: its description, or
	// until when its restore can be undone. The other types of snapshots are named
	// after the state that it has got.
	EventSnapshotChanged   EventType = "snapshot.changed"
	EventSnapshotCreating  EventType = "snapshot.creating"
	EventSnapshotAvailable EventType = "snapshot.available"
	EventSnapshotRestoring EventType = "snapshot.restoring"
	EventSnapshotDeleting  EventType = "snapshot.deleting"
	EventSnapshotGone      EventType = "snapshot.gone"
	EventSnapshotBroken    EventType = "snapshot.broken"

	// EventMessage: the journal has a new message.
	EventMessage EventType = "message"

	// A file system of the host has got another level of space.
	EventSpaceOK       EventType = "space.ok"
	EventSpaceWarning  EventType = "space.warning"
	EventSpaceCritical EventType = "space.critical"

	// EventMissed is not stored: it tells a listener that events it asked for are
	// kept no more, and that it has to look for itself how things stand.
	EventMissed EventType = "events.missed"

	// EventWebhookTest is not stored: it tells a webhook that it works.
	EventWebhookTest EventType = "webhook.test"
)

// ForWebhooks reports whether webhooks are told of events of this type. Steps are too many,
// and the journal tells of webhooks itself.
func (t EventType) ForWebhooks() bool {
	switch t {
	case EventOperationStep, EventMessage, EventMissed, EventWebhookTest:
		return false
	}
	family, _, _ := strings.Cut(string(t), ".")
	return slices.Contains([]string{"operation", "option", "snapshot", "space"}, family)
}

// Event is something that has happened.
type Event struct {
	// ID grows by one from event to event.
	ID   int64
	At   time.Time
	Type EventType
	VPS  string // "" when it concerns the host
	// VPSName is the name at that time.
	VPSName string
	EventData
}

// EventData is the part that its type needs; the others are nil. Its JSON is stored.
type EventData struct {
	Operation *OperationEvent `json:"operation,omitempty"`
	Option    *OptionEvent    `json:"option,omitempty"`
	Snapshot  *SnapshotEvent  `json:"snapshot,omitempty"`
	Message   *MessageEvent   `json:"message,omitempty"`
	Space     *SpaceEvent     `json:"space,omitempty"`
}

// OperationEvent is an operation as it was then.
type OperationEvent struct {
	ID         string `json:"id"`
	Kind       Kind   `json:"kind"`
	Status     Status `json:"status"`
	Step       string `json:"step,omitempty"`
	SnapshotID string `json:"snapshot_id,omitempty"`
	ActorName  string `json:"actor_name"`
	ActorWay   Way    `json:"actor_way"`
	Result     string `json:"result,omitempty"`
	Code       Code   `json:"code,omitempty"`
	Detail     string `json:"detail,omitempty"`
	Remedy     string `json:"remedy,omitempty"`
}

// OptionEvent is an option as it was then, without whom to write to.
type OptionEvent struct {
	ID         string      `json:"id"`
	State      OptionState `json:"state"`
	OrderRef   string      `json:"order_ref,omitempty"`
	EndsAt     *time.Time  `json:"ends_at,omitempty"`
	GraceUntil *time.Time  `json:"grace_until,omitempty"`
	Note       string      `json:"note,omitempty"`
	ActorName  string      `json:"actor_name"`
	ActorWay   Way         `json:"actor_way"`
}

// SnapshotEvent is a snapshot as it was then.
type SnapshotEvent struct {
	ID          string        `json:"id"`
	State       SnapshotState `json:"state"`
	Reason      string        `json:"reason,omitempty"`
	Description string        `json:"description,omitempty"`
	UndoUntil   *time.Time    `json:"undo_until,omitempty"`
}

// MessageEvent is a message of the journal.
type MessageEvent struct {
	ID        int64             `json:"id"`
	Kind      MessageKind       `json:"kind"`
	Operation string            `json:"operation,omitempty"`
	Text      string            `json:"text"`
	Phrase    Phrase            `json:"phrase,omitempty"`
	Params    map[string]string `json:"params,omitempty"`
}

// SpaceEvent is a file system as it was then. Path is for operators only.
type SpaceEvent struct {
	Level         SpaceLevel `json:"level"`
	Path          string     `json:"path"`
	TotalBytes    int64      `json:"total_bytes"`
	FreeBytes     int64      `json:"free_bytes"`
	FullInSeconds int64      `json:"full_in_seconds,omitempty"`
}

// FromNow asks for the events that are still to come.
const FromNow int64 = -1

// EventPage is the events after one, oldest first.
type EventPage struct {
	Events []Event
	// After is the id that the page begins behind: the one that was asked for,
	// unless Missed.
	After int64
	// Missed: events between the one asked for and After are kept no more.
	Missed bool
	// Changed is closed when there are more events than now.
	Changed <-chan struct{}
}
