package server

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

// statusError is an error with a finer status than its code has in the table.
type statusError struct {
	status int
	err    *vps.Error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// invalid is a 400 for what no code says better.
func invalid(format string, args ...any) error {
	return vps.Errorf(vps.CodeInvalid, format, args...)
}

// invalidStatus is invalid with a status that HTTP has for it, as 413.
func invalidStatus(status int, format string, args ...any) error {
	return &statusError{status, vps.Errorf(vps.CodeInvalid, format, args...)}
}

// retryAfter is when to come back where nobody knows better, in seconds.
const retryAfter = "30"

// fail is Echo's error handler, the only place that turns an error into an answer.
func (s *Server) fail(err error, c echo.Context) {
	// Nothing can be added to an answer that is on its way.
	if c.Response().Committed {
		s.log.Warn("cannot send the answer", "request_id", requestID(c), "error", err)
		return
	}
	reader := readerOf(c.Request().Context())
	if reader.operator {
		reader.in = vps.English
	}
	p := problemOf(err, reader)
	c.Response().Header().Set("Content-Language", string(reader.in))
	if allow := c.Response().Header().Get(echo.HeaderAllow); allow != "" {
		// Echo adds what refuseOptions refuses.
		c.Response().Header().Set(echo.HeaderAllow, strings.TrimPrefix(allow, "OPTIONS, "))
	}
	c.Set(codeKey, string(p.Code))
	if h := c.Response().Header(); p.Status == http.StatusTooManyRequests && h.Get(echo.HeaderRetryAfter) == "" {
		h.Set(echo.HeaderRetryAfter, retryAfter) // something else than calls ran out
	}
	if p.Status >= http.StatusInternalServerError {
		// Elsewhere it is left out: an unknown VPS and another customer's get
		// the same answer to the byte.
		p.RequestID = requestID(c)
		s.log.Log(c.Request().Context(), severity(err), "request failed",
			"request_id", p.RequestID, "code", p.Code, "error", err)
	}
	body, err := json.Marshal(p)
	if err == nil {
		err = c.Blob(p.Status, "application/problem+json", body)
	}
	if err != nil {
		s.log.Warn("cannot send the answer", "request_id", requestID(c), "error", err)
	}
}

// severity spares the log of callers who went away.
func severity(err error) slog.Level {
	if errors.Is(err, context.Canceled) {
		return slog.LevelDebug
	}
	return slog.LevelError
}

// problemOf finds the status: a finer one first, then Echo's own, then the table of
// codes.
func problemOf(err error, r reader) api.Problem {
	var (
		fine  *statusError
		plain *vps.Error
		web   *echo.HTTPError
	)
	switch {
	case errors.As(err, &fine):
		return problem(fine.status, fine.err, r)
	case errors.As(err, &web) && !errors.As(err, &plain):
		return problem(web.Code, webError(web), r)
	}
	e := vps.Readable(err)
	return problem(api.Code(e.Code).HTTPStatus(), e, r)
}

func problem(status int, e *vps.Error, r reader) api.Problem {
	if code := api.Code(e.Code); !code.Valid() || code == api.CodeInternal {
		// Whatever it says was not written for a caller.
		e = vps.Errorf(vps.CodeInternal, "something went wrong inside vpssnapd; its log says what").
			WithRemedy("give the request id to the operator of this host")
	}
	e = r.failure(e)
	return api.Problem{
		Type:   "urn:vpssnapd:problem:" + string(e.Code),
		Title:  e.Code.In(r.in),
		Status: status,
		Code:   api.Code(e.Code),
		Detail: e.Detail,
		Remedy: e.Remedy,
	}
}

// webError gives Echo's own errors a code. Their texts are not repeated: they
// can hold names of Go types.
func webError(e *echo.HTTPError) *vps.Error {
	switch e.Code {
	case http.StatusNotFound:
		return vps.Errorf(vps.CodeNotFound, "no such path")
	case http.StatusMethodNotAllowed:
		return vps.Errorf(vps.CodeInvalid, "the path does not know this method")
	case http.StatusUnsupportedMediaType:
		return vps.Errorf(vps.CodeInvalid, "the body must be application/json")
	}
	if e.Code >= http.StatusInternalServerError {
		return vps.Errorf(vps.CodeInternal, "")
	}
	if at, ok := errors.AsType[*time.ParseError](e.Internal); ok {
		return vps.Errorf(vps.CodeInvalid, "there is no such time: %s", clip(at.Value))
	}
	return vps.Errorf(vps.CodeInvalid, "the request is malformed")
}
