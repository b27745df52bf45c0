package server

import (
	"context"
	"regexp"
	"slices"
	"strings"

	"vpssnapd/daemon/vps"
)

// Scope is what a caller may do.
type Scope string

const (
	// ScopeNone: open to everybody, without authentication.
	ScopeNone Scope = "none"
	// ScopeRead: look, but change nothing.
	ScopeRead Scope = "read"
	// ScopeSnapshot: take, restore, delete.
	ScopeSnapshot Scope = "snapshot"
	// ScopeOption: order and cancel the option.
	ScopeOption Scope = "option"
	// ScopeAdmin: everything, as an operator of the host.
	ScopeAdmin Scope = "admin"
)

// caller is who sent a request.
type caller struct {
	actor  vps.Actor
	scopes []Scope
	// vps lists the ids and names of the VPS that exist for the caller; nil: all.
	vps []string
}

func (c *caller) may(s Scope) bool {
	return s == ScopeNone || slices.Contains(c.scopes, s) || slices.Contains(c.scopes, ScopeAdmin)
}

// operator says that the caller may see what concerns the host only, as file names.
func (c *caller) operator() bool { return c.may(ScopeAdmin) }

func (c *caller) bound() bool { return c.vps != nil }

type callerKey struct{}

func withCaller(ctx context.Context, c *caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf never returns nil: without a caller it is one who may do nothing.
func callerOf(ctx context.Context) *caller {
	if c, ok := ctx.Value(callerKey{}).(*caller); ok {
		return c
	}
	return &caller{vps: []string{}}
}

type recheckKey struct{}

// withRecheck keeps how to ask again who calls, for answers that outlast a token.
func withRecheck(ctx context.Context, again func() (*caller, error)) context.Context {
	return context.WithValue(ctx, recheckKey{}, again)
}

// recheck returns ctx with the caller as known now, or why there is none any more.
func recheck(ctx context.Context) (context.Context, error) {
	again, ok := ctx.Value(recheckKey{}).(func() (*caller, error))
	if !ok {
		return ctx, nil
	}
	who, err := again()
	return withCaller(ctx, who), err
}

var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// errNoVPS is the answer for an unknown VPS and for somebody else's, so that a
// bound token cannot tell them apart.
func errNoVPS() error {
	return vps.Errorf(vps.CodeNotFound, "no such VPS")
}

func errNoOperation() error {
	return vps.Errorf(vps.CodeNotFound, "no such operation")
}

// resolve turns ref into what to ask the daemon for. A bound caller gets the
// id of a VPS of its own, or errNoVPS.
func (h *handlers) resolve(ctx context.Context, ref string) (string, error) {
	who := callerOf(ctx)
	if !who.bound() {
		return ref, nil
	}
	v, err := h.service.ShowVPS(ctx, ref)
	if who.mustNotKnow(ref, v, err) {
		return "", errNoVPS()
	}
	return v.ID, err
}

// mustNotKnow says that a VPS does not exist, as far as the caller may know.
func (c *caller) mustNotKnow(ref string, v vps.VPS, err error) bool {
	if err == nil {
		return !c.sees(v)
	}
	// Of somebody else's VPS not even an error may tell, as that its name was given away.
	return vps.CodeOf(err) == vps.CodeNotFound || c.bound() && !slices.Contains(c.vps, ref) && vps.CodeOf(err) == vps.CodeVPSChanged
}

// find is resolve for the journal, which outlives its VPS: an id is not looked up.
func (h *handlers) find(ctx context.Context, ref string) (string, error) {
	if id := strings.ToLower(ref); uuidForm.MatchString(id) {
		mine, err := h.visible(ctx)
		if err == nil && !mine(id) {
			err = errNoVPS()
		}
		return id, err
	}
	v, err := h.service.ShowVPS(ctx, ref)
	if callerOf(ctx).mustNotKnow(ref, v, err) {
		return "", errNoVPS()
	}
	return v.ID, err
}

// sees compares with the present id and name.
func (c *caller) sees(v vps.VPS) bool {
	return !c.bound() || slices.Contains(c.vps, v.ID) || slices.Contains(c.vps, v.Name)
}

// visible returns a test by VPS id. Names are looked up now: an old operation
// or message of another VPS that once had the same name stays hidden.
func (h *handlers) visible(ctx context.Context) (func(id string) bool, error) {
	who := callerOf(ctx)
	if !who.bound() {
		return func(string) bool { return true }, nil
	}
	ids := map[string]bool{}
	named := false
	for _, ref := range who.vps {
		if uuidForm.MatchString(strings.ToLower(ref)) {
			ids[strings.ToLower(ref)] = true
		} else {
			named = true
		}
	}
	if named {
		all, err := h.service.ListVPS(ctx)
		if err != nil {
			return nil, err
		}
		for _, v := range all {
			if who.sees(v) {
				ids[v.ID] = true
			}
		}
	}
	return func(id string) bool { return ids[id] }, nil
}
