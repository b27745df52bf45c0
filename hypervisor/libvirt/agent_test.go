package libvirt_test

import (
	"errors"
	"testing"
	"time"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/lab"
)

func TestAgentFreezesAndThaws(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	ctx := t.Context()
	id, err := l.DefineDomain(
		ctx, lab.Spec{Name: "web1", OS: true, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 64 * mib, Ext4: true}}},
	)
	must(t, err)
	agent := func(want hypervisor.AgentState) {
		t.Helper()
		d, err := h.Domain(ctx, id)
		must(t, err)
		if d.Agent != want {
			t.Errorf("the agent is %s, want %s", d.Agent, want)
		}
	}
	agent(hypervisor.AgentDisconnected)
	is(t, h.PingAgent(ctx, id, time.Second), hypervisor.ErrOff)
	is(t, h.Freeze(ctx, id, time.Second), hypervisor.ErrOff)
	is(t, h.Thaw(ctx, id, time.Second), hypervisor.ErrOff)
	must(t, h.Start(ctx, id, false))
	is(t, h.PingAgent(ctx, id, time.Second), hypervisor.ErrAgent)
	must(t, l.WaitAgent(ctx, "web1"))
	agent(hypervisor.AgentConnected)
	must(t, h.PingAgent(ctx, id, 10*time.Second))
	must(t, l.StartRecorder(ctx, "web1"))
	must(t, l.WaitAcknowledged(ctx, "web1", 3))
	must(t, h.Thaw(ctx, id, 10*time.Second)) // not frozen
	must(t, h.Freeze(ctx, id, 10*time.Second))
	is(t, h.Freeze(ctx, id, 10*time.Second), hypervisor.ErrAgent) // frozen already
	frozen, err := l.Acknowledged("web1")
	must(t, err)
	must(t, h.Thaw(ctx, id, 10*time.Second))
	must(t, h.Thaw(ctx, id, 10*time.Second))
	must(t, l.WaitAcknowledged(ctx, "web1", frozen+3))

	// A guest that is slow to freeze: given up in time, and thawed in the end.
	must(t, l.GuestWriteFile(ctx, "web1", "/run/hook", []byte("[ \"$1\" = thaw ] || sleep 6\n")))
	begun := time.Now()
	is(t, h.Freeze(ctx, id, 2*time.Second), hypervisor.ErrAgent)
	if took := time.Since(begun); took > forEver {
		t.Errorf("a freeze with a limit of 2s took %v", took)
	}
	until(t, "a thaw to be answered", func() bool { return h.Thaw(ctx, id, 2*time.Second) == nil })
	last, err := l.Acknowledged("web1")
	must(t, err)
	must(t, l.WaitAcknowledged(ctx, "web1", last+3))

	must(t, h.Suspend(ctx, id))
	begun = time.Now()
	is(t, h.PingAgent(ctx, id, time.Second), hypervisor.ErrAgent)
	if took := time.Since(begun); took > forEver {
		t.Errorf("a ping with a limit of 1s took %v", took)
	}
}

// FAULTS.md row 40: what the guest's agent answers to a freeze is read.
func TestTheAgentsAnswerIsRead(t *testing.T) {
	l := startLab(t)
	h := host(t, l)
	ctx := t.Context()
	id, err := l.DefineDomain(ctx, lab.Spec{Name: "web1", OS: true, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: mib}}})
	must(t, err)
	must(t, h.Start(ctx, id, false))
	must(t, l.WaitAgent(ctx, "web1"))
	freeze := func(want error) {
		t.Helper()
		err := h.Freeze(ctx, id, 10*time.Second)
		is(t, err, want)
		is(t, err, hypervisor.ErrAgent)
		must(t, h.Thaw(ctx, id, 10*time.Second))
	}
	freeze(hypervisor.ErrNothingFrozen) // its disk holds no file system
	must(t, l.GuestWriteFile(ctx, "web1", "/run/agent-options", []byte("-b guest-fsfreeze-freeze")))
	_, _, _ = l.GuestExec(ctx, "web1", "killall", "qemu-ga") // it cannot answer for its own end
	must(t, l.WaitAgent(ctx, "web1"))
	until(t, "the agent with its new options", func() bool {
		return errors.Is(h.Freeze(ctx, id, 10*time.Second), hypervisor.ErrAgentDisabled)
	})
	freeze(hypervisor.ErrAgentDisabled)
}
