package vps

import "time"

// MessageKind names what a message is about; stable, for filters.
type MessageKind string

const (
	MessageOperationStarted   MessageKind = "operation_started"
	MessageOperationSucceeded MessageKind = "operation_succeeded"
	MessageOperationFailed    MessageKind = "operation_failed"
	MessageOperationCancelled MessageKind = "operation_cancelled"
	MessageNeedsAttention     MessageKind = "needs_attention"
	MessageOptionChanged      MessageKind = "option_changed"
	MessageUndoEnded          MessageKind = "undo_ended"
	MessageWarning            MessageKind = "warning"
	// MessageDownload: a link to download the snapshot was made or ended.
	MessageDownload MessageKind = "download"
	// MessageMoved: the VPS was migrated to another host, or has come from one.
	MessageMoved MessageKind = "moved"
	// MessageSpace: a file system is filling up, or has room again.
	MessageSpace MessageKind = "space"
)

// Message is one line of the journal that customers and operators read. Append-only.
type Message struct {
	ID  int64
	At  time.Time
	VPS string
	// VPSName is the name at that time.
	VPSName   string
	Kind      MessageKind
	Actor     Actor
	Operation string // id; "" when none
	// Text is written for a customer, in English: no host paths, no internals.
	Text string
	// Phrase and Params say the same in no language; "" in messages from before
	// there were phrases.
	Phrase Phrase
	Params map[string]string
	// Detail is for operators only.
	Detail string
}

// MessageQuery selects messages, newest first.
type MessageQuery struct {
	VPS    string // "" for all
	Kind   MessageKind
	Since  time.Time // zero: from the first
	Until  time.Time // exclusive; zero: to the last
	Before int64     // cursor: ids below this; 0 for the newest
	Limit  int
}

// MessagePage is one page; Next is 0 on the last.
type MessagePage struct {
	Messages []Message
	Next     int64
}

// PageLimit is how many rows a page has: 100 unless asked otherwise, 500 at most.
func PageLimit(n int) int {
	if n <= 0 {
		return 100
	}
	return min(n, 500)
}
