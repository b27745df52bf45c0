package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"

	"vpssnapd/api"
)

// maxWait is the longest that a call may wait for an operation.
const maxWait = 5 * time.Minute

// Config says what a Server serves, and to whom.
type Config struct {
	Service Service
	// Tokens are asked on the TCP listener; nil: nobody gets in there.
	Tokens *Tokens
	// OperatorGroup is the group whose members are operators on the Unix
	// socket, beside root.
	OperatorGroup string
	Logger        *slog.Logger
	// Version is sent in the Server header.
	Version string
}

// Server is the REST API.
type Server struct {
	tokens        *Tokens
	operatorGroup string
	log           *slog.Logger
	failures      *limiter
	unix, tcp     *http.Server
	handlers      *handlers
	// stopWaiting ends long waits, so that a shutdown does not last as long as they do.
	stopWaiting context.CancelFunc
}

// New makes a Server. Nothing listens before ServeUnix or ServeTCP.
func New(cfg Config) *Server {
	closing, stop := context.WithCancel(context.Background())
	s := &Server{
		tokens:        cfg.Tokens,
		operatorGroup: cfg.OperatorGroup,
		log:           cfg.Logger,
		failures:      newLimiter(),
		stopWaiting:   stop,
	}
	s.handlers = &handlers{service: cfg.Service, closing: closing, heartbeat: heartbeat, slowReader: slowReader}
	router := s.router(s.handlers, cfg.Version)
	s.unix, s.tcp = s.httpServer(router), s.httpServer(router)
	s.unix.ConnContext = withPeer
	return s
}

// ServeUnix answers on a Unix socket, where the caller's uid decides. It
// returns nil after Shutdown.
func (s *Server) ServeUnix(l net.Listener) error { return serve(s.unix, l) }

// ServeTCP answers where tokens decide. It returns nil after Shutdown.
func (s *Server) ServeTCP(l net.Listener) error { return serve(s.tcp, l) }

func serve(h *http.Server, l net.Listener) error {
	if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("cannot serve on %s: %w", l.Addr(), err)
	}
	return nil
}

// Shutdown takes no more requests, ends long waits and lets the others finish.
// When ctx ends first, connections are cut.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopWaiting()
	var errs []error
	for _, h := range []*http.Server{s.unix, s.tcp} {
		if err := h.Shutdown(ctx); err != nil {
			errs = append(errs, err, h.Close())
		}
	}
	return errors.Join(errs...)
}

func (s *Server) httpServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		// No ReadTimeout: it would cut a long wait. See limitReading.
		WriteTimeout:   maxWait + time.Minute,
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

func (s *Server) router(h *handlers, version string) *echo.Echo {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	// By default Echo believes X-Forwarded-For, and then nobody can be held to a limit.
	e.IPExtractor = echo.ExtractIPDirect()
	e.HTTPErrorHandler = s.fail
	e.Use(stamp(version), s.logRequests(), s.recover, limitReading,
		middleware.SecureWithConfig(middleware.SecureConfig{ContentTypeNosniff: "nosniff", XFrameOptions: "DENY"}))

	spec := loadSpec()
	h.docs = renderDocs(spec)
	validate := validation(spec)
	colons := strings.NewReplacer("{", ":", "}", "")
	for _, r := range routes(&ServerInterfaceWrapper{Handler: NewStrictHandler(h, nil)}) {
		item := spec.Paths.Value(r.path)
		op := item.GetOperation(r.method)
		e.Add(r.method, colons.Replace(r.path),
			s.guard(r.need, checkQuery(op, item.Parameters, readBody(op, validate(r.handle)))))
	}
	return e
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

// stamp gives every request an id of our own. A caller's is not taken over: it
// could be anything, and goes into the log.
func stamp(version string) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			h := c.Response().Header()
			h.Set(echo.HeaderXRequestID, rand.Text())
			h.Set(echo.HeaderServer, "vpssnapd/"+version)
			h.Set(echo.HeaderCacheControl, "no-store")
			c.SetRequest(c.Request().WithContext(context.WithValue(c.Request().Context(), noteKey{}, &note{})))
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
			line := []any{"request_id", requestID(c), "method", r.Method, "path", r.URL.Path,
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
