// Package access keeps the tokens by which programs call the API, and says what each may
// see.
package access

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"sync"
	"time"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

const (
	// lentFor is how long a token may live at most that another one has made.
	lentFor = time.Hour
	// lentAtMost is how many such tokens one token may have at a time.
	lentAtMost = 10_000
	// useNoted is how often the use of a token is noted: each is a write to disk.
	useNoted = time.Hour
	// expiredKept is how long an expired token is still listed.
	expiredKept = 24 * time.Hour
)

// Tokens are those of one host.
type Tokens struct {
	store     *store.Store
	inventory *inventory.Inventory
	logger    *slog.Logger
	used      chan string // ids of tokens whose use is to be noted
	onRevoked []func(context.Context)
	mu        sync.Mutex
	revoked   chan struct{} // closed when the next token is revoked
}

// New makes the keeper of tokens.
func New(db *store.Store, inv *inventory.Inventory, logger *slog.Logger) *Tokens {
	return &Tokens{
		store: db, inventory: inv, logger: logger, used: make(chan string, 64), revoked: make(chan struct{}),
	}
}

// OnRevoked has f called after a token was revoked; not once the daemon serves.
func (ts *Tokens) OnRevoked(f func(context.Context)) { ts.onRevoked = append(ts.onRevoked, f) }

// Revoked is closed when the next token is revoked: whoever serves something that lasts
// asks then whether its caller may still have it.
func (ts *Tokens) Revoked() <-chan struct{} {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return ts.revoked
}

// tellRevoked tells that a token was revoked, and returns when what it had begun has ended.
func (ts *Tokens) tellRevoked(ctx context.Context) {
	ts.mu.Lock()
	close(ts.revoked)
	ts.revoked = make(chan struct{})
	ts.mu.Unlock()
	for _, told := range ts.onRevoked {
		told(context.WithoutCancel(ctx))
	}
}

// secretForm is vpssnap_, the id's digits, _ and 130 random bits. The prefix lets
// scanners for leaked secrets find it; the id is what it is looked up by.
var secretForm = regexp.MustCompile(`^vpssnap_([0-9a-f]{12})_[A-Z2-7]{26}$`)

// newSecret makes the secret of a token. Nobody can guess 130 random bits, with
// whatever hash; so a fast one will do, where passwords would need a slow one.
func newSecret(id string) (secret string, hash []byte) {
	secret = "vpssnap_" + id[len("tok-"):] + "_" + rand.Text()
	sum := sha256.Sum256([]byte(secret))
	return secret, sum[:]
}

func errNoToken() error { return vps.Errorf(vps.CodeNotFound, "no such token") }

// Authenticate returns the token that a secret belongs to. Codes: unauthenticated. The
// same error for an unknown token and for a wrong secret: it tells nobody which ids
// there are.
func (ts *Tokens) Authenticate(ctx context.Context, secret string) (vps.Token, error) {
	unknown := vps.Errorf(vps.CodeUnauthenticated, "the token is not valid")
	form := secretForm.FindStringSubmatch(secret)
	if form == nil {
		return vps.Token{}, unknown
	}
	// Looked up by the id, which is no secret; the rest is compared below.
	t, hash, err := ts.store.Token(ctx, "tok-"+form[1])
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return vps.Token{}, err
	}
	sum := sha256.Sum256([]byte(secret))
	// In constant time: how long it takes must not tell how much of it was right.
	if subtle.ConstantTimeCompare(sum[:], hash) != 1 || err != nil {
		return vps.Token{}, unknown
	}
	now := ts.store.Now()
	if t.ExpiresAt != nil && !t.ExpiresAt.After(now) {
		return vps.Token{}, vps.Errorf(vps.CodeUnauthenticated, "the token has expired")
	}
	if t.LastUsedAt == nil || now.Sub(*t.LastUsedAt) > useNoted {
		// Never waiting: a full queue must not slow a call down.
		select {
		case ts.used <- t.ID:
		default: // the next use will be noted
		}
	}
	return t, nil
}

// NoteUses notes which tokens are used, beside the calls themselves: they shall
// not wait for the disk.
func (ts *Tokens) NoteUses(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-ts.used:
			now := ts.store.Now()
			err := ts.store.Write(ctx, func(tx *store.Tx) error { return tx.UsedToken(ctx, id, now, now.Add(-useNoted)) })
			if err != nil && ctx.Err() == nil {
				ts.logger.Warn("cannot note that a token was used", "token", id, "error", err)
			}
		}
	}
}

// Tokens returns every token, oldest first.
func (ts *Tokens) Tokens(ctx context.Context) ([]vps.Token, error) { return ts.store.Tokens(ctx) }

// CreateToken makes a token and its secret, which is not kept. A token that asks
// gets less than it is itself: bound to VPSes that it sees, with scopes that it
// has, and for an hour at most.
//
// Codes: invalid, forbidden, not_found, rate_limited.
func (ts *Tokens) CreateToken(ctx context.Context, r vps.TokenRequest, actor vps.Actor) (vps.Token, string, error) {
	t := vps.Token{ID: vps.NewTokenID(), Name: r.Name, Scopes: vps.Unique(r.Scopes), Way: r.Way, CreatedAt: ts.store.Now()}
	if t.Way == "" {
		t.Way = vps.WayPanel
	}
	life := r.Expire
	if r.By != nil {
		var err error
		if life, err = lend(&t, r); err != nil {
			return t, "", err
		}
	}
	if life > 0 {
		end := t.CreatedAt.Add(life)
		t.ExpiresAt = &end
		if r.By != nil && r.By.ExpiresAt != nil && r.By.ExpiresAt.Before(end) {
			t.ExpiresAt = r.By.ExpiresAt
		}
	}
	var err error
	if t.VPS, err = ts.boundTo(ctx, r); err != nil {
		return t, "", err
	}
	if err := checkToken(t); err != nil {
		return t, "", err
	}
	secret, hash := newSecret(t.ID)
	err = ts.store.Write(ctx, func(tx *store.Tx) error { return ts.addToken(ctx, tx, t, hash) })
	if store.IsUnique(err) {
		return t, "", vps.Errorf(vps.CodeInvalid, "there is a token called %s", t.Name).
			WithRemedy("choose another name, or revoke that one first")
	}
	if err == nil {
		ts.logger.Info("token made", "token", t.ID, "name", t.Name, "scopes", t.Scopes, "by", actor.Name)
	}
	return t, secret, err
}

func (ts *Tokens) addToken(ctx context.Context, tx *store.Tx, t vps.Token, hash []byte) error {
	// Here, where tokens are made, because panels make many short ones; no timer is
	// needed for it.
	if err := tx.RemoveExpired(ctx, ts.store.Now().Add(-expiredKept)); err != nil {
		return err
	}
	if t.Parent != "" {
		n, err := tx.CountChildren(ctx, t.Parent)
		if err != nil {
			return err
		}
		if n >= lentAtMost {
			return vps.Errorf(vps.CodeRateLimited, "the token has made %d tokens already", n).
				WithRemedy("wait until some of them have expired")
		}
	}
	if err := tx.AddToken(ctx, t, hash); err != nil {
		return err
	}
	return tx.KeepAnswer(ctx, t)
}

// lend makes of t what the token that asks for it may have, and returns how long
// t may live.
func lend(t *vps.Token, r vps.TokenRequest) (time.Duration, error) {
	by := r.By
	// Nothing can be gained by a detour over a second token.
	for _, s := range t.Scopes {
		if !slices.Contains(by.Scopes, s) {
			return 0, vps.Errorf(vps.CodeForbidden, "the token %q cannot give the scope %q, which it has not", by.Name, s)
		}
	}
	switch {
	case by.Parent != "":
		return 0, vps.Errorf(vps.CodeForbidden, "a token that was made by a token cannot make others")
	case len(r.VPS) == 0:
		return 0, vps.Errorf(vps.CodeForbidden, "only an operator can make a token for all VPS").
			WithRemedy("say for which it is")
	case r.Way != "" && r.Way != by.Way:
		return 0, vps.Errorf(vps.CodeForbidden, "the token is for the way %s", by.Way)
	case r.Expire > lentFor:
		return 0, vps.Errorf(vps.CodeForbidden, "a token that a token makes lives %s at most", lentFor)
	}
	t.Parent, t.Way, t.Name = by.ID, by.Way, by.Name+"/"+r.Name
	if r.Expire == 0 {
		return lentFor, nil
	}
	return r.Expire, nil
}

// boundTo returns the ids of the VPSes that a token is for. By id, since a name
// may be given to another VPS.
func (ts *Tokens) boundTo(ctx context.Context, r vps.TokenRequest) ([]string, error) {
	if r.VPS == nil {
		return nil, nil
	}
	ids := []string{}
	for _, ref := range r.VPS {
		find := ts.inventory.IDNow
		if r.By != nil && r.By.VPS != nil {
			find = func(ctx context.Context, ref string) (string, error) { return ts.FindVPS(ctx, ref, *r.By) }
		}
		id, err := find(ctx, ref)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return vps.Unique(ids), nil
}

// FindVPS returns the id of a VPS that a token is bound to. Of all others it tells
// nothing: the answer for them does not depend on whether they exist.
// Codes: not_found, hypervisor_unavailable.
func (ts *Tokens) FindVPS(ctx context.Context, ref string, t vps.Token) (string, error) {
	// By id it needs no libvirt, so it works while that is away.
	if id := vps.ReadID(ref); slices.Contains(t.VPS, id) {
		return id, nil
	}
	dom, ok := ts.inventory.Find(ref)
	if !ok || !t.Sees(dom.ID) {
		// Libvirt is asked in both cases: how long it takes must not tell either.
		var err error
		dom, err = ts.inventory.Ask(ctx, ref)
		if vps.CodeOf(err) == vps.CodeHypervisorUnavailable {
			return "", err // it may be the name of one that t is bound to
		}
		ok = err == nil
	}
	if ok && t.Sees(dom.ID) && ts.inventory.CheckName(ctx, ref, dom) == nil {
		return dom.ID, nil
	}
	return "", fault.NoVPS()
}

// tokenName keeps the name of a token apart from that of the token which made it.
var tokenName = regexp.MustCompile(`^[A-Za-z0-9._@+-]{1,64}(/[A-Za-z0-9._@+-]{1,64})?$`)

func checkToken(t vps.Token) error {
	switch {
	case !tokenName.MatchString(t.Name):
		return vps.Errorf(vps.CodeInvalid, "the name must consist of 1 to 64 letters, digits and . _ @ + -")
	case len(t.Scopes) == 0:
		return vps.Errorf(vps.CodeInvalid, "the token has no scopes")
	case t.Way != vps.WayPanel && t.Way != vps.WayOrder:
		return vps.Errorf(vps.CodeInvalid, "way %q is neither panel nor order", t.Way)
	case t.VPS != nil && len(t.VPS) == 0:
		return vps.Errorf(vps.CodeInvalid, "vps is empty").WithRemedy("leave it out for all VPS, or name some")
	case t.VPS != nil && t.May(vps.ScopeAdmin):
		return vps.Errorf(vps.CodeInvalid, "a token with scope admin cannot be bound to some VPS")
	case t.ExpiresAt != nil && !t.ExpiresAt.After(t.CreatedAt):
		return vps.Errorf(vps.CodeInvalid, "the token would have expired already")
	}
	for _, s := range t.Scopes {
		if !slices.Contains([]vps.Scope{vps.ScopeRead, vps.ScopeSnapshot, vps.ScopeOption, vps.ScopeAdmin}, s) {
			return vps.Errorf(vps.CodeInvalid, "unknown scope %q", s)
		}
	}
	return nil
}

// RenewSecret gives a token another secret, and the first one is void: for the repetition of the call that
// made it, since the first secret was not kept. Codes: not_found.
func (ts *Tokens) RenewSecret(ctx context.Context, id string) (string, error) {
	secret, hash := newSecret(id)
	err := ts.store.Write(ctx, func(tx *store.Tx) error { return tx.SetTokenHash(ctx, id, hash) })
	if errors.Is(err, sql.ErrNoRows) {
		return "", errNoToken()
	}
	return secret, err
}

// RevokeToken ends a token and those that it has made, with their links and streams.
// Codes: not_found.
func (ts *Tokens) RevokeToken(ctx context.Context, id string, actor vps.Actor) error {
	// With its children in the same transaction: a stolen token must not live on in what
	// it made.
	err := ts.store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.RemoveToken(ctx, id); err != nil {
			return err
		}
		return tx.KeepAnswer(ctx, nil)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return errNoToken()
	}
	if err != nil {
		return fmt.Errorf("cannot revoke token %s: %w", id, err)
	}
	ts.tellRevoked(ctx)
	ts.logger.Info("token revoked", "token", id, "by", actor.Name)
	return nil
}
