package server

import (
	"cmp"
	"context"

	"vpssnapd/daemon/vps"
)

// caller is who sent a request.
type caller struct {
	actor vps.Actor
	// id tells callers apart, whatever they are called.
	id string
	// root is root on the Unix socket, who could do worse than to call often.
	root bool
	// token says what the caller may do. On the Unix socket it is one that nobody holds.
	token vps.Token
}

// may reports whether the caller has a scope. Public calls need none, and no token.
func (c *caller) may(s vps.Scope) bool { return s == vps.ScopeNone || c.token.May(s) }

// operator reports whether the caller may see what concerns the host only, as file names.
func (c *caller) operator() bool { return c.may(vps.ScopeAdmin) }

// owner names the caller for what is bounded together: a token that another one has made
// counts for that one.
func (c *caller) owner() string { return cmp.Or(c.token.Parent, c.token.ID, c.id) }

// bound reports whether the caller has VPSes of its own, and must not learn of others.
func (c *caller) bound() bool { return c.token.VPS != nil }

type callerKey struct{}

// withCaller keeps the caller for the handlers, which get a context only.
func withCaller(ctx context.Context, c *caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf never returns nil: without a caller it is one who may do nothing.
func callerOf(ctx context.Context) *caller {
	if c, ok := ctx.Value(callerKey{}).(*caller); ok {
		return c
	}
	return &caller{token: vps.Token{VPS: []string{}}}
}

type recheckKey struct{}

// withRecheck keeps how to ask again who calls, for answers that outlast a token.
func withRecheck(ctx context.Context, again func() (*caller, error)) context.Context {
	return context.WithValue(ctx, recheckKey{}, again)
}

// recheck returns ctx with the caller as known now, or why there is none any more. A
// stream of events can outlast the token that opened it.
func recheck(ctx context.Context) (context.Context, error) {
	again, ok := ctx.Value(recheckKey{}).(func() (*caller, error))
	if !ok {
		return ctx, nil
	}
	who, err := again()
	return withCaller(ctx, who), err
}

// errNoOperation is the same for an unknown operation and for another customer's.
func errNoOperation() error {
	return vps.Errorf(vps.CodeNotFound, "no such operation")
}

// resolve turns ref into what to ask the daemon for. A bound caller gets the
// id of a VPS of its own, or errNoVPS: the daemon is never asked for another's.
func (h *handlers) resolve(ctx context.Context, ref string) (string, error) {
	who := callerOf(ctx)
	if !who.bound() {
		return ref, nil
	}
	return h.services.Tokens.FindVPS(ctx, ref, who.token)
}

// find is resolve for the journal, which outlives its VPS: an id is not looked up.
func (h *handlers) find(ctx context.Context, ref string) (string, error) {
	if callerOf(ctx).bound() {
		return h.resolve(ctx, ref)
	}
	if id := vps.ReadID(ref); id != "" {
		return id, nil
	}
	v, err := h.services.Overview.ShowVPS(ctx, ref)
	return v.ID, err
}

// sees reports whether a VPS exists for the caller.
func (c *caller) sees(vpsID string) bool { return c.token.Sees(vpsID) }
