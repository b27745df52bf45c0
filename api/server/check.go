package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/labstack/echo/v4"

	"vpssnapd/daemon/vps"
)

const (
	maxBody = 64 << 10
	// bodyTime is how long a caller may take to send a whole request.
	bodyTime = 10 * time.Second
)

// validate compares a request with what openapi.yaml says of its call.
func validate(call *routers.Route, next echo.HandlerFunc) echo.HandlerFunc {
	options := &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc}
	return func(c echo.Context) error {
		// Echo leaves parameters of the path escaped where they hold a slash: unescaped
		// once, here, they are what everybody sees.
		inPath := map[string]string{}
		for i, name := range c.ParamNames() {
			text, err := url.PathUnescape(c.ParamValues()[i])
			if err != nil {
				return invalid("the path is malformed")
			}
			inPath[name] = text
		}
		err := openapi3filter.ValidateRequest(c.Request().Context(),
			&openapi3filter.RequestValidationInput{Request: c.Request(), PathParams: inPath, Route: call, Options: options})
		if err != nil {
			return explain(err)
		}
		return next(c)
	}
}

// explain says what is wrong without the schema and the value that the validator would
// print. Schemas are large and values may be secrets; neither goes back to the caller.
func explain(err error) error {
	request, ok := errors.AsType[*openapi3filter.RequestError](err)
	if !ok {
		return err
	}
	where := vps.Say("the body")
	if request.Parameter != nil {
		where = vps.Say("the parameter %s", clip(request.Parameter.Name))
	}
	reason := request.Reason
	if schema, ok := errors.AsType[*openapi3.SchemaError](request.Err); ok {
		reason = schema.Reason
		if field := strings.Join(schema.JSONPointer(), "."); field != "" && request.Parameter == nil {
			where = vps.Say("the field %s", clip(field))
		}
	} else if reason == "" && request.Err != nil {
		reason = request.Err.Error()
	}
	return invalid("%s is not accepted: %s", where, clip(reason))
}

// clip bounds what is repeated of a request.
func clip(s string) string {
	const most = 200
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}

// checkQuery refuses unknown and repeated parameters: a mistyped one must not
// be taken for its absence.
func checkQuery(op *openapi3.Operation, shared openapi3.Parameters, next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		query, err := url.ParseQuery(c.Request().URL.RawQuery)
		if err != nil {
			return invalid("the query is malformed")
		}
		for name, values := range query {
			known := op.Parameters.GetByInAndName("query", name) != nil || shared.GetByInAndName("query", name) != nil
			if !known {
				return invalid("the query parameter %q is not known here", clip(name))
			}
			// Programs on the way may go by another of the two.
			if len(values) != 1 {
				return invalid("the query parameter %q was given %d times", name, len(values))
			}
		}
		return next(c)
	}
}

// readBody reads the whole body within its limits of size and time, so that
// everything after it works on one complete JSON value.
func readBody(op *openapi3.Operation, next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		body, err := readAll(c.Response().Writer, r)
		if err != nil {
			return err
		}
		if len(body) > 0 {
			if op.RequestBody == nil {
				return invalid("this call takes no body")
			}
			if err := checkJSON(r.Header, body); err != nil {
				return err
			}
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		// The next ones see a complete request, whatever way it came.
		r.ContentLength = int64(len(body))
		r.TransferEncoding = nil
		return next(c)
	}
}

// readAll bounds the body by size (413) and by the time of its arrival (408).
func readAll(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, invalidStatus(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", maxBody)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, invalidStatus(http.StatusRequestTimeout, "the body did not arrive within %s", bodyTime)
	case err != nil:
		return nil, invalid("the body could not be read")
	}
	// The request is complete. From here on the connection may be silent, as
	// in a long wait for an operation.
	if err := http.NewResponseController(w).SetReadDeadline(time.Time{}); err != nil &&
		!errors.Is(err, http.ErrNotSupported) {
		return nil, err
	}
	return body, nil
}

// checkJSON takes one JSON value in UTF-8 and nothing else: everybody behind it may rely
// on that.
func checkJSON(h http.Header, body []byte) error {
	kind, params, err := mime.ParseMediaType(h.Get(echo.HeaderContentType))
	charset := strings.ToLower(params["charset"])
	if err != nil || kind != echo.MIMEApplicationJSON || (charset != "" && charset != "utf-8") {
		return invalidStatus(http.StatusUnsupportedMediaType, "the body must be application/json")
	}
	if coding := h.Get(echo.HeaderContentEncoding); coding != "" && !strings.EqualFold(coding, "identity") {
		return invalidStatus(http.StatusUnsupportedMediaType, "the body must not be compressed")
	}
	if !json.Valid(body) || !utf8.Valid(body) {
		return invalid("the body is not one JSON value in UTF-8")
	}
	if name := namedTwice(body); name != "" {
		return invalid("the body has the field %q twice", clip(name))
	}
	return nil
}

// namedTwice is a field that an object in a JSON value has twice, "" when there is
// none. Programs that read the value on its way could go by another of the two.
func namedTwice(value []byte) string {
	type object struct {
		named map[string]bool // nil: it is an array
		value bool            // a value comes next
	}
	in := []object{{}}
	// encoding/json would silently take the last of the two.
	for d := json.NewDecoder(bytes.NewReader(value)); ; {
		token, err := d.Token()
		if err != nil {
			return ""
		}
		top := &in[len(in)-1]
		name, isText := token.(string)
		switch {
		case token == json.Delim('{'):
			in = append(in, object{named: map[string]bool{}})
			continue
		case token == json.Delim('['):
			in = append(in, object{})
			continue
		case token == json.Delim('}'), token == json.Delim(']'):
			in = in[:len(in)-1]
			top = &in[len(in)-1]
		case isText && top.named != nil && !top.value:
			if top.named[name] {
				return name
			}
			top.named[name], top.value = true, true
			continue
		}
		top.value = false
	}
}
