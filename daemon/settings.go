package daemon

import (
	"time"

	"vpssnapd/daemon/vps"
)

// Settings are what may change while the daemon works (Apply).
type Settings struct {
	Offer vps.Offer
	// Grace is how long a snapshot outlives its option.
	Grace time.Duration
	// UndoKeep is how long a restore can be undone.
	UndoKeep time.Duration
	// FreezeLimit is how long a guest may stand frozen, 10 s at most.
	FreezeLimit time.Duration
	// AgentWait is how long a restore waits for the guest to answer again.
	AgentWait time.Duration
	// MergeLimit is how many merges may copy at the same time.
	MergeLimit int
	// Merge says what is done about merges that guests outrun; its zero value: nothing.
	Merge MergePolicy
	// Download limits downloads; its zero value: there are none.
	Download DownloadPolicy
	// Headroom is how many bytes must be free for a take.
	Headroom int64
	// RemindBefore is how long before an option ends, or its snapshot is removed,
	// the customer is told by e-mail.
	RemindBefore time.Duration
}

// Apply lets other settings count from now on. What was decided by the old ones
// stays: the end of an undo, the price of an order. A merge that has its place
// keeps it, when fewer may copy now.
func (d *Daemon) Apply(s Settings) {
	d.settings.Store(&s)
	d.merges.resize(s.MergeLimit)
}

// present is the settings in force; never nil.
func (d *Daemon) present() *Settings { return d.settings.Load() }
