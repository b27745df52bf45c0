package fake

import (
	"context"
	"fmt"
	"time"

	"vpssnapd/hypervisor"
)

// AgentMind is how a guest's agent behaves. The zero value: there is none.
type AgentMind string

const (
	// AgentDown: the channel is there, nothing in the guest has opened it.
	AgentDown AgentMind = "down"
	// AgentAnswers: it does what it is asked.
	AgentAnswers AgentMind = "answers"
	// AgentRefuses: it answers, and says that it cannot freeze.
	AgentRefuses AgentMind = "refuses"
	// AgentDisabled: it answers that it was told not to freeze.
	AgentDisabled AgentMind = "disabled"
	// AgentEmpty: it answers, and its guest has no file system to freeze.
	AgentEmpty AgentMind = "empty"
	// AgentSilent: it is connected and never answers.
	AgentSilent AgentMind = "silent"
	// AgentLate: it does not answer a freeze in time and freezes afterwards,
	// under the first thaw, which goes unanswered too. The next thaw works.
	AgentLate AgentMind = "late"
)

// patience is how long a silent agent really keeps a caller waiting, when the
// caller's limit is longer: tests have no ten seconds to lose.
const patience = 20 * time.Millisecond

func (d *domain) agentState() hypervisor.AgentState {
	switch {
	// As libvirt shows it: without a channel in the definition there is no agent, and
	// off nobody has opened it.
	case d.Mind == "":
		return hypervisor.AgentNone
	case d.Mind == AgentDown || !d.active():
		return hypervisor.AgentDisconnected
	}
	return hypervisor.AgentConnected
}

// Freeze freezes the guest's file systems through its agent.
func (h *Host) Freeze(ctx context.Context, id string, limit time.Duration) error {
	return h.ask(ctx, "Freeze", id, limit, func(d *domain) error {
		switch {
		case d.Mind == AgentRefuses:
			return fmt.Errorf("%w: it cannot freeze", hypervisor.ErrAgent)
		// As seen: of a frozen guest a second freeze is an error, a thaw works.
		case d.Mind == AgentDisabled:
			return hypervisor.ErrAgentDisabled
		case d.Mind == AgentEmpty:
			return hypervisor.ErrNothingFrozen
		case d.Guest.Frozen:
			return fmt.Errorf("%w: frozen already", hypervisor.ErrAgent)
		case d.Mind == AgentLate:
			// Seen on libvirt 9.0: the call timed out and the guest froze after it.
			d.Freezing = true
			return nil
		}
		d.freeze()
		return nil
	})
}

// Tests read from Guest how often that happened.
func (d *domain) freeze() {
	d.Freezing = false
	d.Guest.Frozen = true
	d.Guest.Freezes++
}

// Thaw thaws the guest's file systems.
func (h *Host) Thaw(ctx context.Context, id string, limit time.Duration) error {
	return h.ask(ctx, "Thaw", id, limit, func(d *domain) error {
		// The agent is serial: the late freeze comes first, then this thaw, which is
		// answered too late.
		if d.Freezing {
			d.freeze()
			return nil
		}
		d.Guest.Frozen = false
		return nil
	})
}

// PingAgent succeeds when the guest agent answers.
func (h *Host) PingAgent(ctx context.Context, id string, limit time.Duration) error {
	return h.ask(ctx, "PingAgent", id, limit, func(*domain) error { return nil })
}

// ask puts a question to the agent and waits for the answer that may not come.
func (h *Host) ask(ctx context.Context, call, id string, limit time.Duration, answer func(d *domain) error) error {
	unanswered := false
	err := h.call(ctx, call, id, func(d *domain) error {
		switch {
		case !d.active():
			return hypervisor.ErrOff
		// A guest whose processors are stopped runs no agent.
		case d.State != hypervisor.Running:
			return fmt.Errorf("%w: the guest does not run", hypervisor.ErrAgent)
		case d.Mind == "" || d.Mind == AgentDown:
			return fmt.Errorf("%w: it is not connected", hypervisor.ErrAgent)
		case d.Mind == AgentSilent:
			unanswered = true
			return nil
		}
		// Looked at before and after: the answer itself may freeze.
		late := d.Freezing
		if err := answer(d); err != nil {
			return err
		}
		unanswered = late || d.Freezing
		return nil
	})
	if err != nil || !unanswered {
		return err
	}
	// Outside the lock of the host, so that other calls go on meanwhile.
	select {
	case <-time.After(min(limit, patience)):
	case <-ctx.Done():
	}
	return fmt.Errorf("%s of domain %s failed: %w: no answer within %v", call, id, hypervisor.ErrAgentLate, limit)
}
