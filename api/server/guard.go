package server

import (
	"errors"
	"math"
	"net/http"
	"net/url"
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
		c.SetRequest(r.WithContext(withRecheck(ctx, func() (*caller, error) { return s.again(c, need) })))
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
	return who, who.needs(need)
}

// needs refuses a caller without a scope. Codes: forbidden.
func (c *caller) needs(s vps.Scope) error {
	if c.may(s) {
		return nil
	}
	return vps.Errorf(vps.CodeForbidden, "the token %q lacks the scope %q", c.actor.Name, s)
}

// identify tells who calls: on the Unix socket the kernel says so and tokens
// mean nothing, everywhere else a token does. Only a wrong token is held to the limit of
// wrong ones: somebody else's guesses must not lock out a valid one.
func (s *Server) identify(c echo.Context) (*caller, error) {
	if p, ok := c.Request().Context().Value(peerKey{}).(peer); ok {
		return operatorOf(p, s.operatorGroup)
	}
	who, err := s.shown(c)
	switch {
	case errors.Is(err, errNotShown):
		c.Response().Header().Set(echo.HeaderWWWAuthenticate, `Bearer realm="vpssnapd"`)
		return nil, err
	case vps.CodeOf(err) == vps.CodeUnauthenticated:
		addr := network(c.RealIP())
		why := vps.Say("too many wrong tokens came from this address")
		if err := tooMany(c, s.failures.wait(addr), why); err != nil {
			return nil, err
		}
		s.failures.spend(addr)
		c.Response().Header().Set(echo.HeaderWWWAuthenticate, `Bearer realm="vpssnapd", error="invalid_token"`)
		return nil, err
	case err != nil:
		return nil, err
	}
	return who, tooMany(c, s.tokens.spend(who.token.ID), vps.Say("the token makes too many calls"))
}

// again tells who calls now, for an answer that outlasts a token. That is our own
// question, and is not counted against anybody's limit.
func (s *Server) again(c echo.Context, need vps.Scope) (who *caller, err error) {
	if p, ok := c.Request().Context().Value(peerKey{}).(peer); ok {
		who, err = operatorOf(p, s.operatorGroup)
	} else {
		who, err = s.authenticate(c.Request())
	}
	if err != nil {
		return nil, err
	}
	return who, who.needs(need)
}

// shownKey is where the outcome of authenticate is kept for the rest of a request.
const shownKey = "shown"

type shown struct {
	who *caller
	err error
}

// shown is authenticate, once for each request.
func (s *Server) shown(c echo.Context) (*caller, error) {
	if done, ok := c.Get(shownKey).(shown); ok {
		return done.who, done.err
	}
	who, err := s.authenticate(c.Request())
	c.Set(shownKey, shown{who, err})
	return who, err
}

// authenticate tells whose token a request shows.
func (s *Server) authenticate(r *http.Request) (*caller, error) {
	secret, err := bearer(r)
	if err != nil {
		return nil, errors.Join(err, errNotShown)
	}
	token, err := s.services.Tokens.Authenticate(r.Context(), secret)
	if err != nil {
		return nil, err
	}
	return &caller{actor: vps.Actor{Name: token.Name, Way: token.Way}, id: "token:" + token.ID, token: token}, nil
}

// errNotShown: there is no token that could be wrong.
var errNotShown = errors.New("no token was shown")

// limitOrigin holds every address on TCP, and every user on the Unix socket, to its
// number of calls, whatever it asks for. Without a valid token an address may make half
// of them: so the other half is left for who has one. Root could do worse than to call
// often.
func (s *Server) limitOrigin(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		origin, why := "", vps.Say("too many calls come from this address")
		if p, ok := c.Request().Context().Value(peerKey{}).(peer); !ok {
			origin = network(c.RealIP())
			if _, err := s.shown(c); err == nil {
				proveConn(c.Request().Context())
			} else if err := tooMany(c, s.strangers.spend(origin), why); err != nil {
				return err
			}
		} else if !p.root() {
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

// limitChanges holds the tokens of a VPS to its number of changes. Only what was changed is
// counted: a refusal leaves nothing behind, and an answer that is sent again neither.
func (s *Server) limitChanges(method string, next echo.HandlerFunc) echo.HandlerFunc {
	if method == http.MethodGet || method == http.MethodHead {
		return next
	}
	return func(c echo.Context) error {
		id := s.changed(c)
		if id == "" {
			return next(c)
		}
		if err := tooMany(c, s.changes.wait(id), vps.Say("the VPS was changed too often")); err != nil {
			return err
		}
		err := next(c)
		if err == nil && c.Response().Status < http.StatusBadRequest {
			s.changes.spend(id)
		}
		return err
	}
}

// changed is the id of the VPS that a token's call is about; "" when it is about none, or is
// an operator's on the host, who is not held to the limit.
func (s *Server) changed(c echo.Context) string {
	ctx := c.Request().Context()
	who := callerOf(ctx)
	if who.token.ID == "" {
		return ""
	}
	if ref, err := url.PathUnescape(c.Param("vps")); ref != "" && err == nil {
		id, _ := s.services.Tokens.FindVPS(ctx, ref, who.token) // the call itself says what is wrong
		return id
	}
	if strings.HasPrefix(c.Path(), "/v1/operations/") {
		op, _ := s.services.Operations.Operation(ctx, c.Param("id"))
		return op.VPS
	}
	return ""
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
