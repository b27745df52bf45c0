package vps

import "time"

// SnapshotState is where the one snapshot of a VPS stands.
type SnapshotState string

const (
	// SnapshotCreating: the disks have not been switched yet.
	SnapshotCreating SnapshotState = "creating"
	// SnapshotAvailable: it can be restored.
	SnapshotAvailable SnapshotState = "available"
	// SnapshotRestoring: the disks are being put back; nothing may boot the VPS meanwhile.
	SnapshotRestoring SnapshotState = "restoring"
	// SnapshotDeleting: its data is being merged into the disk; it can never be restored again.
	SnapshotDeleting SnapshotState = "deleting"
	// SnapshotGone: deleted.
	SnapshotGone SnapshotState = "gone"
	// SnapshotBroken: a file it needs is missing or was replaced; the reason says which.
	SnapshotBroken SnapshotState = "broken"
)

// Final reports whether the snapshot never changes again.
func (s SnapshotState) Final() bool { return s == SnapshotGone }

// Consistency is what can be promised of the data in a snapshot.
type Consistency string

const (
	// ConsistencyFilesystem: the guest agent had frozen the guest's file systems.
	ConsistencyFilesystem Consistency = "filesystem"
	// ConsistencyCrash: as after a power cut.
	ConsistencyCrash Consistency = "crash"
	// ConsistencyOffline: the VPS was off.
	ConsistencyOffline Consistency = "offline"
)

// Quiesce is the policy for freezing the guest's file systems at a take.
type Quiesce string

const (
	// QuiescePrefer freezes when the agent answers, and takes a crash-consistent snapshot otherwise.
	QuiescePrefer Quiesce = "prefer"
	// QuiesceRequire fails the take when the guest cannot be frozen.
	QuiesceRequire Quiesce = "require"
	// QuiesceNever does not talk to the agent.
	QuiesceNever Quiesce = "never"
)

// Snapshot is the snapshot of one VPS. Sizes are bytes, times UTC.
type Snapshot struct {
	ID     string
	VPS    string
	State  SnapshotState
	Reason string // why it is broken
	// Heals reports whether it is broken only for files that are missing or replaced:
	// with them back in place it is available again.
	Heals       bool
	Description string
	CreatedAt   time.Time
	Consistency Consistency
	// FreezeMS is how long the guest's file systems stood frozen, in milliseconds; 0: not frozen.
	FreezeMS int64
	// SizeBytes is the virtual size of the disks covered.
	SizeBytes int64
	// DeltaBytes is what has been written since, as allocated in the overlays.
	DeltaBytes int64
	RestoredAt *time.Time
	// UndoUntil is until when the last restore can be undone; nil: it cannot.
	UndoUntil *time.Time
	UpdatedAt time.Time
	Disks     []SnapshotDisk
	// NVRAM is the file with the UEFI variables in use; "" for a VPS without.
	NVRAM string
	// NVRAMSaved is the copy made at the take, "" for a VPS without.
	NVRAMSaved string
	// NVRAMUndo is the copy from before the last restore.
	NVRAMUndo string
}

// SnapshotDisk is the part of a snapshot that concerns one disk.
type SnapshotDisk struct {
	Target string
	// Base is the frozen image: the snapshot's data.
	Base       string
	BaseFormat string
	BaseInode  uint64
	// BaseModified is when the base was last written to. It never is again, until
	// a delete merges into it. Zero: not known.
	BaseModified time.Time
	SizeBytes    int64
	// Overlay is the file the VPS writes to.
	Overlay      string
	OverlayInode uint64
	// Undo is the overlay from before the last restore; "" when there is none.
	Undo      string
	UndoInode uint64
	// Pivoted: the VPS uses the base again; the overlay is stale and must never be read.
	Pivoted bool
}

// TakeRequest asks for a snapshot.
type TakeRequest struct {
	Description string
	Quiesce     Quiesce // "" means QuiescePrefer
	// Replace takes the new snapshot first and merges the old one only afterwards.
	Replace bool
}

// PowerAfter is what a VPS should do after a restore.
type PowerAfter string

const (
	PowerPrevious PowerAfter = "previous"
	PowerRunning  PowerAfter = "running"
	PowerOff      PowerAfter = "off"
)

// RestoreRequest asks for a restore.
type RestoreRequest struct {
	// Confirm must be the snapshot's id.
	Confirm    string
	PowerAfter PowerAfter // "" means PowerPrevious
}
