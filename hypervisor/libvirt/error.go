package libvirt

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
)

// meanings gives libvirt's codes their meaning in the contract. OPERATION_INVALID is
// missing: see whenOff. A code that is missing has no meaning to the daemon, which then
// treats the call as failed for a reason of its own.
var meanings = map[libvirt.ErrorNumber]error{
	libvirt.ERR_NO_DOMAIN:             hypervisor.ErrNotFound,
	libvirt.ERR_NO_CONNECT:            hypervisor.ErrUnavailable,
	libvirt.ERR_INVALID_CONN:          hypervisor.ErrUnavailable,
	libvirt.ERR_RPC:                   hypervisor.ErrUnavailable,
	libvirt.ERR_BLOCK_COPY_ACTIVE:     hypervisor.ErrBusy,
	libvirt.ERR_OPERATION_TIMEOUT:     hypervisor.ErrBusy, // the domain's job lock
	libvirt.ERR_RESOURCE_BUSY:         hypervisor.ErrBusy,
	libvirt.ERR_AGENT_UNRESPONSIVE:    hypervisor.ErrAgentLate, // see PROTOCOL: its time-out, until 11.2
	libvirt.ERR_AGENT_UNSYNCED:        hypervisor.ErrAgentLate,
	libvirt.ERR_AGENT_COMMAND_TIMEOUT: hypervisor.ErrAgentLate,
	libvirt.ERR_AGENT_COMMAND_FAILED:  hypervisor.ErrAgent,
	libvirt.ERR_NO_SUPPORT:            hypervisor.ErrUnsupported,
	libvirt.ERR_OPERATION_UNSUPPORTED: hypervisor.ErrUnsupported,
	libvirt.ERR_CONFIG_UNSUPPORTED:    hypervisor.ErrUnsupported,
	libvirt.ERR_ARGUMENT_UNSUPPORTED:  hypervisor.ErrUnsupported,
	libvirt.ERR_ACCESS_DENIED:         hypervisor.ErrDenied,
	libvirt.ERR_OPERATION_DENIED:      hypervisor.ErrDenied,
	libvirt.ERR_AUTH_FAILED:           hypervisor.ErrDenied,
	libvirt.ERR_AUTH_CANCELLED:        hypervisor.ErrDenied,
	libvirt.ERR_AUTH_UNAVAILABLE:      hypervisor.ErrDenied,
}

// words give a meaning to what QEMU said: libvirt passes that on as an internal error.
var words = []struct {
	text string
	kind error
}{
	{"Permission denied", hypervisor.ErrDenied},
	{"Operation not permitted", hypervisor.ErrDenied},
	{"No space left on device", hypervisor.ErrNoSpace},
	{"Disk quota exceeded", hypervisor.ErrNoSpace},
	{`" lock`, hypervisor.ErrBusy}, // Failed to get shared "write" lock
	{"No such file or directory", fs.ErrNotExist},
}

// classify gives an error of libvirt its meaning. Whatever was said on a
// connection that is gone by now, the outcome of the call is unknown.
func classify(c *libvirt.Connect, err error) error {
	if err == nil {
		return nil
	}
	// Asked first: a call on a lost connection may end with any code.
	if alive, e := c.IsAlive(); e != nil || !alive {
		return fmt.Errorf("%w: %w", hypervisor.ErrUnavailable, err)
	}
	var e libvirt.Error
	if !errors.As(err, &e) || hasMeaning(err) {
		return err
	}
	if kind, known := meanings[e.Code]; known {
		return fmt.Errorf("%w: %w", kind, err)
	}
	// By text only where the code is a general one.
	for _, w := range words {
		if strings.Contains(e.Message, w.text) {
			return fmt.Errorf("%w: %w", w.kind, err)
		}
	}
	return err
}

// told adds libvirt's own words to an error of libvirt.
func told(err error) error {
	var e libvirt.Error
	if !errors.As(err, &e) || e.Message == "" {
		return err
	}
	return &hypervisor.Told{Words: e.Message, Err: err}
}

// hasMeaning reports whether a caller inside this package knew better what it means.
func hasMeaning(err error) bool {
	for _, kind := range []error{
		hypervisor.ErrUnavailable, hypervisor.ErrNotFound, hypervisor.ErrOff, hypervisor.ErrBusy,
		hypervisor.ErrNotReady, hypervisor.ErrAgent, hypervisor.ErrUnsupported, hypervisor.ErrDenied,
		hypervisor.ErrNoSpace, hypervisor.ErrReplaced, hypervisor.ErrPersistence,
		hypervisor.ErrNoStart,
	} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}
