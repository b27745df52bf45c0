package server_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/server"
	"vpssnapd/daemon"
	"vpssnapd/daemon/daemontest"
	"vpssnapd/daemon/download"
	"vpssnapd/daemon/guest"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/notify"
	"vpssnapd/daemon/snapshot"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/webhook"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// wholeSite is a site with the real daemon behind it, on a fake host with the
// VPSes web1 and web2, which have the option.
type wholeSite struct {
	*site
	host               *fake.Host
	daemon             *daemon.Daemon
	hostDir, stateDir  string
	web1, web2         string
	admin, read, panel string // secrets; the panel's is not bound

	mu     sync.Mutex
	passed time.Duration // since the real time
}

func newWholeSite(t testing.TB) *wholeSite {
	t.Helper()
	w := &wholeSite{hostDir: t.TempDir(), stateDir: t.TempDir()}
	host, err := fake.Open(w.hostDir)
	check(t, err)
	for name, id := range map[string]*string{"web1": &w.web1, "web2": &w.web2} {
		*id, err = host.Define(name, hypervisor.Disk{Target: "vda", SizeBytes: 1 << 20})
		check(t, err)
		check(t, host.SetAgent(*id, fake.AgentAnswers))
		check(t, host.Start(t.Context(), *id, false))
	}
	check(t, host.Close())
	w.open(t)
	t.Cleanup(func() { check(t, errors.Join(w.daemon.Close(), w.host.Close())) })
	w.serve(t)
	for _, id := range []string{w.web1, w.web2} {
		_, err := w.daemon.Options.PutOption(
			t.Context(), id, vps.OptionOrder{State: vps.OptionActive}, vps.Actor{Way: vps.WayOrder},
		)
		check(t, err)
	}
	w.admin = w.token(vps.TokenRequest{Name: "admin", Scopes: []vps.Scope{vps.ScopeAdmin}})
	w.read = w.token(vps.TokenRequest{Name: "reader", Scopes: []vps.Scope{vps.ScopeRead}})
	w.panel = w.token(vps.TokenRequest{Name: "panel", Scopes: []vps.Scope{vps.ScopeRead, vps.ScopeSnapshot}})
	return w
}

// open starts the daemon, a first time or again.
func (w *wholeSite) open(t testing.TB) {
	t.Helper()
	host, err := fake.Open(w.hostDir)
	check(t, err)
	w.daemon, err = daemon.Open(context.Background(), daemon.Config{
		Host: host, StateDir: w.stateDir, Version: "test",
		Settings: daemon.Settings{
			Notify:   notify.Policy{Grace: time.Hour},
			Snapshot: snapshot.Policy{UndoKeep: time.Hour, AgentWait: time.Second},
			Guest:    guest.Policy{FreezeLimit: time.Second},
			Merge:    merge.Policy{Limit: 2},
			Download: download.Policy{AtOnce: 3},
			Offer:    vps.Offer{ID: "snapshot", Price: vps.Price{Currency: "EUR", Period: vps.PeriodMonth}},
		},
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: w.now,
		Webhook: webhook.Config{
			Allow:     []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
			AllowHTTP: true,
		}, WebhookBody: server.WebhookBody,
	})
	check(t, err)
	w.host = host
}

func (w *wholeSite) serve(t testing.TB) {
	t.Helper()
	w.site = serveSite(
		t,
		server.Config{Services: daemontest.Services(w.daemon), OperatorGroup: ownGroup(t), PerSecond: noLimit,
			Proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
	)
}

// restart ends the daemon and starts it again, with a server of its own.
func (w *wholeSite) restart(t testing.TB) {
	t.Helper()
	check(t, errors.Join(w.daemon.Close(), w.host.Close()))
	w.open(t)
	w.serve(t)
}

func (w *wholeSite) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.passed)
}

func (w *wholeSite) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.passed += d
}

// token makes a token as an operator does, and returns its secret.
func (w *wholeSite) token(r vps.TokenRequest) string {
	w.t.Helper()
	_, secret, err := w.daemon.Tokens.CreateToken(w.t.Context(), r, vps.Actor{Name: "test", Way: vps.WayOperator})
	check(w.t, err)
	return secret
}

// with makes a call with more headers, given as name and value in turn.
func (s *site) with(role, method, path, body string, headers ...string) answer {
	s.t.Helper()
	r := s.request(role, method, path, body)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return s.do(r)
}

// ended waits for the end of the operation that a call has begun.
func (w *wholeSite) ended(a answer) api.Operation {
	w.t.Helper()
	if a.StatusCode != http.StatusAccepted {
		w.t.Fatalf("not accepted: %s %s", a.Status, a.body)
	}
	op, err := w.daemon.Operations.WaitOperation(w.t.Context(), decode[api.Operation](w.t, a).ID, 30*time.Second)
	check(w.t, err)
	return api.Operation{ID: op.ID, Status: api.OperationStatus(op.Status), SnapshotID: op.SnapshotID}
}

func (w *wholeSite) operations() int {
	w.t.Helper()
	page, err := w.daemon.Operations.Operations(w.t.Context(), vps.OperationQuery{Limit: 200})
	check(w.t, err)
	return len(page.Operations)
}
