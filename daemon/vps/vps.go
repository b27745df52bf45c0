package vps

// State is what a VPS is doing, as libvirt sees it.
type State string

const (
	// StateRunning: the guest's processors run.
	StateRunning State = "running"
	// StatePaused: the guest is in memory but its processors are stopped.
	StatePaused State = "paused"
	// StateOff: no QEMU process.
	StateOff State = "off"
	// StateSuspended: the guest put itself to sleep (S3).
	StateSuspended State = "suspended"
	// StateCrashed: the guest crashed and libvirt kept it.
	StateCrashed State = "crashed"
	// StateUnknown: libvirt gave no state, or one newer than this program.
	StateUnknown State = "unknown"
)

// Active reports whether a QEMU process holds the disks open.
func (s State) Active() bool { return s != StateOff }

// AgentState is what is known of the QEMU guest agent.
type AgentState string

const (
	// AgentConnected: the agent in the guest has opened its channel.
	AgentConnected AgentState = "connected"
	// AgentDisconnected: the channel is there, but nothing in the guest has opened it.
	AgentDisconnected AgentState = "disconnected"
	// AgentNone: the VPS has no agent channel.
	AgentNone AgentState = "none"
)

// VPS is a libvirt domain as this product sees it.
type VPS struct {
	// ID is the domain's UUID.
	ID         string
	Name       string
	State      State
	Agent      AgentState
	Persistent bool
	Disks      []Disk
	Option     *Option    // nil: never ordered, or released
	Snapshot   *Snapshot  // nil: none
	Operation  *Operation // the one active or parked operation; nil: none
	Actions    Actions
}

// Disk is one disk of a VPS and whether a snapshot covers it.
type Disk struct {
	// Target is the guest-side name, as in vda.
	Target string
	// Path is the file in use. For operators only.
	Path      string
	Format    string
	SizeBytes int64
	// Included reports whether a snapshot covers this disk.
	Included bool
	// Reason says why the disk is left out, or why it makes the VPS
	// unsupported (then Refused is set).
	Reason  Words
	Refused bool
}

// Actions says which actions are open to a VPS now.
type Actions struct {
	Take        Verdict
	Restore     Verdict
	UndoRestore Verdict
	Delete      Verdict
}

// Verdict is allowed, or says why not.
type Verdict struct {
	Allowed bool
	Code    Code  // why not; "" when allowed
	Reason  Words // why not, for a human; or a warning when allowed
}
