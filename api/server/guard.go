package server

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"vpssnapd/daemon/vps"
)

// hidden are the paths that are not there for who may not see them.
var hidden = map[string]bool{"/metrics": true}

// guard lets a request through when its caller has the scope that is needed. Without the
// scope a hidden path answers as one that does not exist.
func (s *Server) guard(need vps.Scope, next echo.HandlerFunc) echo.HandlerFunc {
	if need == vps.ScopeNone {
		return next
	}
	return func(c echo.Context) error {
		who, err := s.admit(c, need)
		if vps.CodeOf(err) == vps.CodeForbidden && hidden[c.Path()] {
			return echo.ErrNotFound
		}
		if err != nil {
			return err
		}
		r := c.Request()
		ctx := withCaller(r.Context(), who)
		c.SetRequest(r.WithContext(withRecheck(ctx, func() (*caller, error) { return s.admit(c, need) })))
		return next(c)
	}
}

// admit returns who calls, when that caller has the scope that is needed.
func (s *Server) admit(c echo.Context, need vps.Scope) (*caller, error) {
	who, err := s.identify(c)
	if err != nil {
		return nil, err
	}
	c.Set(actorKey, who.actor.Name)
	if !who.may(need) {
		return nil, vps.Errorf(vps.CodeForbidden, "the token %q lacks the scope %q", who.actor.Name, need)
	}
	return who, nil
}

// identify tells who calls: on the Unix socket the kernel says so and tokens
// mean nothing, everywhere else a token does.
func (s *Server) identify(c echo.Context) (*caller, error) {
	if p, ok := c.Request().Context().Value(peerKey{}).(peer); ok {
		return operatorOf(p, s.operatorGroup)
	}
	secret, err := bearer(c.Request())
	if err != nil {
		c.Response().Header().Set(echo.HeaderWWWAuthenticate, `Bearer realm="vpssnapd"`)
		return nil, err
	}
	addr := network(c.RealIP())
	// Before the token is looked at: guessing must cost the guesser, not the database.
	if err := tooMany(c, s.failures.wait(addr), vps.Say("too many wrong tokens came from this address")); err != nil {
		return nil, err
	}
	token, err := s.services.Tokens.Authenticate(c.Request().Context(), secret)
	if vps.CodeOf(err) == vps.CodeUnauthenticated {
		// Only wrong tokens count, so a panel behind the same address is not locked out
		// by its own calls.
		s.failures.spend(addr)
		c.Response().Header().Set(echo.HeaderWWWAuthenticate, `Bearer realm="vpssnapd", error="invalid_token"`)
	}
	if err != nil {
		return nil, err
	}
	if err := tooMany(c, s.tokens.spend(token.ID), vps.Say("the token makes too many calls")); err != nil {
		return nil, err
	}
	return &caller{actor: vps.Actor{Name: token.Name, Way: token.Way}, id: "token:" + token.ID, token: token}, nil
}

// limitOrigin holds every address on TCP, and every user on the Unix socket, to its
// number of calls, whatever it asks for. Root could do worse than to call often.
func (s *Server) limitOrigin(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		origin, why := "", vps.Say("too many calls come from this address")
		if p, ok := c.Request().Context().Value(peerKey{}).(peer); !ok {
			origin = network(c.RealIP())
		} else if p.uid != 0 || p.err != nil {
			origin, why = p.owner(), vps.Say("this user makes too many calls")
		}
		if origin != "" {
			if err := tooMany(c, s.origins.spend(origin), why); err != nil {
				return err
			}
		}
		return next(c)
	}
}

// tooMany is the answer to who must wait; nil when wait is 0.
func tooMany(c echo.Context, wait time.Duration, why vps.Words) error {
	if wait == 0 {
		return nil
	}
	seconds := int(math.Ceil(wait.Seconds()))
	c.Response().Header().Set(echo.HeaderRetryAfter, strconv.Itoa(seconds))
	return vps.Refuse(vps.CodeRateLimited, why, vps.Say("wait %d s", seconds))
}

// bearer reads the token from the one Authorization header. A token in the URL
// ends up in logs and is refused, even beside a valid header.
func bearer(r *http.Request) (string, error) {
	query := r.URL.Query()
	if query.Has("token") || query.Has("access_token") {
		return "", vps.Errorf(vps.CodeUnauthenticated, "a token in the URL is not accepted").
			WithRemedy("send it in the Authorization header, and replace it: it may be in a log by now")
	}
	// Two headers: which one counts would depend on the program that reads them.
	values := r.Header.Values(echo.HeaderAuthorization)
	if len(values) != 1 {
		return "", errNoToken()
	}
	scheme, secret, _ := strings.Cut(values[0], " ")
	secret = strings.TrimSpace(secret)
	if !strings.EqualFold(scheme, "Bearer") || secret == "" {
		return "", errNoToken()
	}
	return secret, nil
}

// errNoToken is for no token and for several.
func errNoToken() error {
	return vps.Errorf(vps.CodeUnauthenticated, "the call needs exactly one token").
		WithRemedy("send it as: Authorization: Bearer TOKEN")
}
