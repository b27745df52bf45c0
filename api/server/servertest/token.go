package servertest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"vpssnapd/daemon/vps"
)

// held are the tokens that New makes, by their secrets.
func held() map[string]vps.Token {
	tokens := map[string]vps.Token{}
	add := func(secret string, ids []string, scopes ...vps.Scope) {
		tokens[secret] = vps.Token{
			ID: fmt.Sprintf("tok-%012x", len(tokens)), Name: secret, Scopes: scopes, Way: vps.WayPanel, VPS: ids, CreatedAt: Epoch,
		}
	}
	for _, scope := range []vps.Scope{vps.ScopeRead, vps.ScopeSnapshot, vps.ScopeOption, vps.ScopeAdmin} {
		add(string(scope), nil, scope)
	}
	add("panel", nil, vps.ScopeRead, vps.ScopeSnapshot)
	add("bound", []string{Web1}, vps.ScopeRead, vps.ScopeSnapshot, vps.ScopeOption)
	add("bound-to-3", []string{Web3}, vps.ScopeRead, vps.ScopeSnapshot, vps.ScopeOption)
	return tokens
}

// Authenticate and the methods below it are those of the daemon.
func (s *Service) Authenticate(_ context.Context, secret string) (vps.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tokens[secret]
	if !ok {
		return t, vps.Errorf(vps.CodeUnauthenticated, "the token is not valid")
	}
	return t, nil
}

func (s *Service) FindVPS(_ context.Context, ref string, t vps.Token) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	if vps.CodeOf(err) == vps.CodeNotFound || vps.CodeOf(err) == vps.CodeVPSChanged || err == nil && !t.Sees(v.ID) {
		return "", vps.Errorf(vps.CodeNotFound, "no such VPS")
	}
	if err != nil {
		return "", err
	}
	return v.ID, nil
}

func (s *Service) Tokens(context.Context) ([]vps.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []vps.Token
	for _, t := range s.tokens {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b vps.Token) int { return strings.Compare(a.ID, b.ID) })
	return all, s.Err
}

// CreateToken makes a token whose secret is "secret of NAME".
func (s *Service) CreateToken(_ context.Context, r vps.TokenRequest, a vps.Actor) (vps.Token, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Err != nil {
		return vps.Token{}, "", s.Err
	}
	t := vps.Token{ID: fmt.Sprintf("tok-%012x", len(s.tokens)), Name: r.Name, Scopes: r.Scopes, Way: r.Way, CreatedAt: Epoch}
	for _, ref := range r.VPS {
		v, err := s.find(ref)
		if err != nil {
			return t, "", err
		}
		t.VPS = append(t.VPS, v.ID)
	}
	if r.Expire > 0 {
		end := Epoch.Add(r.Expire)
		t.ExpiresAt = &end
	}
	if t.Way == "" {
		t.Way = vps.WayPanel
	}
	s.called("create-token", r.Name, a)
	secret := "secret of " + r.Name
	s.tokens[secret] = t
	return t, secret, nil
}

func (s *Service) RenewSecret(context.Context, string) (string, error) {
	return "", vps.Errorf(vps.CodeNotFound, "no such token")
}

func (s *Service) RevokeToken(_ context.Context, id string, a vps.Actor) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for secret, t := range s.tokens {
		if t.ID == id {
			s.called("revoke-token", t.Name, a)
			delete(s.tokens, secret)
			return nil
		}
	}
	return vps.Errorf(vps.CodeNotFound, "no such token")
}

// Answered knows no call: this daemon keeps no answers.
func (s *Service) Answered(context.Context, string, string) (answer []byte, sum [sha256.Size]byte, err error) {
	return nil, sum, nil
}

// Revoke makes a secret worthless.
func (s *Service) Revoke(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, secret)
}
