package daemon_test

import (
	"testing"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// TestUseIsNotedBesideTheCall: calls never wait for it, however many come.
func TestUseIsNotedBesideTheCall(t *testing.T) {
	w := newWorld(t, nil)
	_, secret, err := w.daemon.Tokens.CreateToken(
		ctx, vps.TokenRequest{Name: "a", Scopes: []vps.Scope{vps.ScopeRead}}, operator,
	)
	w.must(err)
	for range 1000 { // more than the queue holds
		_, err = w.daemon.Tokens.Authenticate(ctx, secret)
		w.must(err)
	}
	w.eventually("its use is noted", func() bool {
		all, err := w.daemon.Tokens.Tokens(ctx)
		return err == nil && all[0].LastUsedAt != nil
	})
}

// TestTokenIsBoundToTheVPS: a token is bound to the VPS, not to its name.
func TestTokenIsBoundToTheVPS(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	token, _, err := w.daemon.Tokens.CreateToken(
		ctx, vps.TokenRequest{Name: "a", Scopes: []vps.Scope{vps.ScopeRead}, VPS: []string{"web1", id}}, operator,
	)
	w.must(err)
	if len(token.VPS) != 1 || token.VPS[0] != id {
		t.Fatalf("bound to %v", token.VPS)
	}
	w.must(w.host.KillGuest(id))
	w.must(w.host.Undefine(id))
	other, err := w.host.Define("web1", hypervisor.Disk{Target: "vda", SizeBytes: mib, Format: "raw"})
	w.must(err)
	w.eventually("the other VPS is known", func() bool { _, err := w.daemon.Overview.ShowVPS(ctx, other); return err == nil })
	if found, err := w.daemon.Tokens.FindVPS(ctx, "web1", token); found == other || vps.CodeOf(err) != vps.CodeNotFound {
		t.Errorf("the name leads to %s (%v)", found, err)
	}
	if found, err := w.daemon.Tokens.FindVPS(ctx, id, token); err != nil || found != id {
		t.Errorf("its own id: %s (%v)", found, err)
	}
}
