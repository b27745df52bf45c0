package server

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/routers"
	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"
	"golang.org/x/time/rate"

	"vpssnapd/api"
)

// maxWait is the longest that a call may wait for an operation.
const maxWait = 5 * time.Minute

// Config says what a Server serves, and to whom.
type Config struct {
	Services Services
	// OperatorGroup is the group whose members are operators on the Unix
	// socket, beside root.
	OperatorGroup string
	Logger        *slog.Logger
	// PerSecond is how many calls per second a token may make on TCP, and twice
	// that an address, or a user on the Unix socket; 0: DefaultPerSecond.
	PerSecond int
	// Proxies are the addresses whose X-Forwarded-For is believed; nobody else's is.
	Proxies []netip.Prefix
	// Version is sent in the Server header.
	Version string
}

// Server is the REST API.
type Server struct {
	services      Services
	operatorGroup string
	log           *slog.Logger
	// failures counts the wrong tokens of each address, strangers its calls without a
	// valid one, the other two all calls.
	failures, strangers, origins, tokens *limiter
	// changes counts what tokens have changed of each VPS.
	changes   *limiter
	calls     inProgress
	proxies   []netip.Prefix
	unix, tcp *http.Server
	handlers  *handlers
	drain     *drain
	// stopWaiting ends long waits, so that a shutdown does not last as long as they do.
	stopWaiting context.CancelFunc
}

// New makes a Server. Nothing listens before ServeUnix or ServeTCP.
func New(cfg Config) *Server {
	closing, stop := context.WithCancel(context.Background())
	if cfg.PerSecond == 0 {
		cfg.PerSecond = DefaultPerSecond
	}
	s := &Server{
		services:      cfg.Services,
		operatorGroup: cfg.OperatorGroup,
		log:           cfg.Logger,
		failures:      newLimiter(failuresPerSecond, failureBurst),
		strangers:     newLimiter(rate.Limit(cfg.PerSecond), 2*cfg.PerSecond),
		origins:       newLimiter(rate.Limit(2*cfg.PerSecond), 4*cfg.PerSecond),
		changes:       newLimiter(rate.Every(changeEvery), changeBurst),
		tokens:        newLimiter(rate.Limit(cfg.PerSecond), 2*cfg.PerSecond),
		calls:         inProgress{ended: map[string]chan struct{}{}},
		proxies:       cfg.Proxies,
		stopWaiting:   stop,
		drain:         newDrain(),
	}
	s.handlers = &handlers{
		services:     cfg.Services,
		closing:      closing,
		heartbeat:    heartbeat,
		slowReader:   slowReader,
		slowDownload: slowDownload,
	}
	router := s.router(s.handlers, cfg.Version)
	s.unix, s.tcp = s.httpServer(router), s.httpServer(router)
	s.unix.ConnContext, s.tcp.ConnContext = withPeer, withConn
	return s
}

// ServeUnix answers on a Unix socket, where the caller's uid decides. It
// returns nil after Shutdown.
func (s *Server) ServeUnix(l net.Listener) error { return s.serve(s.unix, limitConns(l, nil)) }

// ServeTCP answers where tokens decide, in TLS if tlsConfig is not nil. It returns
// nil after Shutdown.
func (s *Server) ServeTCP(l net.Listener, tlsConfig *tls.Config) error {
	l = limitConns(l, s.proxies)
	if tlsConfig != nil {
		l = tls.NewListener(l, tlsConfig)
	}
	return s.serve(s.tcp, l)
}

func (s *Server) serve(h *http.Server, l net.Listener) error {
	if err := s.drain.serve(h, l); err != nil {
		return fmt.Errorf("cannot serve on %s: %w", l.Addr(), err)
	}
	return nil
}

// Shutdown accepts no more connections, ends long waits and lets the other requests
// finish. When ctx ends first, connections are cut.
func (s *Server) Shutdown(ctx context.Context) error {
	// First, or the drain would wait as long as callers wait for operations.
	s.stopWaiting()
	errs := []error{s.drain.stopAccepting()}
	// Every answer now tells its caller that the connection ends.
	s.unix.SetKeepAlivesEnabled(false)
	s.tcp.SetKeepAlivesEnabled(false)
	s.drain.wait(ctx)
	for _, h := range []*http.Server{s.unix, s.tcp} {
		if err := h.Shutdown(ctx); err != nil {
			errs = append(errs, h.Close()) // what still goes on had its time
		}
	}
	return errors.Join(errs...)
}

// Each limit bounds what one caller can hold; together with connLimit that bounds the
// memory.
func (s *Server) httpServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ConnState:         s.noteConn,
		ReadHeaderTimeout: 5 * time.Second,
		// No ReadTimeout: it would cut a long wait. See limitReading.
		WriteTimeout:   maxWait + time.Minute,
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// noteConn is told what becomes of each connection.
func (s *Server) noteConn(c net.Conn, state http.ConnState) {
	s.drain.note(c, state)
	if counted := countedOf(c); counted != nil {
		counted.note(state)
	}
}

func (s *Server) router(h *handlers, version string) *echo.Echo {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.IPExtractor = addressOf(s.proxies)
	e.HTTPErrorHandler = s.fail
	e.Pre(decodeOnce)
	e.Use(stamp(version), s.logRequests(), s.recover, limitReading, s.limitOrigin, refuseOptions,
		middleware.SecureWithConfig(middleware.SecureConfig{ContentTypeNosniff: "nosniff", XFrameOptions: "DENY"}))

	spec := loadSpec()
	h.docs = sync.OnceValue(func() []byte { return renderDocs(spec) })
	colons := strings.NewReplacer("{", ":", "}", "")
	for _, r := range routes(&ServerInterfaceWrapper{Handler: NewStrictHandler(h, nil)}) {
		item := spec.Paths.Value(r.path)
		op := item.GetOperation(r.method)
		call := &routers.Route{Spec: spec, Path: r.path, PathItem: item, Method: r.method, Operation: op}
		e.Add(r.method, colons.Replace(r.path),
			s.guard(r.need, checkQuery(op, item.Parameters, readBody(op, validate(call, s.once(op, s.limitChanges(r.method, r.handle)))))))
	}
	return e
}

// addressOf tells where a request comes from. By default Echo believes everybody's
// X-Forwarded-For, and then nobody can be held to a limit.
func addressOf(proxies []netip.Prefix) echo.IPExtractor {
	if len(proxies) == 0 {
		return echo.ExtractIPDirect()
	}
	trust := []echo.TrustOption{echo.TrustLoopback(false), echo.TrustLinkLocal(false), echo.TrustPrivateNet(false)}
	for _, p := range proxies {
		trust = append(trust, echo.TrustIPRange(&net.IPNet{
			IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
		}))
	}
	return echo.ExtractIPFromXFFHeader(trust...)
}

// loadSpec parses the embedded document; a test makes sure that it can be.
func loadSpec() *openapi3.T {
	spec, err := openapi3.NewLoader().LoadFromData(api.Spec)
	if err != nil {
		panic("the embedded openapi.yaml is broken: " + err.Error())
	}
	spec.Servers = nil
	return spec
}

const (
	actorKey = "actor"
	codeKey  = "code"
)

// lists are the headers that may come several times, each with a part of a list.
var lists = []string{headerLanguage, headerMatch, "If-None-Match"}

// doubtful reports whether a proxy may take another place than we for the end of a request:
// it has chunks, beside which net/http ignores a Content-Length, or is of HTTP/1.0, in which
// it ignores the chunks. What follows on its connection must not be taken for a request.
func doubtful(r *http.Request) bool {
	return len(r.TransferEncoding) > 0 || r.ProtoMajor == 1 && r.ProtoMinor == 0
}

// stamp gives every request an id of our own. A caller's is not taken over: it
// could be anything, and goes into the log.
func stamp(version string) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			h := c.Response().Header()
			h.Set(echo.HeaderXRequestID, rand.Text())
			h.Set(echo.HeaderServer, "vpssnapd/"+version)
			h.Set(echo.HeaderCacheControl, "no-store")
			r := c.Request()
			for _, list := range lists {
				if values := r.Header.Values(list); len(values) > 1 {
					r.Header.Set(list, strings.Join(values, ", "))
				}
			}
			if doubtful(r) {
				h.Set(echo.HeaderConnection, "close")
			}
			wanted := r.Header.Get(headerLanguage)
			ctx := context.WithValue(r.Context(), noteKey{}, &note{})
			c.SetRequest(r.WithContext(context.WithValue(ctx, languageKey{}, wanted)))
			return next(c)
		}
	}
}

// note is what a handler has to add to the log's line of its request.
type note struct{ operation string }

type noteKey struct{}

// noteOf never returns nil.
func noteOf(ctx context.Context) *note {
	if n, ok := ctx.Value(noteKey{}).(*note); ok {
		return n
	}
	return &note{}
}

func requestID(c echo.Context) string {
	return c.Response().Header().Get(echo.HeaderXRequestID)
}

// decodeOnce has Echo choose the route by the path as it was sent, whose parameters are
// decoded later: else it hands out those of a path without odd characters decoded already,
// and a name with a % would be decoded twice.
func decodeOnce(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		r.URL.RawPath = r.URL.EscapedPath()
		return next(c)
	}
}

// limitReading bounds the time a caller may take to send the rest of its
// request. readBody lifts the limit when the request is complete.
func limitReading(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		err := http.NewResponseController(c.Response().Writer).SetReadDeadline(time.Now().Add(bodyTime))
		if err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		return next(c)
	}
}

// refuseOptions takes OPTIONS for a method that there is not. Echo would answer it
// by itself, to everybody, and browsers of other origins have nothing to ask here.
func refuseOptions(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if c.Request().Method == http.MethodOptions && c.Get(echo.ContextKeyHeaderAllow) != nil {
			return echo.MethodNotAllowedHandler(c)
		}
		return next(c)
	}
}

// logRequests writes one line per request. The query is left out: a caller may
// have put a token there.
func (s *Server) logRequests() echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			start := time.Now()
			err := next(c)
			if err != nil {
				c.Error(err)
			}
			r := c.Request()
			level := slog.LevelInfo
			if r.Method == http.MethodGet && c.Response().Status < http.StatusBadRequest {
				level = slog.LevelDebug
			}
			code, _ := c.Get(codeKey).(string)
			actor, _ := c.Get(actorKey).(string)
			path := r.URL.Path
			if strings.HasPrefix(path, linkPath) {
				path = linkPath + "(a link)" // whoever has it can read a disk
			}
			line := []any{"request_id", requestID(c), "method", r.Method, "path", path,
				"status", c.Response().Status, "code", code,
				"actor", actor, "remote", r.RemoteAddr, "took", time.Since(start)}
			if n := noteOf(r.Context()); n.operation != "" {
				line = append(line, "operation", n.operation)
			}
			s.log.Log(r.Context(), level, "request", line...)
			return nil
		}
	}
}

// recover turns a panic into an internal error. The log gets the place, not
// the whole stack.
func (s *Server) recover(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			if v := recover(); v != nil {
				err = fmt.Errorf("panic in %s: %v", panicPlace(), v)
			}
		}()
		return next(c)
	}
}

// panicPlace names the function of ours that panicked, or called what did.
func panicPlace() string {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	for {
		f, more := frames.Next()
		if strings.HasPrefix(f.Function, "vpssnapd/") {
			return fmt.Sprintf("%s, line %d", f.Function, f.Line)
		}
		if !more {
			return "an unknown place"
		}
	}
}
