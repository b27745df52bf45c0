package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/labstack/echo/v4"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

// Answers knows what calls were answered.
type Answers interface {
	// Answered returns what was kept of an answer (vps.Call), and the call's sum.
	Answered(ctx context.Context, client, key string) (answer []byte, sum [sha256.Size]byte, err error)
}

const (
	headerKey   = "Idempotency-Key"
	headerETag  = "ETag"
	headerMatch = "If-Match"
)

// kept is an answer as it is stored with what the call has changed. A secret in it
// is not stored: SecretOf names what the secret is read of when the answer is sent
// again, and Renew the token that gets another one, since its own is nowhere.
type kept struct {
	Status   int             `json:"status"`
	Location string          `json:"location,omitempty"`
	ETag     string          `json:"etag,omitempty"`
	Body     json.RawMessage `json:"body,omitempty"`
	Renew    string          `json:"renew,omitempty"`
	SecretOf string          `json:"secret_of,omitempty"`
}

// keep makes the answer of what came of a call, as the handlers do. An answer of a type
// that is missing here is an error at the first call, not at its repetition.
func (reader reader) keep(result any) ([]byte, error) {
	var k kept
	var body any
	switch r := result.(type) {
	case vps.Operation:
		k.Status, k.Location, body = http.StatusAccepted, location(r), reader.operation(r)
	case vps.Option:
		k.Status, k.ETag, body = http.StatusOK, etag(r.Version()), wireOption(r)
	case vps.Snapshot:
		k.Status, k.ETag, body = http.StatusOK, etag(r.Version()), reader.snapshot(r)
	case vps.Report:
		k.Status, body = http.StatusOK, wireReport(r)
	case vps.Token:
		k.Status, k.Renew, body = http.StatusCreated, r.ID, wireToken(r)
	case vps.Webhook:
		r.Secret = ""
		k.Status, k.SecretOf, body = http.StatusCreated, r.ID, wireNewWebhook(r)
	case vps.WebhookTest:
		k.Status, body = http.StatusOK, wireWebhookTest(r)
	case vps.Download:
		r.Link = ""
		k.Status, k.SecretOf, body = http.StatusCreated, r.ID, wireDownload(r)
	case nil:
		k.Status = http.StatusNoContent
	default:
		return nil, fmt.Errorf("there is no answer made of a %T", result)
	}
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		k.Body = text
	}
	return json.Marshal(k)
}

// once answers a changing call that comes again with its Idempotency-Key as it was
// answered before, and hands on what else the client asks for (vps.Call). While a
// call is carried out, its repetitions wait.
func (s *Server) once(op *openapi3.Operation, next echo.HandlerFunc) echo.HandlerFunc {
	if op.Parameters.GetByInAndName("header", headerKey) == nil {
		return next
	}
	return func(c echo.Context) error {
		r := c.Request()
		match, err := matches(r)
		if err != nil {
			return err
		}
		if keys := r.Header.Values(headerKey); len(keys) > 1 || len(keys) == 1 && keys[0] == "" {
			return invalid("a call has one Idempotency-Key, of 1 to 255 characters, or none")
		}
		call := vps.Call{
			Match:  match,
			Client: callerOf(r.Context()).id,
			Owner:  callerOf(r.Context()).owner(),
			Key:    r.Header.Get(headerKey),
			Record: readerOf(r.Context()).keep,
		}
		if call.Key == "" {
			c.SetRequest(r.WithContext(vps.WithCall(r.Context(), call)))
			return next(c)
		}
		if call.Sum, err = sumOf(r); err != nil {
			return err
		}
		// By client and key: the same key of another client is another call.
		release, err := s.calls.acquire(r.Context(), call.Client+" "+call.Key)
		if err != nil {
			return err
		}
		defer release()
		answer, sum, err := s.services.Answers.Answered(r.Context(), call.Client, call.Key)
		switch {
		case err != nil:
			return err
		case answer == nil:
			c.SetRequest(r.WithContext(vps.WithCall(r.Context(), call)))
			return next(c)
		// The client has mixed up two calls; to answer either would be wrong.
		case sum != call.Sum:
			return invalidStatus(http.StatusUnprocessableEntity, "the Idempotency-Key was used for another call")
		}
		return s.repeat(c, answer)
	}
}

// repeat sends an answer once more. To the byte as before, but for the secret.
func (s *Server) repeat(c echo.Context, answer []byte) error {
	var k kept
	if err := json.Unmarshal(answer, &k); err != nil {
		return fmt.Errorf("a kept answer cannot be read: %w", err)
	}
	if k.Renew != "" || k.SecretOf != "" {
		body, err := s.withSecret(c.Request().Context(), k)
		if err != nil {
			return err
		}
		return c.JSON(k.Status, body)
	}
	h := c.Response().Header()
	for name, value := range map[string]string{echo.HeaderLocation: k.Location, headerETag: k.ETag} {
		if value != "" {
			h.Set(name, value)
		}
	}
	if len(k.Body) == 0 {
		return c.NoContent(k.Status)
	}
	return c.Blob(k.Status, echo.MIMEApplicationJSON, append(k.Body, '\n'))
}

// withSecret is the body of a kept answer with the secret that was left out. What it
// is of may be gone by now, and then nobody gets it any more: not_found.
func (s *Server) withSecret(ctx context.Context, k kept) (any, error) {
	switch {
	case k.Renew != "":
		secret, err := s.services.Tokens.RenewSecret(ctx, k.Renew)
		if err != nil {
			return nil, err
		}
		made := api.NewToken{Secret: secret}
		return made, json.Unmarshal(k.Body, &made.Token)
	case strings.HasPrefix(k.SecretOf, "wh-"):
		w, err := s.services.Webhooks.Webhook(ctx, k.SecretOf)
		if err != nil {
			return nil, err
		}
		made := api.NewWebhook{}
		err = json.Unmarshal(k.Body, &made)
		made.Secret = w.Secret
		return made, err
	}
	d, err := s.services.Downloads.Download(ctx, k.SecretOf)
	if err != nil {
		return nil, err
	}
	made := api.Download{}
	err = json.Unmarshal(k.Body, &made)
	made.URL = linkPath + d.Link
	return made, err
}

// sumOf tells a call from every other. readBody has read the body.
func sumOf(r *http.Request) (sum [sha256.Size]byte, err error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return sum, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q\n", r.Method, r.URL.RequestURI(), r.Header.Values(headerMatch))
	h.Write(body)
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// etag puts a version in the quotes of a strong tag (RFC 9110).
func etag(version string) string { return `"` + version + `"` }

// matches reads If-Match; nil when there is none. A weak tag (W/) never matches. A tag may
// hold commas itself.
func matches(r *http.Request) ([]string, error) {
	values := r.Header.Values(headerMatch)
	if len(values) == 0 {
		return nil, nil
	}
	list := []string{}
	for rest := strings.Join(values, ","); ; {
		found := matchForm.FindStringSubmatch(rest)
		if found == nil {
			return nil, invalid("If-Match must hold an ETag in its quotes, or *")
		}
		switch any, weak, tag := found[1], found[2], found[3]; {
		case any != "":
			list = append(list, any)
		case weak == "" && tag != "*": // which would mean any
			list = append(list, tag)
		}
		if rest = rest[len(found[0]):]; rest == "" {
			return list, nil
		}
	}
}

// matchForm is one entry of If-Match with the comma behind it.
var matchForm = regexp.MustCompile(`^[ \t]*(?:(\*)|(W/)?"([\x21\x23-\x7E\x80-\xFF]*)")[ \t]*(?:$|,)`)

// inProgress holds the calls with an Idempotency-Key that are being carried out.
type inProgress struct {
	mu    sync.Mutex
	ended map[string]chan struct{}
}

// acquire waits until no other call of the same name is carried out. Waiters look again
// when it has ended, and find its answer kept.
func (p *inProgress) acquire(ctx context.Context, name string) (release func(), err error) {
	for {
		p.mu.Lock()
		before := p.ended[name]
		if before == nil {
			ended := make(chan struct{})
			p.ended[name] = ended
			p.mu.Unlock()
			return func() {
				p.mu.Lock()
				delete(p.ended, name)
				p.mu.Unlock()
				close(ended)
			}, nil
		}
		p.mu.Unlock()
		select {
		case <-before:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
