package libvirt

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
)

// Freeze freezes the guest's file systems. Not by the snapshot call's QUIESCE
// flag: that freezes inside libvirt's job on the domain, and when the freeze
// fails nothing thaws the guest.
func (h *Host) Freeze(ctx context.Context, id string, limit time.Duration) error {
	return h.askAgent(ctx, agent, "freeze", id, limit, freezeAll)
}

// Thaw thaws the guest's file systems. It has places of its own: a frozen guest must be
// thawed even when calls to agents of other guests hang.
func (h *Host) Thaw(ctx context.Context, id string, limit time.Duration) error {
	return h.askAgent(ctx, thawing, "thaw", id, limit, func(d *libvirt.Domain) error { return d.FSThaw(nil, 0) })
}

// PingAgent asks the agent for the time: libvirt offers a bare ping only as a
// custom command, which marks the domain as tainted.
func (h *Host) PingAgent(ctx context.Context, id string, limit time.Duration) error {
	return h.askAgent(ctx, agent, "ping the agent of", id, limit, func(d *libvirt.Domain) error {
		_, _, err := d.GetTime(0)
		if hasCode(err, libvirt.ERR_AGENT_COMMAND_FAILED) {
			return nil // a refusal is an answer
		}
		return err
	})
}

// askAgent runs a call that the guest's agent must answer. libvirt would wait
// for ever by default. With its own time-out it can still take that time
// several times over (another call before ours, the synchronisation), so the
// limit is kept here too. Nobody blames a guest for the time that its call queued for
// a place: that is ErrQueued.
func (h *Host) askAgent(
	ctx context.Context, which line, what, id string, limit time.Duration, f func(*libvirt.Domain) error,
) error {
	ctx, cancel := context.WithTimeout(ctx, 2*limit) // as long again for a place
	defer cancel()
	err := doWithin(ctx, h, which, what, id, limit, func(d *libvirt.Domain) error {
		// Whole seconds are all that libvirt takes, and 0 would mean not to wait at all.
		if err := d.AgentSetResponseTimeout(max(1, int(limit/time.Second)), 0); err != nil {
			return err
		}
		return f(d)
	})
	// Errors that already tell what to do keep their kind; all others of this call are
	// the agent's.
	switch {
	case disabled(err):
		return fmt.Errorf("%w: %w", hypervisor.ErrAgentDisabled, err)
	case err == nil,
		errors.Is(err, hypervisor.ErrNotFound),
		errors.Is(err, hypervisor.ErrOff),
		errors.Is(err, hypervisor.ErrAgent):
		return err
	case errors.Is(err, hypervisor.ErrUnavailable) && !errors.Is(err, errLate), errors.Is(err, hypervisor.ErrQueued):
		return err
	case errors.Is(err, errLate):
		// Not ErrUnavailable, which the error says too: libvirt did answer.
		return fmt.Errorf("cannot %s domain %s: %w: %w", what, id, hypervisor.ErrAgentLate, errLate)
	}
	return fmt.Errorf("%w: %w", hypervisor.ErrAgent, err)
}

// disabled reports whether the agent said that it may not do what it was asked: its own
// words are all that tells this from other refusals.
func disabled(err error) bool {
	var e libvirt.Error
	return errors.As(err, &e) && strings.Contains(e.Message, "has been disabled")
}
