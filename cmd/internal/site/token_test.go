package site_test

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/hypervisor/lab"
)

// TestTokens has a panel and an order system work over TCP, each within its rights.
func TestTokens(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	ctx := t.Context()
	url := h.listen()
	as := func(secret string) *client.Client {
		c, err := client.HTTP(url, secret, nil)
		h.must(err)
		return c
	}
	with := func(arguments ...string) *client.Client {
		secret, stderr, code := h.CLI(ctx, append([]string{"token", "create"}, arguments...)...)
		if code != 0 {
			t.Fatalf("vpssnap token create %v: %d %s", arguments, code, stderr)
		}
		return as(strings.TrimSpace(secret))
	}
	reader, order := with("reader", "--scope", "read"), with("shop", "--scope", "read,option", "--way", "order")
	for _, name := range []string{"web1", "web2"} {
		_, err := h.Lab.DefineDomain(ctx, lab.Spec{Name: name, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 16 << 20}}})
		h.must(err)
		h.eventually("the daemon knows "+name, func() bool {
			_, err := reader.VPS(ctx, name)
			return err == nil
		})
	}
	panel := with("panel", "--scope", "read,snapshot", "--vps", "web1")
	code := func(what string, err error, want api.Code) {
		t.Helper()
		if got := client.CodeOf(err); got != want {
			t.Errorf("%s: %v, want %s", what, err, want)
		}
	}
	_, err := panel.Take(ctx, "web1", api.TakeRequest{})
	code("a take without option", err, api.CodeOptionRequired)
	_, err = panel.PutOption(ctx, "web1", api.OptionOrder{State: "active"})
	code("a panel that gives away the option", err, api.CodeForbidden)
	_, err = order.PutOption(ctx, "web1", api.OptionOrder{State: "active", OrderRef: "4711"})
	h.must(err)
	_, err = order.Take(ctx, "web1", api.TakeRequest{})
	code("an order system that takes", err, api.CodeForbidden)
	_, err = reader.Take(ctx, "web1", api.TakeRequest{})
	code("a reader that takes", err, api.CodeForbidden)
	_, err = reader.Delete(ctx, "web1")
	code("a reader that deletes", err, api.CodeForbidden)
	_, err = panel.VPS(ctx, "web2")
	code("another customer's VPS", err, api.CodeNotFound)
	_, err = as("nobody").VPS(ctx, "web1")
	code("an unknown token", err, api.CodeUnauthenticated)

	op := h.done(panel.Take(ctx, "web1", api.TakeRequest{}))
	if op.Actor.Name != "panel" || op.Actor.Way != "panel" {
		t.Errorf("the take was asked for by %+v", op.Actor)
	}
	v, err := panel.VPS(ctx, "web1")
	h.must(err)
	if len(v.Disks) != 1 || v.Disks[0].Path != "" {
		t.Errorf("the panel sees the disks %+v", v.Disks)
	}
	h.done(panel.Restore(ctx, "web1", api.RestoreRequest{Confirm: v.Snapshot.ID}))
	h.done(panel.Delete(ctx, "web1"))
	h.clean("web1")
}

// listen lets the daemon listen on loopback too.
func (h *host) listen() string {
	h.t.Helper()
	// A port that was free a moment ago: the daemon cannot tell which one it got.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	h.must(err)
	address := l.Addr().String()
	h.must(l.Close())
	config, err := os.ReadFile(h.ConfigFile())
	h.must(err)
	h.must(h.StopDaemon())
	head := fmt.Sprintf("listen = %q\n", address)
	h.must(os.WriteFile(h.ConfigFile(), append([]byte(head), config...), 0o600))
	h.must(h.StartDaemon(h.t.Context()))
	return "http://" + address
}
