package server

import (
	"context"
	"time"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

// Tokens knows who may call.
type Tokens interface {
	Authenticate(ctx context.Context, secret string) (vps.Token, error)
	Tokens(ctx context.Context) ([]vps.Token, error)
	CreateToken(ctx context.Context, r vps.TokenRequest, a vps.Actor) (t vps.Token, secret string, err error)
	RenewSecret(ctx context.Context, id string) (secret string, err error)
	RevokeToken(ctx context.Context, id string, a vps.Actor) error
	// Revoked is closed when the next token is revoked.
	Revoked() <-chan struct{}
	// FindVPS returns the id of a VPS that t is bound to. Of all others it tells
	// nothing, not even whether they exist.
	FindVPS(ctx context.Context, ref string, t vps.Token) (string, error)
}

func (h *handlers) ListTokens(ctx context.Context, _ ListTokensRequestObject) (ListTokensResponseObject, error) {
	all, err := h.services.Tokens.Tokens(ctx)
	if err != nil {
		return nil, err
	}
	return ListTokens200JSONResponse{Tokens: each(all, wireToken)}, nil
}

func (h *handlers) CreateToken(ctx context.Context, r CreateTokenRequestObject) (CreateTokenResponseObject, error) {
	who := callerOf(ctx)
	wish := vps.TokenRequest{
		Name:   r.Body.Name,
		Scopes: each(r.Body.Scopes, func(s api.Scope) vps.Scope { return vps.Scope(s) }),
		Way:    vps.Way(r.Body.Way),
		VPS:    r.Body.VPS,
		Expire: time.Duration(r.Body.ExpiresInSeconds) * time.Second,
	}
	if !who.operator() {
		wish.By = &who.token
	}
	t, secret, err := h.services.Tokens.CreateToken(ctx, wish, who.actor)
	if err != nil {
		return nil, err
	}
	return CreateToken201JSONResponse{Token: wireToken(t), Secret: secret}, nil
}

func (h *handlers) RevokeToken(ctx context.Context, r RevokeTokenRequestObject) (RevokeTokenResponseObject, error) {
	if err := h.services.Tokens.RevokeToken(ctx, r.Token, callerOf(ctx).actor); err != nil {
		return nil, err
	}
	return RevokeToken204Response{}, nil
}

func wireToken(t vps.Token) api.Token {
	return api.Token{
		ID:         t.ID,
		Name:       t.Name,
		Parent:     t.Parent,
		Scopes:     each(t.Scopes, func(s vps.Scope) api.Scope { return api.Scope(s) }),
		Way:        api.Way(t.Way),
		VPS:        t.VPS,
		CreatedAt:  t.CreatedAt.UTC(),
		ExpiresAt:  utc(t.ExpiresAt),
		LastUsedAt: utc(t.LastUsedAt),
	}
}
