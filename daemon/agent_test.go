package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// The ways in which a guest's agent can answer one question.
const (
	agentAgrees = iota
	agentRefuses
	agentPretends // refuses in words that libvirt's own errors have
	agentLies     // does it, and says that it did not
	agentWays
)

// scriptedAgent answers each question as the next byte of a script says, and
// does what it is asked when the script is over.
type scriptedAgent struct {
	mu     sync.Mutex
	script []byte
	says   string
	way    map[string]int // of the question that is being answered, by its name
	frozen bool           // the first freeze was agreed to
	asked  bool
}

func (a *scriptedAgent) hook(_ context.Context, point, _ string) error {
	question, stage, _ := strings.Cut(point, ".")
	if question != "Freeze" && question != "Thaw" && question != "PingAgent" {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if stage == "before" {
		a.way[question] = agentAgrees
		if len(a.script) > 0 {
			a.way[question] = int(a.script[0]) % agentWays
			a.script = a.script[1:]
		}
		if question == "Freeze" {
			a.asked, a.frozen = true, a.way[question] == agentAgrees
		}
	}
	refusal := fmt.Errorf("%w: %s", hypervisor.ErrAgent, a.says)
	switch way := a.way[question]; {
	case way == agentRefuses && stage == "before", way == agentLies && stage == "after":
		return refusal
	case way == agentPretends && stage == "before":
		return errors.Join(refusal, hypervisor.ErrNoSpace, hypervisor.ErrReplaced)
	}
	return nil
}

// FuzzAgent: whatever a guest's agent answers, and in whatever words, a take and
// a restore end, the guest is thawed, what is claimed of the snapshot is no more
// than the agent said, and its words reach nobody but the operator.
func FuzzAgent(f *testing.F) {
	const marker = "<the guest's words>"
	f.Add([]byte{}, "", uint8(0))
	f.Add([]byte{agentRefuses}, "\x1b[2J\nSEVERITY: error", uint8(1))
	f.Add([]byte{agentLies, agentLies, agentRefuses}, "'; DROP TABLE operation", uint8(0))
	f.Add([]byte{agentPretends, agentPretends, agentAgrees, agentPretends}, "No space left on device", uint8(1))
	f.Add([]byte{agentAgrees, agentLies, agentRefuses, agentRefuses}, strings.Repeat("x", 1<<16), uint8(2))
	policies := []vps.Quiesce{vps.QuiescePrefer, vps.QuiesceRequire, vps.QuiesceNever}
	f.Fuzz(func(t *testing.T, script []byte, says string, policy uint8) {
		w := newWorld(t, func(c *daemon.Config) { c.Settings.Snapshot.AgentWait = 0 })
		id := w.vps("web1", hypervisor.Running)
		w.write(id, "vda", 0, 'a')
		agent := &scriptedAgent{script: script[:min(len(script), 4)], says: marker + says, way: map[string]int{}}
		w.host.SetHook(agent.hook)
		quiesce := policies[int(policy)%len(policies)]
		op := w.ended(w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{Quiesce: quiesce}, operator))
		w.claims(op, id, quiesce, agent)
		w.eventually("the guest is thawed", func() bool { g, err := w.host.Guest(id); return err == nil && !g.Frozen })
		if op.Status == vps.StatusSucceeded {
			w.restore(id)
		}
		w.sees(id, "vda", 0, 'a')
		w.standsAs(id, hypervisor.Running)
		w.secret(marker, id)
	})
}

// claims fails unless the take ended as the agent's answer to the freeze allows.
func (w *world) claims(op vps.Operation, id string, policy vps.Quiesce, agent *scriptedAgent) {
	w.t.Helper()
	agent.mu.Lock()
	asked, frozen := agent.asked, agent.frozen
	agent.mu.Unlock()
	if asked != (policy != vps.QuiesceNever) {
		w.t.Errorf("with %s the agent was asked: %v", policy, asked)
	}
	if policy == vps.QuiesceRequire && !frozen {
		if op.Status != vps.StatusFailed || op.Error.Code != vps.CodeGuestUnresponsive {
			w.t.Errorf("not frozen, and the take ended as %s: %+v", op.Status, op.Error)
		}
		return
	}
	if op.Status != vps.StatusSucceeded {
		w.t.Fatalf("the take ended as %s: %+v", op.Status, op.Error)
	}
	want := vps.ConsistencyCrash
	if asked && frozen {
		want = vps.ConsistencyFilesystem
	}
	if got := w.snapshot(id).Consistency; got != want {
		w.t.Errorf("%s is claimed, frozen: %v", got, frozen)
	}
}

// secret fails if a customer can read these words anywhere.
func (w *world) secret(words, id string) {
	w.t.Helper()
	ops, err := w.daemon.Operations.Operations(ctx, vps.OperationQuery{VPS: id})
	w.must(err)
	messages, err := w.daemon.Journal.Messages(ctx, vps.MessageQuery{VPS: id})
	w.must(err)
	var read []string
	for _, op := range ops.Operations {
		read = append(read, op.Result)
		if op.Error != nil {
			read = append(read, op.Error.Detail, op.Error.Remedy)
		}
	}
	for _, m := range messages.Messages {
		read = append(read, m.Text)
	}
	if all := strings.Join(read, "\n"); strings.Contains(all, words) {
		w.t.Errorf("a customer reads: %s", all)
	}
}

// TestLateThawMeetsNoFreeze: while one try to thaw is under way, nobody else thaws and
// takes the debt off the record: the next take would freeze the guest, and the late
// answer would thaw it before the disks are switched.
func TestLateThawMeetsNoFreeze(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	held, released := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	defer release()
	var thaws atomic.Int32
	w.host.SetHook(func(_ context.Context, point, _ string) error {
		if point != "Thaw.before" {
			return nil
		}
		switch thaws.Add(1) {
		case 1:
			return hypervisor.ErrUnavailable
		case 2:
			close(held)
			<-released
		}
		return nil
	})
	w.take(id, vps.TakeRequest{})
	<-held
	w.setClock(time.Now().Add(time.Minute)) // it is owed for long enough to be repaired
	repaired := make(chan error, 1)
	go func() { _, err := w.daemon.Doctor.Repair(ctx, operator); repaired <- err }()
	w.eventually("the repair waits for the thaw", func() bool {
		select {
		case err := <-repaired:
			t.Fatalf("the debt was taken off the record while a thaw is under way: %v", err)
		default:
		}
		return w.daemon.WithGuest(id) > 1
	})
	release()
	w.must(<-repaired)
	if n := thaws.Load(); n != 2 {
		t.Errorf("thawed %d times", n)
	}
	w.delete(id)
	if op := w.take(id, vps.TakeRequest{}); w.snapshot(id).Consistency != vps.ConsistencyFilesystem {
		t.Errorf("the next take could not freeze: %+v", op)
	}
}

// TestOldThawLeavesALaterFreeze: who still tries to thaw for an earlier take, whose debt
// somebody else has kept, does not end the freeze of the next one.
func TestOldThawLeavesALaterFreeze(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	var frozen atomic.Bool
	w.host.SetHook(func(_ context.Context, point, _ string) error {
		if point == "SwitchToOverlays.before" {
			w.must(w.daemon.KeepOldThaw(ctx, id, time.Now().Add(-time.Minute)))
			g, err := w.host.Guest(id)
			frozen.Store(err == nil && g.Frozen)
		}
		return nil
	})
	w.take(id, vps.TakeRequest{})
	if !frozen.Load() {
		t.Error("the disks were switched with the guest thawed")
	}
	if g, err := w.host.Guest(id); err != nil || g.Frozen {
		t.Errorf("afterwards the guest is %+v, %v", g, err)
	}
}
