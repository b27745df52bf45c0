// Package hypervisor is what the daemon asks of a host, as intent: switch these
// disks to overlays, merge that overlay, exchange these files. It has its own
// types; nothing of libvirt or QEMU shows in it, and of ours it imports only pathname.
//
// Implementations: hypervisor/libvirt with hypervisor/qemuimg (the real host),
// and hypervisor/fake. The suite in hypervisor/hypervisortest holds both to
// what is written here.
package hypervisor

import (
	"context"
	"io"
	"io/fs"
	"time"
)

// MetadataURI names our element in a domain's metadata.
const MetadataURI = "https://vpssnapd.org/xmlns/snapshot/1"

// Host is everything asked of one KVM host.
type Host interface {
	Domains
	Images
	// Close gives up the connection. Guests and running merges are left alone.
	Close() error
}

// Domains is what is asked of libvirt.
//
// Unless said otherwise a call returns ErrNotFound for an unknown domain and
// ErrUnavailable when libvirt does not answer. After ErrUnavailable from a call
// that changes something its outcome is unknown and must be read with Domain.
// A call may outlive its context on the server; ctx bounds only the waiting.
type Domains interface {
	// Info tells versions. ErrUnavailable when not connected.
	Info(ctx context.Context) (Info, error)
	// List returns every domain, persistent or not. Sizes may be missing. It waits for no
	// QEMU that hangs; see Domain.Silent.
	List(ctx context.Context) ([]Domain, error)
	// Domain reads one domain again from its live and its inactive definition.
	Domain(ctx context.Context, id string) (Domain, error)
	// Glance is Domain without the sizes of disks: QEMU answers that question last
	// while it has other work, and it is most of the work of a reading. A QEMU that
	// does not answer at all may pass unnoticed.
	Glance(ctx context.Context, id string) (Domain, error)
	// Pools are the directories of the host's storage pools, active or not. A host
	// without storage pools has none.
	Pools(ctx context.Context) ([]string, error)
	// Named returns the id of the domain that has a name now; ErrNotFound when none has.
	Named(ctx context.Context, name string) (id string, err error)
	// Events delivers what happens on the host, from the first connection to
	// Close. One consumer. When it is slow, events of the same domain and kind
	// are merged, never silently lost.
	Events() <-chan Event

	// Freeze freezes the guest's file systems through its agent. It returns
	// after at most limit, and as long again if it must wait for a place. After an error
	// the guest may be frozen, now or later: Thaw until Thaw succeeds. ErrAgent when there
	// is no agent, or it refused; ErrAgentLate when it did not answer in time,
	// ErrAgentDisabled when it may not, and ErrNothingFrozen when by its answer there was nothing to freeze.
	Freeze(ctx context.Context, id string, limit time.Duration) error
	// Thaw thaws the guest's file systems; not being frozen is no error. It
	// uses a connection of its own and waits at most limit. May be repeated.
	Thaw(ctx context.Context, id string, limit time.Duration) error
	// PingAgent succeeds when the guest agent answers within limit, else ErrAgent.
	PingAgent(ctx context.Context, id string, limit time.Duration) error

	// SwitchToOverlays makes all named disks write to their overlays, in one
	// atomic act, running or off. The overlays exist already, made by
	// CreateOverlay on the very image each disk uses now. Disks not named are
	// untouched. No snapshot object is left in libvirt. On an error other than
	// ErrUnavailable no disk was switched.
	SwitchToOverlays(ctx context.Context, id string, disks []DiskSwitch) error

	// TakeBackSwitch takes back a switch that QEMU has made, or begun, and of which libvirt
	// knows nothing because it died meanwhile; or merges past libvirt where that died when it
	// aborted a merge, and believes in a pivot, or in the merge (Disk.JobLost). What the guest wrote to the overlays is copied
	// into the bases, which it uses again in the end, without noticing. It does what can be
	// done now: with Job{} it is over, and no overlay is open any more; else it is to be
	// called again, and with pivot, while the guest is paused, once the job is Ready.
	// ErrReplaced, and nothing is touched, where the disks are in use in another way than
	// such a switch leaves behind. ErrOff when the domain is not active.
	TakeBackSwitch(ctx context.Context, id string, disks []DiskSwitch, pivot bool) (Job, error)
	// AllowMerge makes sure that the host's confinement of a guest that is on lets it
	// write to the bases of merges; ErrDenied when it cannot be brought to. It is to
	// be asked before a merge begins and after each pivot, which may take the right
	// to write to other bases away. Off, or allowed already, is no error.
	AllowMerge(ctx context.Context, id string, bases []string) error
	// StartMerge begins to copy Top into Base while the guest runs (active or
	// paused). ErrBusy when the disk has a job already, ErrOff when the domain
	// is not active, ErrReplaced when the disk does not use these layers, ErrDenied
	// when host confinement forbids writing the base.
	StartMerge(ctx context.Context, id string, m Merge) error
	// MergeJob reads the job of one disk. No job, as when the domain is off, is
	// Job{}, not an error.
	MergeJob(ctx context.Context, id, target string) (Job, error)
	// SetMergeSpeed changes the limit of a running merge; 0: unlimited. No job is
	// no error, a Foreign one ErrBusy.
	SetMergeSpeed(ctx context.Context, id, target string, bytesPerSecond int64) error
	// Pivot makes the guest use the base of a Ready merge. ErrNotReady when
	// the job is not ready, or there is none; the job and the overlay are then
	// left as they are.
	Pivot(ctx context.Context, id, target string) error
	// AbortMerge ends a merge; the overlay stays complete. No job is no error, a
	// Foreign or Lost one ErrBusy.
	AbortMerge(ctx context.Context, id, target string) error

	// PointDisks rewrites the named disks' sources in the persistent definition
	// (all else, secrets included, is kept) and makes the definition durable,
	// directory included. What it says of an image stays with the image: below the
	// one that is put over it, and with the disk again when that is pointed back.
	// A layer that the image headers do not name is dropped. Where nothing changes,
	// nothing is defined. ErrPersistence when it cannot be saved, or the domain is
	// transient and has none.
	PointDisks(ctx context.Context, id string, disks []DiskSource) error
	// SyncDefinition makes the persistent definition durable, directory included.
	// ErrPersistence when it cannot, or the domain is transient.
	SyncDefinition(ctx context.Context, id string) error
	// SaveDefinition makes libvirt check the persistent definition and save it as it is,
	// durably: what stands in the way of PointDisks is found before it matters.
	// ErrPersistence when it cannot, or the domain is transient.
	SaveDefinition(ctx context.Context, id string) error
	// SetMetadata stores our XML element in the domain's definition (live and
	// persistent); "" removes it.
	SetMetadata(ctx context.Context, id, xml string) error

	// Suspend stops the guest's processors; paused already is no error. ErrOff when off.
	Suspend(ctx context.Context, id string) error
	// Resume lets them run again; running already is no error. ErrOff when off.
	Resume(ctx context.Context, id string) error
	// PowerOff ends the QEMU process and returns when it is gone; off already is no error.
	PowerOff(ctx context.Context, id string) error
	// Start boots the domain, ignoring and removing any managed save image; active already is
	// no error. With paused its processors stay stopped. ErrBusy when another
	// process holds an image of the domain; AstrayError.
	Start(ctx context.Context, id string, paused bool) error
	// CheckStart makes sure, as far as can be told without a start, that the domain could be
	// started from its persistent definition: ErrNoStart, with what is missing, when not.
	CheckStart(ctx context.Context, id string) error
	// RemoveManagedSave removes the memory image that a start would resume; none is no error.
	RemoveManagedSave(ctx context.Context, id string) error
}

// Images is what is asked of the file system and qemu-img. Formats are always
// stated by the caller, never probed. Missing files give an error that
// satisfies errors.Is(err, fs.ErrNotExist); a full file system ErrNoSpace; one that does
// not answer a StorageError, after which the outcome of a change is unknown, and nothing
// is told of its directory or changed in it until the change has really ended. An image may be read
// by any of its names (//, /x/../); what is written is named without detours. What is
// neither a file nor a block device is ErrUnsupported and is never opened: a named pipe
// would keep whoever opens it waiting.
type Images interface {
	// Inspect reads an image's own header. Safe while a guest uses the image.
	Inspect(ctx context.Context, path, format string) (Image, error)
	// Unused makes sure that no process has an image open to write: ErrBusy when one has.
	Unused(ctx context.Context, path, format string) error
	// CreateOverlay makes a new qcow2 overlay, exclusive, verified and durable (file and
	// directory) when it returns. Who may use the base may use it: owner, group, mode,
	// access control list and label are the base's, but for what everybody may do.
	CreateOverlay(ctx context.Context, o Overlay) (File, error)
	// Copy makes dst an exact copy of src, exclusive, with rights as of an overlay, durable.
	Copy(ctx context.Context, src, dst string) (File, error)
	// MergeOffline copies what overlay holds into its base, which nobody else
	// may have open (ErrBusy). The overlay is left as it is. When ctx ends, the work
	// has ended and both files are free when it returns, unless with StorageError. May be repeated after any
	// failure. progress may be nil.
	MergeOffline(ctx context.Context, m OfflineMerge, progress func(done, total int64)) error
	// SameAsBase reports whether a guest reads the same from an overlay and from its base
	// alone; the base may be longer. It reads what the overlay itself holds, and no
	// more. ErrBusy when somebody has one of them open to write.
	SameAsBase(ctx context.Context, m OfflineMerge) (bool, error)
	// Rebase makes overlay's header name a new backing file, without copying.
	Rebase(ctx context.Context, overlay, backing, backingFormat string) error
	// Exchange swaps two files of one directory in one atomic act, durable when it returns.
	// ErrUnsupported when the file system cannot.
	Exchange(ctx context.Context, a, b string) error
	// TryExchange makes sure, as far as can be told without touching the file, that
	// Exchange could put another in the place of path: it exchanges two files of the same
	// owner that it makes beside it, and removes them.
	TryExchange(ctx context.Context, path string) error
	// Remove unlinks path if it is still the file with that inode, and makes that
	// durable. A file that is gone already is no error; another file there is
	// ErrReplaced and is left alone. The room that it took may come back a little
	// later: see AwaitRoom.
	Remove(ctx context.Context, path string, inode uint64) error
	// AwaitRoom returns when the room has come back of what was removed, before it
	// was asked, from the file system that holds dir; or with ctx's error.
	AwaitRoom(ctx context.Context, dir string) error
	// Export opens an image to read what a guest would see through it and the
	// images below it. Others may read them meanwhile; who wants to write to one,
	// as a merge does, is refused. ErrBusy when somebody has one open to write. It
	// ends with Close, and with this process.
	Export(ctx context.Context, path, format string) (Export, error)
	// Extents tells, in ascending order, which parts of an image hold data that is
	// its own or of an image below it; all else reads as zeros. ErrBusy as Export.
	Extents(ctx context.Context, path, format string, visit func(offset, length int64)) error
	// Stat reads a file's identity and allocation.
	Stat(ctx context.Context, path string) (File, error)
	// Files lists the regular files of a directory, by name.
	Files(ctx context.Context, dir string) ([]NamedFile, error)
	// CutShort reports whether a qcow2 image that CreateOverlay has made is shorter than
	// its own tables say, or than any image: somebody has truncated it. Safe while a
	// guest uses it.
	CutShort(ctx context.Context, path string) (bool, error)
	// Space reads the file system that holds dir.
	Space(ctx context.Context, dir string) (Space, error)
}

// Info is what runs on the host.
type Info struct {
	Hostname          string
	LibvirtVersion    string // "9.0.0"
	HypervisorVersion string // QEMU's, "7.2.22"
}

// State is a domain's state.
type State string

const (
	Running   State = "running"
	Paused    State = "paused"
	Off       State = "off"
	Suspended State = "suspended" // guest asleep (S3)
	Crashed   State = "crashed"
	Unknown   State = "unknown"
)

// PauseReason tells why a domain is paused, as far as that matters here.
type PauseReason string

const (
	PausedByUser PauseReason = "user"
	// PausedByIO: a disk gave an I/O error (werror=stop).
	PausedByIO PauseReason = "io_error"
	// PausedByNoSpace: a disk could not grow; it may run on when there is space.
	PausedByNoSpace PauseReason = "no_space"
	PausedByOther   PauseReason = "other"
)

// AgentState is what is known of the guest agent's channel.
type AgentState string

const (
	AgentNone         AgentState = "none"
	AgentDisconnected AgentState = "disconnected"
	AgentConnected    AgentState = "connected"
)

// Domain is one libvirt domain.
type Domain struct {
	ID    string // UUID, lower case
	Name  string
	State State
	// Silent reports whether its QEMU hangs in a call, so that List could tell no more than
	// the saved definition of the next boot. State is Unknown then.
	Silent      bool
	PauseReason PauseReason // when Paused
	Persistent  bool
	Autostart   bool
	Agent       AgentState
	ManagedSave bool
	// MigratedAway reports whether it is off because it was migrated to another host; only
	// the definition stayed. Known until libvirt restarts.
	MigratedAway bool
	// Astray is set when libvirt is wrong about the domain; State is Unknown then.
	Astray *Astray
	// Disks is what the domain uses: the live definition when active, else the persistent one.
	Disks []Disk
	// PersistentDisks is what the next boot will use. Empty for a transient domain.
	PersistentDisks []Disk
	// NVRAM is the file with the UEFI variables; "" when there is none.
	NVRAM string
	// NVRAMOther reports whether there are UEFI variables which are not a plain local file.
	NVRAMOther bool
	// TPM reports whether the domain has an emulated TPM with state of its own.
	TPM bool
	// ForeignSnapshots counts libvirt snapshot objects, which we never make.
	ForeignSnapshots int
	// SnapshotNames are the names of the foreign snapshots.
	SnapshotNames []string
	// Checkpoints counts libvirt checkpoints (dirty bitmaps).
	Checkpoints int
	// Metadata is our XML element as stored in the persistent definition; "" when there is none.
	Metadata string
}

// Astray is a domain of which libvirt, which died within a call, cannot read its own note
// any more. Nothing may be done with its disks, and nothing can be done through libvirt.
type Astray struct {
	// PID is the process of its QEMU, which runs although libvirt takes the domain for
	// off; 0: none runs, although libvirt takes the domain for being started.
	PID int
	// Status is the file with libvirt's note of the domain; "" when it is gone. On another
	// host than libvirt's it may have another name.
	Status string
	// Jobless reports whether the note names a merge without saying that it is one, and
	// can be read again once that is said.
	Jobless bool
}

// Disk is one disk of a domain, as the definition says.
type Disk struct {
	Target string // vda
	Device string // disk, cdrom, floppy, lun
	// Type of the source: file, block, network, volume, nvme, vhostuser, dir, vhostvdpa.
	Type string
	Path string // of a file source; "" when empty
	// NotFile is what a file source leads to that is no regular file: a block device,
	// named pipe, directory, socket or the like. "" for a regular file, and for one that
	// is missing or could not be looked at.
	NotFile string
	Format  string // qcow2, raw, ...; as stated by the definition
	// Chain is what lies below Path, nearest first, as the live definition
	// states it. When the definition does not state it (ChainKnown is false)
	// the image headers are the authority.
	Chain      []Layer
	ChainKnown bool
	ReadOnly   bool
	Shareable  bool
	Transient  bool
	Encrypted  bool
	// Slice reports whether only a part of the file is the disk.
	Slice bool
	// SnapshotNo: whoever defined the domain wants the disk left out of snapshots
	// (snapshot='no'; libvirt, "Domain XML format", disks).
	SnapshotNo bool
	// SizeBytes is the virtual size, 0 when it was not read.
	SizeBytes int64
	// Job reports whether a block job runs on the disk.
	Job bool
	// JobLost says that libvirt only believes so: it died when the job ended. Path and
	// Chain are what the guest really uses. It lasts until the guest is started again.
	JobLost bool
}

// Layer is one image of a chain.
type Layer struct {
	Path   string
	Format string
}

// DiskSwitch names a disk and the qcow2 overlay it shall write to.
type DiskSwitch struct {
	Target  string
	Overlay string
}

// DiskSource names a disk and the image it shall use.
type DiskSource struct {
	Target string
	Path   string
	Format string
}

// Merge names two layers of a disk's chain. When Top is the image the guest
// writes to, the job becomes Ready and waits for Pivot; when it lies below, the
// job ends by itself and the layer above then names Base.
type Merge struct {
	Target string
	Top    string
	Base   string
	// Active reports whether Top is the image the guest writes to.
	Active bool
	// BytesPerSecond limits the copying; 0: unlimited.
	BytesPerSecond int64
}

// Job is a running block job. Done equal to Total does not mean Ready.
type Job struct {
	Found bool
	Ready bool
	Done  int64
	Total int64
	// Foreign reports whether it is not a merge of ours by its kind (a copy, a pull, a backup).
	Foreign bool
	// Lost says that libvirt, which died when it had begun the job, does not know that it
	// ends in a pivot. It can be pivoted, and not aborted.
	Lost bool
}

// Image is what an image's header says.
type Image struct {
	Path          string
	Format        string
	VirtualSize   int64
	AllocatedSize int64
	Backing       string // as written in the header; "" when none
	BackingFormat string
	DataFile      bool
	Encrypted     bool
	// InternalSnapshots counts snapshots inside a qcow2 file.
	InternalSnapshots int
	// Bitmaps counts persistent dirty bitmaps.
	Bitmaps int
	// Corrupt reports whether the header has the corrupt flag set.
	Corrupt bool
	// Dirty: with lazy refcounts an image has it set as long as somebody may write to
	// it. After his death it stays, and the counts are behind until it is opened for
	// writing again; that a reader has it open for writing later is not enough.
	Dirty bool
}

// Overlay says what CreateOverlay makes.
type Overlay struct {
	Path       string // absolute, does not exist
	Base       string // absolute
	BaseFormat string
	SizeBytes  int64 // virtual size; never left to the base
}

// Export is an image open to read. A read fails when the storage does not answer
// within bounds, and when Close is called meanwhile.
type Export interface {
	io.ReaderAt
	// Size is the virtual size in bytes.
	Size() int64
	// Close returns when nothing has the image open any more. It may be called again.
	Close() error
}

// OfflineMerge names an overlay and the base directly below it.
type OfflineMerge struct {
	Overlay    string
	Base       string
	BaseFormat string
	// BytesPerSecond limits the copying; 0: unlimited.
	BytesPerSecond int64
}

// File identifies a file and tells how much it holds.
type File struct {
	Inode     uint64
	Size      int64
	Allocated int64
	Modified  time.Time
	// Changed is when content or attributes last changed (ctime), which nobody can set.
	Changed time.Time
	Mode    fs.FileMode // the permission bits
	UID     uint32
	GID     uint32
	// ACL is its access control list, as setfacl --set reads it but without rights of
	// everybody; "" when there is none.
	ACL string
}

// NamedFile is an entry of a directory.
type NamedFile struct {
	Name  string
	Inode uint64
}

// Space is the room on a file system, in bytes, as an unprivileged writer sees it.
type Space struct {
	Total int64
	Free  int64
	// Device tells file systems apart.
	Device uint64
}

// EventKind is what an Event is about.
type EventKind string

const (
	// EventConnected: libvirt answers (again); everything must be read again.
	EventConnected EventKind = "connected"
	// EventDisconnected: libvirt does not answer.
	EventDisconnected EventKind = "disconnected"
	// EventChanged: a domain's state, definition or device set changed; read it again.
	EventChanged EventKind = "changed"
	// EventDefined: somebody defined the domain, perhaps again. Also EventChanged's meaning.
	EventDefined EventKind = "defined"
	// EventDeparted: the domain was migrated and runs on another host now. Its
	// definition may still be here, or be removed in a moment.
	EventDeparted EventKind = "departed"
	// EventUndefined: the domain's persistent definition was removed.
	EventUndefined EventKind = "undefined"
	// EventResumed: the guest's processors began to run, whoever caused it.
	EventResumed EventKind = "resumed"
	// EventJob: a block job became ready, ended or failed; read it with MergeJob.
	EventJob EventKind = "job"
)

// Event is something that happened on the host.
type Event struct {
	Kind   EventKind
	Domain string // UUID; "" for connection events
	Name   string
}
