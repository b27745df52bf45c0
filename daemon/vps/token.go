package vps

import (
	"slices"
	"time"
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

// Token is an access token. Its secret is shown once, and then known to its holder only.
type Token struct {
	ID   string
	Name string
	// Parent is the token that made this one; "" when an operator did.
	Parent string
	Scopes []Scope
	Way    Way // WayPanel or WayOrder
	// VPS lists the ids of the VPSes that exist for the holder; nil: all.
	VPS       []string
	CreatedAt time.Time
	// ExpiresAt is nil for a token that is valid until revoked.
	ExpiresAt *time.Time
	// LastUsedAt is noted once an hour; nil: never used.
	LastUsedAt *time.Time
}

// May reports whether the token has a scope; admin includes all others.
func (t Token) May(s Scope) bool {
	return slices.Contains(t.Scopes, s) || slices.Contains(t.Scopes, ScopeAdmin)
}

// Sees reports whether a VPS exists for the token.
func (t Token) Sees(vpsID string) bool { return t.VPS == nil || slices.Contains(t.VPS, vpsID) }

// TokenRequest asks for a token.
type TokenRequest struct {
	Name   string
	Scopes []Scope
	Way    Way           // "": WayPanel, or that of By
	VPS    []string      // ids or names; nil: all
	Expire time.Duration // 0: never, or as late as By may have it
	// By is the token that asks; nil for operators, who may ask for anything.
	By *Token
}
