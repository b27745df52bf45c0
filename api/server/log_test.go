package server_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"vpssnapd/api"
	"vpssnapd/daemon/daemontest"
)

// logLine is what is looked at in a line of the log.
type logLine struct {
	Msg       string
	RequestID string `json:"request_id"`
	Operation string
	Status    int
	Actor     string
}

// line finds the line of a request.
func (s *site) line(requestID string) (found logLine) {
	s.t.Helper()
	for text := range strings.SplitSeq(strings.TrimSpace(s.log.String()), "\n") {
		var l logLine
		check(s.t, json.Unmarshal([]byte(text), &l))
		if l.Msg == "request" && l.RequestID == requestID {
			found = l
		}
	}
	return found
}

// A request is found in the log by its id, with the operation that it began.
func TestLogHasRequestAndOperation(t *testing.T) {
	s := newSite(t)
	got := s.call("snapshot", http.MethodPost, "/v1/vps/web1/snapshot", "")
	op := decode[api.Operation](t, got)
	l := s.line(got.Header.Get("X-Request-Id"))
	if op.ID == "" || l.Operation != op.ID || l.Status != http.StatusAccepted || l.Actor != "snapshot" {
		t.Errorf("operation %s, the log has %+v", op.ID, l)
	}
	refused := s.call("read", http.MethodPost, "/v1/vps/web1/snapshot", "")
	if l := s.line(refused.Header.Get("X-Request-Id")); l.Status != http.StatusForbidden || l.Operation != "" ||
		l.Actor != "read" {
		t.Errorf("of a refused call the log has %+v", l)
	}
}

// Whatever a caller sends as a secret, or tells of a customer, is in no line of the log.
func TestLogHasNoSecrets(t *testing.T) {
	s := newPanickingSite(t)
	const secret = "s3cr3t-8f1e6c0d"
	calls := 0
	for _, change := range []func(*http.Request){
		func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+secret) },
		func(r *http.Request) { r.Header.Set("Authorization", "Basic "+secret) },
		func(r *http.Request) { r.Header.Set("Authorization", secret) },
		func(r *http.Request) {
			r.Header["Authorization"] = []string{"Bearer " + s.secret("read"), "Bearer " + secret}
		},
		func(r *http.Request) { r.Header.Set("Cookie", "session="+secret) },
		func(r *http.Request) { r.Header.Set("Idempotency-Key", secret) },
		func(r *http.Request) { r.URL.RawQuery = "token=" + secret },
		func(r *http.Request) { r.URL.RawQuery = "access_token=" + secret },
		func(r *http.Request) { r.URL.RawQuery = secret + "=1" },
		func(r *http.Request) { r.URL.RawQuery = "%" + secret },
		func(r *http.Request) { r.URL.User = nil; r.Header.Set("Proxy-Authorization", "Basic "+secret) },
	} {
		for path, method := range map[string]string{"/v1/vps": http.MethodGet, "/v1/events?after=x": http.MethodGet, "/metrics": http.MethodGet,
			"/v1/vps/web1/option": http.MethodPut, "/v1/operations/nosuch/cancel": http.MethodPost, "/nowhere": http.MethodGet} {
			r := s.request("admin", method, path, "")
			change(r)
			s.do(r)
			calls++
		}
	}
	for _, body := range []string{
		`{"state":"active","contact_email":"` + secret + `@example.org"}`,
		`{"state":"active","contact_email":"` + secret + `"}`,
		`{"state":"` + secret + `"}`,
		`{"` + secret + `":1}`,
		`{"state":"active","ends_at":"` + secret + `"}`,
		secret,
	} {
		s.call("admin", http.MethodPut, "/v1/vps/"+daemontest.Web2+"/option", body)
		calls++
	}
	r := s.request("admin", http.MethodGet, "/v1/host", "")
	r.Header.Set("Cookie", secret)
	s.do(r)
	log := s.log.String()
	if strings.Contains(log+s.host.Log(), secret) {
		t.Error("the log has a secret")
	}
	if strings.Contains(log+s.host.Log(), "Bearer") {
		t.Error("the log has an Authorization header")
	}
	if lines := strings.Count(log, `"msg":"request"`); lines < calls {
		t.Errorf("%d calls left %d lines", calls, lines)
	}
}
