package fake_test

import (
	"testing"
	"time"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

const limit = time.Second

func (v *vps) frozen(want bool, freezes int) {
	v.Helper()
	g, err := v.Guest(v.id)
	must(v, err)
	if g.Frozen != want || g.Freezes != freezes {
		v.Fatalf("the guest is %+v", g)
	}
}

func TestFreezeHoldsWritesBack(t *testing.T) {
	v := newVPS(t)
	must(t, v.SetAgent(v.id, fake.AgentAnswers))
	if a := v.domain().Agent; a != hypervisor.AgentConnected {
		t.Errorf("the agent reads as %q", a)
	}
	must(t, v.PingAgent(v.ctx, v.id, limit))
	must(t, v.Thaw(v.ctx, v.id, limit))
	must(t, v.Freeze(v.ctx, v.id, limit))
	v.frozen(true, 1)
	v.want(v.Write(v.id, "vda", 0, 9, block), fake.ErrFrozen)
	v.want(v.Freeze(v.ctx, v.id, limit), hypervisor.ErrAgent)
	v.reopen()
	v.frozen(true, 1)
	v.sees(0, 1)
	must(t, v.Thaw(v.ctx, v.id, limit))
	v.frozen(false, 1)
	v.write(0, 9)
}

func TestFreezeEndsWithTheGuest(t *testing.T) {
	v := newVPS(t)
	must(t, v.SetAgent(v.id, fake.AgentAnswers))
	must(t, v.Freeze(v.ctx, v.id, limit))
	must(t, v.KillGuest(v.id))
	v.want(v.Thaw(v.ctx, v.id, limit), hypervisor.ErrOff)
	must(t, v.Start(v.ctx, v.id, false))
	v.frozen(false, 1)
}

func TestStoppedGuestHasNoAgentAndWritesNothing(t *testing.T) {
	v := newVPS(t)
	must(t, v.SetAgent(v.id, fake.AgentAnswers))
	must(t, v.Suspend(v.ctx, v.id))
	v.want(v.Freeze(v.ctx, v.id, limit), hypervisor.ErrAgent)
	v.want(v.Write(v.id, "vda", 0, 9, block), fake.ErrStopped)
	v.frozen(false, 0)
}

func TestAgentThatDoesNotFreeze(t *testing.T) {
	for mind, state := range map[fake.AgentMind]hypervisor.AgentState{
		"":                hypervisor.AgentNone,
		fake.AgentDown:    hypervisor.AgentDisconnected,
		fake.AgentRefuses: hypervisor.AgentConnected,
		fake.AgentSilent:  hypervisor.AgentConnected,
	} {
		t.Run("mind "+string(mind), func(t *testing.T) {
			v := newVPS(t)
			must(t, v.SetAgent(v.id, mind))
			if a := v.domain().Agent; a != state {
				t.Errorf("the agent reads as %q", a)
			}
			v.want(v.Freeze(v.ctx, v.id, limit), hypervisor.ErrAgent)
			v.frozen(false, 0)
		})
	}
}

func TestAgentThatFreezesLate(t *testing.T) {
	v := newVPS(t)
	must(t, v.SetAgent(v.id, fake.AgentLate))
	v.want(v.Freeze(v.ctx, v.id, limit), hypervisor.ErrAgent)
	v.frozen(false, 0)
	v.want(v.Thaw(v.ctx, v.id, limit), hypervisor.ErrAgent)
	v.frozen(true, 1)
	must(t, v.Thaw(v.ctx, v.id, limit))
	v.frozen(false, 1)
	must(t, v.Thaw(v.ctx, v.id, limit))
}
