package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"vpssnapd/api/server"
	"vpssnapd/daemon"
	"vpssnapd/daemon/daemontest"
	"vpssnapd/daemon/hook"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// A kind of operation that only this test knows. It suspends the guest in its second
// step, and lets it run again in its third.
const kindNap vps.Kind = "nap"

type nap struct {
	host *hypervisor.Host
	done []string // the steps, and their undo
	// at is called when a step begins; it may fail, or wait until ctx ends.
	at func(ctx context.Context, step string) error
}

func (n *nap) kind() operation.Kind {
	step := func(name string, do func(context.Context, *operation.Run) error) func(context.Context, *operation.Run) error {
		return func(ctx context.Context, r *operation.Run) error {
			if err := n.at(ctx, name); err != nil {
				return err
			}
			n.done = append(n.done, name)
			return do(ctx, r)
		}
	}
	nothing := func(context.Context, *operation.Run) error { return nil }
	return operation.Kind{Name: kindNap, Verb: "take a nap", Plan: func(vps.Operation) (operation.Plan, error) {
		return operation.Plan{
			{Name: "yawn", Do: step("yawn", nothing), Undo: step("undo_yawn", nothing)},
			{Name: "sleep", Irrevocable: true, Do: step("sleep", func(ctx context.Context, r *operation.Run) error {
				return (*n.host).Suspend(ctx, r.Op.VPS)
			})},
			{Name: "wake", Irrevocable: true, Do: step("wake", func(ctx context.Context, r *operation.Run) error {
				r.AddResult("well rested")
				return (*n.host).Resume(ctx, r.Op.VPS)
			})},
		}, nil
	}}
}

// napping is a daemon that knows the kind.
func napping(t *testing.T) (w *world, n *nap, id string) {
	t.Helper()
	n = &nap{at: func(context.Context, string) error { return nil }}
	w = newWorld(t, func(c *daemon.Config) { c.Kinds, n.host = []operation.Kind{n.kind()}, &c.Host })
	return w, n, w.vps("web1", hypervisor.Running)
}

func (w *world) beginNap(id string) (vps.Operation, error) {
	c, err := w.daemon.Operations.Begin(ctx, id, operator)
	if err != nil {
		return vps.Operation{}, err
	}
	defer c.Release()
	return c.Commit(ctx, kindNap, nil, nil, nil)
}

// napHeldAt begins a nap and returns when it is in that step, where it stays until it is
// cancelled or its daemon dies.
func (w *world) napHeldAt(n *nap, id, step string) vps.Operation {
	w.t.Helper()
	there := make(chan struct{})
	n.at = func(ctx context.Context, at string) error {
		if at == step {
			close(there)
			<-ctx.Done()
		}
		return ctx.Err()
	}
	op, err := w.beginNap(id)
	w.must(err)
	<-there
	return op
}

// TestKindOfOnesOwn: a kind that no other package knows is accepted, worked on, told in
// messages of both languages, counted and shown by REST.
func TestKindOfOnesOwn(t *testing.T) {
	w, n, id := napping(t)
	n.at = func(_ context.Context, step string) error {
		if step == "sleep" {
			_, err := w.beginNap(id)
			w.refuses(vps.CodeOperationInProgress, err)
		}
		return nil
	}
	op := w.done(w.beginNap(id))
	if want := []string{"yawn", "sleep", "wake"}; !slices.Equal(n.done, want) || op.Result != "well rested" {
		t.Errorf("it did %q and says %q", n.done, op.Result)
	}
	w.eventually("it is counted", func() bool {
		got, ok := w.measured("vpssnap_operations_total", "kind=nap", "status=succeeded")
		return ok && got == 1
	})
	page, err := w.daemon.Journal.Messages(ctx, vps.MessageQuery{VPS: id, Kind: vps.MessageOperationSucceeded, Limit: 1})
	w.must(err)
	if m := page.Messages[0]; m.In(vps.English) != "The operation is done (nap): well rested." ||
		!strings.HasPrefix(m.In(vps.French), "L'opération est terminée (nap)") {
		t.Errorf("the message is %q, in French %q", m.In(vps.English), m.In(vps.French))
	}
	if got := w.overREST("/v1/operations/" + op.ID); got["kind"] != "nap" || got["status"] != "succeeded" {
		t.Errorf("REST shows %v", got)
	}
}

// overREST reads something with a token that may.
func (w *world) overREST(path string) (answer map[string]any) {
	w.t.Helper()
	_, secret, err := w.daemon.Tokens.CreateToken(
		ctx, vps.TokenRequest{Name: "reader", Scopes: []vps.Scope{vps.ScopeRead}}, operator,
	)
	w.must(err)
	s := server.New(
		server.Config{Services: daemontest.Services(w.daemon), PerSecond: 1000, Logger: slog.New(slog.DiscardHandler)},
	)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	served := make(chan error, 1)
	go func() { served <- s.ServeTCP(l, nil) }()
	defer func() { w.must(errors.Join(s.Shutdown(ctx), <-served)) }()
	call, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.Addr().String()+path, nil)
	w.must(err)
	call.Header.Set("Authorization", "Bearer "+secret)
	got, err := http.DefaultClient.Do(call)
	w.must(err)
	defer got.Body.Close()
	if got.StatusCode != http.StatusOK {
		w.t.Fatalf("%s: %s", path, got.Status)
	}
	w.must(json.NewDecoder(got.Body).Decode(&answer))
	return answer
}

// TestKindOfOnesOwnIsKilled: in each step; the next daemon takes it up there.
func TestKindOfOnesOwnIsKilled(t *testing.T) {
	for _, at := range []string{"yawn", "sleep", "wake"} {
		w, n, id := napping(t)
		op := w.napHeldAt(n, id, at)
		w.crash()
		before := len(n.done)
		n.at = func(context.Context, string) error { return nil }
		w.open()
		w.done(op, nil)
		if again := n.done[before:]; again[0] != at || again[len(again)-1] != "wake" {
			t.Errorf("killed at %s it went on with %q", at, again)
		}
		if state := w.state(id); state != hypervisor.Running {
			t.Errorf("killed at %s: the VPS is %s", at, state)
		}
		w.close()
	}
}

// TestKindOfOnesOwnIsCancelled: its first step is taken back.
func TestKindOfOnesOwnIsCancelled(t *testing.T) {
	w, n, id := napping(t)
	op := w.napHeldAt(n, id, "yawn")
	_, err := w.daemon.Operations.CancelOperation(ctx, op.ID, operator)
	w.must(err)
	if op = w.ended(op, nil); op.Status != vps.StatusCancelled || !slices.Contains(n.done, "undo_yawn") {
		t.Errorf("it is %s and did %q", op.Status, n.done)
	}
}

// TestUnknownKindIsParked: a version that does not know a kind any more guesses nothing.
func TestUnknownKindIsParked(t *testing.T) {
	w, n, id := napping(t)
	op := w.napHeldAt(n, id, "yawn")
	w.crash()
	w.config = nil
	w.open()
	if op = w.ended(op, nil); op.Status != vps.StatusNeedsAttention || op.Error == nil {
		t.Errorf("it is %s (%v)", op.Status, op.Error)
	}
}

// TestHookKnowsWhatMerges: the hook is a process of its own and knows by a table which
// kinds merge; those are the ones that change a base.
func TestHookKnowsWhatMerges(t *testing.T) {
	w := newWorld(t, nil)
	var merging []vps.Kind
	for _, name := range w.daemon.Operations.Names() {
		if w.daemon.Operations.Of(name).ChangesBase {
			merging = append(merging, name)
		}
	}
	slices.Sort(merging)
	if known := slices.Sorted(slices.Values(hook.Merging)); !slices.Equal(known, merging) {
		t.Errorf("the hook knows %q, registered are %q", known, merging)
	}
}
