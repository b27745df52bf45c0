package daemon_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// TestAnswerAndChangeAreOne: when the answer of a call cannot be kept, the change
// has not happened either, so that no crash can fall between the two.
func TestAnswerAndChangeAreOne(t *testing.T) {
	w := newWorld(t, nil)
	id, empty := w.vps("web1", hypervisor.Running), w.vps("web2", hypervisor.Running)
	w.take(id, vps.TakeRequest{Description: "before"})
	token, secret, err := w.daemon.Tokens.CreateToken(
		ctx, vps.TokenRequest{Name: "a", Scopes: []vps.Scope{vps.ScopeRead}}, operator,
	)
	w.must(err)
	cannot := errors.New("it cannot be kept")
	call := vps.WithCall(ctx, vps.Call{Client: "c", Key: "k", Record: func(any) ([]byte, error) { return nil, cannot }})
	type state struct {
		Options    []vps.Option
		Snapshot   string
		Operations int
		Tokens     int
		Works      bool
	}
	look := func() (s state) {
		for _, ref := range []string{id, empty} {
			o, err := w.daemon.Options.Option(ctx, ref)
			w.must(err)
			s.Options = append(s.Options, o)
		}
		s.Snapshot = w.snapshot(id).Description
		page, err := w.daemon.Operations.Operations(ctx, vps.OperationQuery{Limit: 100})
		w.must(err)
		s.Operations = len(page.Operations)
		all, err := w.daemon.Tokens.Tokens(ctx)
		w.must(err)
		s.Tokens = len(all)
		_, err = w.daemon.Tokens.Authenticate(ctx, secret)
		s.Works = err == nil
		return s
	}
	before := look()
	for name, do := range map[string]func() error{
		"take": func() error { _, err := w.daemon.Snapshots.Take(call, empty, vps.TakeRequest{}, operator); return err },
		"restore": func() error {
			_, err := w.daemon.Snapshots.Restore(call, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
			return err
		},
		"delete":   func() error { _, err := w.daemon.Snapshots.Delete(call, id, operator); return err },
		"describe": func() error { _, err := w.daemon.Snapshots.DescribeSnapshot(call, id, "after", operator); return err },
		"order": func() error {
			_, err := w.daemon.Options.PutOption(call, id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "B"}, operator)
			return err
		},
		"cancel": func() error { _, err := w.daemon.Options.CancelOption(call, id, true, operator); return err },
		"token": func() error {
			_, _, err := w.daemon.Tokens.CreateToken(call, vps.TokenRequest{Name: "b", Scopes: []vps.Scope{vps.ScopeRead}}, operator)
			return err
		},
		"revoke": func() error { return w.daemon.Tokens.RevokeToken(call, token.ID, operator) },
	} {
		if err := do(); !errors.Is(err, cannot) {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(before, look()); diff != "" {
			t.Errorf("%s changed, without its answer:\n%s", name, diff)
		}
	}
}

// TestCancelKeepsOneAnswer: the answer that is kept is the one that was given, also
// when there is no snapshot to wait for.
func TestCancelKeepsOneAnswer(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	var kept []any
	call := vps.WithCall(ctx, vps.Call{Client: "c", Key: "k", Record: func(result any) ([]byte, error) {
		kept = append(kept, result)
		return []byte("x"), nil
	}})
	o, err := w.daemon.Options.CancelOption(call, id, true, operator)
	w.must(err)
	if o.State != vps.OptionReleased || len(kept) != 1 {
		t.Fatalf("the option is %s, and kept was %+v", o.State, kept)
	}
	if diff := cmp.Diff(any(o), kept[0]); diff != "" {
		t.Error(diff)
	}
}
