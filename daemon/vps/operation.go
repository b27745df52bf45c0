package vps

import "time"

// Kind is what an operation does.
type Kind string

const (
	KindTake        Kind = "take"
	KindRestore     Kind = "restore"
	KindUndoRestore Kind = "undo_restore"
	KindDelete      Kind = "delete"
)

// Status is where an operation stands.
type Status string

const (
	// StatusPending: accepted and durable, not begun.
	StatusPending Status = "pending"
	// StatusRunning: being worked on, or waiting for the hypervisor to come back.
	StatusRunning Status = "running"
	// StatusSucceeded: done.
	StatusSucceeded Status = "succeeded"
	// StatusFailed: not done; the VPS's disks are whole and the error says what to do.
	StatusFailed Status = "failed"
	// StatusCancelled: stopped on request before anything irrevocable; everything was undone.
	StatusCancelled Status = "cancelled"
	// StatusNeedsAttention: parked for an operator, who resumes it when the cause is cured.
	StatusNeedsAttention Status = "needs_attention"
)

// Final reports whether the operation never changes again.
func (s Status) Final() bool {
	return s == StatusSucceeded || s == StatusFailed || s == StatusCancelled
}

// Way is by which way a request came.
type Way string

const (
	WayPanel    Way = "panel"
	WayOrder    Way = "order"
	WayOperator Way = "operator"
	WayExpiry   Way = "expiry"
	WayRecovery Way = "recovery"
)

// Actor is who asked, and by which way.
type Actor struct {
	Name string // token name, user name, or the daemon itself
	Way  Way
}

// Who acts when nobody asked.
var (
	// ActorWatch speaks of what was seen, and put right, on the host.
	ActorWatch = Actor{Name: "vpssnapd", Way: WayRecovery}
	// ActorExpiry acts when a time is over.
	ActorExpiry = Actor{Name: "vpssnapd", Way: WayExpiry}
)

// Progress is how far an operation's present step is.
type Progress struct {
	DoneBytes  int64
	TotalBytes int64
	Percent    int // 0 to 100, of the whole operation
	// ETASeconds is the estimated time to the end; nil: unknown.
	ETASeconds *int64
	// Note says, for a human, what holds the operation up; "" when nothing does.
	Note string
}

// Operation is one piece of long work on one VPS.
type Operation struct {
	ID      string
	VPS     string
	VPSName string
	Kind    Kind
	Status  Status
	Step    string
	// Irrevocable: it can no longer be cancelled, only finished.
	Irrevocable bool
	// CancelRequested: someone asked to cancel and it will stop at the next safe point.
	CancelRequested bool
	Progress        Progress
	Actor           Actor
	SnapshotID      string
	CreatedAt       time.Time
	StartedAt       *time.Time
	EndedAt         *time.Time
	// Error is set for failed and needs_attention.
	Error *Error
	// Result says, for a human, what came of it: consistency reached, whether the guest answered.
	Result string
	// LongestPauseMS is how long it has had the guest suspended at a time, at most.
	LongestPauseMS int64
	// Request and Plan belong to the daemon; they never leave it.
	Request []byte
	Plan    []byte
}

// OperationQuery selects operations, newest first.
type OperationQuery struct {
	VPS    string // "" for all
	Status Status // "" for all
	// Before is the cursor of the previous page; "" for the first.
	Before string
	Limit  int
}

// OperationPage is one page; Next is "" on the last.
type OperationPage struct {
	Operations []Operation
	Next       string
}
