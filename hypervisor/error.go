package hypervisor

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// What can go wrong on a host, told apart with errors.Is. The texts around them
// are for logs: they may hold host paths.
var (
	// ErrUnavailable: libvirt does not answer, or a file system (StorageError). Of a
	// changing call the outcome is unknown.
	ErrUnavailable = errors.New("the hypervisor does not answer")
	// ErrQueued: the call was not made, because others took all places for it until its
	// caller gave up. It says nothing of the domain. Always with ErrUnavailable.
	ErrQueued = errors.New("too many calls wait")
	// ErrNotFound: no such domain or disk.
	ErrNotFound = errors.New("no such domain or disk")
	// ErrOff: the domain is not active.
	ErrOff = errors.New("the domain is off")
	// ErrBusy: another job or process holds the disk or domain.
	ErrBusy = errors.New("busy")
	// ErrNotReady: the merge is not ready to pivot.
	ErrNotReady = errors.New("the merge is not ready")
	// ErrAgent: the guest agent is missing, refused, or did not answer in time.
	ErrAgent = errors.New("the guest agent did not do it")
	// ErrAgentLate is an ErrAgent: no answer came in time.
	ErrAgentLate = fmt.Errorf("%w in time", ErrAgent)
	// ErrAgentDisabled is an ErrAgent: its configuration forbids it to do that.
	ErrAgentDisabled = fmt.Errorf("%w: it is disabled", ErrAgent)
	// ErrNothingFrozen is an ErrAgent: it answered that it froze no file system.
	ErrNothingFrozen = fmt.Errorf("%w: nothing was frozen", ErrAgent)
	// ErrUnsupported: the host or the domain cannot do this at all.
	ErrUnsupported = errors.New("not supported")
	// ErrDenied: host confinement (AppArmor, SELinux, permissions) forbids it.
	ErrDenied = errors.New("denied by the host")
	// ErrNoSpace: the file system is full.
	ErrNoSpace = errors.New("no space left")
	// ErrReplaced: another file lies where ours should be.
	ErrReplaced = errors.New("the file was replaced")
	// ErrPersistence: libvirt could not save the definition.
	ErrPersistence = errors.New("the definition could not be saved")
	// ErrNoStart: something that the domain needs to start is missing.
	ErrNoStart = errors.New("the domain could not be started")
)

// StorageError is an ErrUnavailable: the file system that holds Dir does not answer, as a
// mount whose server is gone. Until a call that was given up has returned, all others on
// that directory fail with it, too.
type StorageError struct {
	Dir string
	Err error // what ended the waiting; may be nil
}

func (e *StorageError) Error() string {
	text := "the storage " + e.Dir + " does not answer"
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap makes it an ErrUnavailable.
func (e *StorageError) Unwrap() []error { return []error{ErrUnavailable, e.Err} }

// AstrayError: libvirt is wrong about a domain (Domain.Astray), so nothing is done with it.
type AstrayError struct{ Domain Domain }

func (e *AstrayError) Error() string {
	if pid := e.Domain.Astray.PID; pid != 0 {
		return fmt.Sprintf("libvirt takes %s for off, but its QEMU runs (process %d)", e.Domain.Name, pid)
	}
	return fmt.Sprintf("libvirt takes %s for being started, but no QEMU of it runs", e.Domain.Name)
}

// Told is an error with what libvirt, QEMU or one of its tools said, in its own words.
type Told struct {
	Words string
	Err   error
}

func (t *Told) Error() string { return t.Err.Error() }

func (t *Told) Unwrap() error { return t.Err }

// Reason is what the host itself says of an error, for operators: it may hold host paths.
// "" when it said nothing.
func Reason(err error) string {
	var told *Told
	var number syscall.Errno
	switch {
	case errors.As(err, &told):
		// So libvirt begins whatever QEMU says.
		return strings.TrimPrefix(strings.TrimSpace(told.Words), "internal error: ")
	case errors.As(err, &number):
		return number.Error()
	}
	return ""
}
