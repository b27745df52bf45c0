package server_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"vpssnapd/api"
	"vpssnapd/api/server"
	"vpssnapd/daemon"
	"vpssnapd/daemon/daemontest"
	"vpssnapd/daemon/guest"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/notify"
	"vpssnapd/daemon/snapshot"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// judge holds every answer against openapi.yaml.
type judge struct {
	router routers.Router
	// callers counts the addresses that asked, so that nobody is held to the limit.
	callers int
}

func newJudge(f *testing.F) *judge {
	f.Helper()
	spec, err := openapi3.NewLoader().LoadFromData(api.Spec)
	if err != nil {
		f.Fatal(err)
	}
	spec.Servers = nil
	router, err := gorillamux.NewRouter(spec)
	if err != nil {
		f.Fatal(err)
	}
	return &judge{router: router}
}

// ask lets h answer a request as if it had come over TCP.
func (j *judge) ask(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	j.callers++
	r.RemoteAddr = fmt.Sprintf("10.%d.%d.%d:1", j.callers>>16&255, j.callers>>8&255, j.callers&255)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// allowed are the statuses with which HTTP itself refuses; their code is less fine.
var allowed = map[int]bool{404: true, 405: true, 408: true, 413: true, 415: true, 422: true}

// judgeAnswer fails unless the answer is one that openapi.yaml documents.
func (j *judge) judgeAnswer(t *testing.T, r *http.Request, status int, header http.Header, body []byte) {
	t.Helper()
	if status >= http.StatusBadRequest {
		checkProblem(t, status, header, body)
	}
	route, params, err := j.router.FindRoute(r)
	if err != nil {
		if status < http.StatusBadRequest {
			t.Fatalf("%s %s is not documented and answers %d", r.Method, r.URL.Path, status)
		}
		return
	}
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route},
		Status:                 status, Header: header,
		Options: &openapi3filter.Options{
			ExcludeResponseBody:   !strings.Contains(header.Get("Content-Type"), "json"),
			IncludeResponseStatus: true,
		},
	}
	in.SetBodyBytes(body)
	if err := openapi3filter.ValidateResponse(context.Background(), in); err != nil {
		t.Fatalf("%s %s answers %d, not as documented: %v\n%s", r.Method, r.URL.Path, status, err, body)
	}
}

// judge is judgeAnswer of what ask returned.
func (j *judge) judge(t *testing.T, r *http.Request, w *httptest.ResponseRecorder) {
	t.Helper()
	j.judgeAnswer(t, r, w.Code, w.Result().Header, w.Body.Bytes())
}

// checkProblem wants the documented form, a code that goes with the status, and
// nothing from inside.
func checkProblem(t *testing.T, status int, header http.Header, body []byte) {
	t.Helper()
	var p api.Problem
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil || header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("%d is no problem document (%v): %s", status, err, body)
	}
	if p.Status != status || !p.Code.Valid() || p.Code.HTTPStatus() != status && !allowed[status] {
		t.Fatalf("%d with %+v", status, p)
	}
	if status >= http.StatusInternalServerError {
		t.Fatalf("a request brought a healthy host to %d: %+v", status, p)
	}
	if p.Detail == "" || strings.Contains(p.Detail, ".go:") || len(body) > 2000 {
		t.Fatalf("it says too much or nothing: %s", body)
	}
}

// FuzzRequest: whatever is sent, the answer is a documented one, and never a 5xx.
func FuzzRequest(f *testing.F) {
	const head = " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin\r\n"
	const typed = head + "Content-Type: application/json\r\n"
	body := func(s string) string { return fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(s), s) }
	f.Add([]byte("GET /v1/vps/web1" + head + "\r\n"))
	f.Add([]byte("GET /v1/vps/..%2f..%2fetc?x=%zz" + head + "\r\n"))
	f.Add([]byte("GET /v1/operations/op-1?wait=1ns" + head + "\r\n"))
	f.Add([]byte("GET /v1/messages?limit=1&cursor=2&kind=warning HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer bound\r\n\r\n"))
	f.Add([]byte("GET /v1/vps?token=admin HTTP/1.1\r\nHost: x\r\nAuthorization: bearer \r\nAuthorization: Basic a\r\n\r\n"))
	f.Add([]byte("POST /v1/vps/web1/snapshot" + typed + body(`{"description":"x","quiesce":"never","replace":true}`)))
	f.Add([]byte("POST /v1/vps/web3/snapshot/restore" + typed + body(`{"confirm":"abcdef012345","power_after":"off"}`)))
	f.Add([]byte("PATCH /v1/vps/web3/snapshot" + typed + body("{\"description\":\"a\xff\"}")))
	f.Add(
		[]byte(
			"PUT /v1/vps/web2/option" + typed + body(
				`{"state":"active","order_ref":"A-7","locale":"fr","ends_at":"2027-01-01T00:00:00+01:00"}`,
			),
		),
	)
	f.Add([]byte("DELETE /v1/vps/web3/option?now=true" + head + "\r\n"))
	f.Add([]byte("POST /v1/operations/op-1/cancel" + head + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"))
	f.Add(
		[]byte(
			"POST /v1/tokens" + head + "Idempotency-Key: a\r\nContent-Type: application/json\r\n" + body(
				`{"name":"jo","scopes":["read"],"vps":["web1"],"expires_in_seconds":60}`,
			),
		),
	)
	f.Add(
		[]byte(
			"PATCH /v1/vps/web3/snapshot" + head + "If-Match: \"a\", W/\"b\"\r\nIdempotency-Key: \r\nContent-Type: application/json\r\n" + body(
				`{"description":""}`,
			),
		),
	)
	f.Add([]byte("OPTIONS * HTTP/1.0\r\n\r\n"))
	f.Add([]byte("CONNECT web1:1 HTTP/1.1\r\nHost: web1\r\n\r\n"))
	j := newJudge(f)
	host := daemontest.New(f)
	h := server.New(server.Config{Services: daemontest.Services(host.Daemon), PerSecond: noLimit, Logger: slog.New(slog.DiscardHandler), Version: "1.0"}).
		Handler()
	f.Fuzz(func(t *testing.T, raw []byte) {
		// A request names its token by the role.
		for _, role := range []string{"admin", "bound"} {
			raw = bytes.Replace(raw, []byte("Bearer "+role+"\r\n"), []byte("Bearer "+host.Secret(role)+"\r\n"), 1)
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return // net/http answers these
		}
		j.judge(t, r, j.ask(h, r))
	})
}

// calls are the methods and paths that FuzzCall chooses from.
var calls = []struct{ method, path string }{
	{"GET", "/v1/vps"}, {"GET", "/v1/vps/web1"}, {"GET", "/v1/offers"},
	{"GET", "/v1/vps/web1/option"}, {"PUT", "/v1/vps/web1/option"}, {"DELETE", "/v1/vps/web1/option"},
	{
		"POST",
		"/v1/vps/web1/snapshot",
	}, {"GET", "/v1/vps/web1/snapshot"}, {"PATCH", "/v1/vps/web1/snapshot"}, {"DELETE", "/v1/vps/web1/snapshot"},
	{"POST", "/v1/vps/web1/snapshot/restore"}, {"POST", "/v1/vps/web1/snapshot/undo-restore"},
	{"GET", "/v1/vps/web1/messages"}, {"GET", "/v1/messages"}, {"GET", "/v1/operations"},
	{"GET", "/v1/operations/{last}"}, {"POST", "/v1/operations/{last}/cancel"}, {"POST", "/v1/operations/{last}/resume"},
	{"GET", "/v1/tokens"}, {"POST", "/v1/tokens"}, {"DELETE", "/v1/tokens/tok-000000000000"},
	{"GET", "/v1/host"}, {"GET", "/v1/host/checks"}, {"POST", "/v1/host/repair"}, {"GET", "/readyz"},
}

// FuzzCall sends bodies and queries of any kind to the real daemon on a fake
// host, in whatever state the calls before have brought it to.
func FuzzCall(f *testing.F) {
	index := func(method, path string) uint8 {
		for i, c := range calls {
			if c.method == method && c.path == path {
				return uint8(i)
			}
		}
		f.Fatalf("no call %s %s", method, path)
		return 0
	}
	f.Add(
		index("PUT", "/v1/vps/web1/option"), "",
		`{"state":"active","order_ref":"A-7","price":{"amount":499,"currency":"CHF","period":"year"},"contact_email":"a@b.example","locale":"fr"}`,
	)
	f.Add(index("PUT", "/v1/vps/web1/option"), "", `{"state":"ordered","ends_at":"9999-12-31T23:59:59Z"}`)
	f.Add(
		index("POST", "/v1/vps/web1/snapshot"), "",
		`{"description":"before ' OR 1=1 -- \u202e","quiesce":"require","replace":true}`,
	)
	f.Add(index("POST", "/v1/vps/web1/snapshot/restore"), "", `{"confirm":"{snapshot}","power_after":"off"}`)
	f.Add(index("POST", "/v1/vps/web1/snapshot/undo-restore"), "", "")
	f.Add(index("PATCH", "/v1/vps/web1/snapshot"), "", `{"description":"\u0000"}`)
	f.Add(index("DELETE", "/v1/vps/web1/option"), "now=true", "")
	f.Add(index("GET", "/v1/operations"), "limit=1&status=failed&vps=web1&cursor=op", "")
	f.Add(index("GET", "/v1/operations/{last}"), "wait=10ms", "")
	f.Add(index("POST", "/v1/operations/{last}/cancel"), "", "")
	j := newJudge(f)
	s := newFuzzSite(f)
	f.Fuzz(func(t *testing.T, call uint8, query, body string) {
		c := calls[int(call)%len(calls)]
		r := httptest.NewRequest(
			c.method, strings.ReplaceAll(c.path, "{last}", s.lastOperation(t)),
			strings.NewReader(strings.ReplaceAll(body, "{snapshot}", s.snapshotID())),
		)
		r.URL.RawQuery = query
		r.Header.Set("Authorization", "Bearer "+s.secret)
		if body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
		j.judge(t, r, j.ask(s.handler, r))
		s.settle(t)
	})
}

// fuzzSite is the real daemon on a fake host with one VPS.
type fuzzSite struct {
	daemon  *daemon.Daemon
	host    *fake.Host
	handler http.Handler
	id      string
	secret  string // of a token that may do everything
}

func newFuzzSite(f *testing.F) *fuzzSite {
	f.Helper()
	host, err := fake.Open(f.TempDir())
	check(f, err)
	id, err := host.Define("web1", hypervisor.Disk{Target: "vda", SizeBytes: 1 << 20})
	check(f, err)
	check(f, host.SetAgent(id, fake.AgentAnswers))
	check(f, host.Start(context.Background(), id, false))
	log := slog.New(slog.DiscardHandler)
	d, err := daemon.Open(context.Background(), daemon.Config{
		Host: host, StateDir: f.TempDir(), Version: "test", Logger: log,
		Settings: daemon.Settings{
			Notify:   notify.Policy{Grace: time.Hour},
			Snapshot: snapshot.Policy{UndoKeep: time.Hour, AgentWait: time.Second},
			Guest:    guest.Policy{FreezeLimit: time.Second},
			Merge:    merge.Policy{Limit: 1},
			Offer:    vps.Offer{ID: "snapshot", Price: vps.Price{Currency: "EUR", Period: vps.PeriodMonth}},
		},
	})
	check(f, err)
	f.Cleanup(func() { check(f, errors.Join(d.Close(), host.Close())) })
	s := server.New(server.Config{Services: daemontest.Services(d), PerSecond: noLimit, Logger: log, Version: "1.0"})
	_, secret, err := d.Tokens.CreateToken(
		context.Background(), vps.TokenRequest{Name: "admin", Scopes: []vps.Scope{vps.ScopeAdmin}}, vps.Actor{},
	)
	check(f, err)
	return &fuzzSite{daemon: d, host: host, handler: s.Handler(), id: id, secret: secret}
}

// lastOperation is the id of the newest operation, or one that does not exist.
func (s *fuzzSite) lastOperation(t *testing.T) string {
	page, err := s.daemon.Operations.Operations(t.Context(), vps.OperationQuery{Limit: 1})
	check(t, err)
	if len(page.Operations) == 0 {
		return "none"
	}
	return page.Operations[0].ID
}

func (s *fuzzSite) snapshotID() string {
	snap, err := s.daemon.Snapshots.Snapshot(context.Background(), s.id)
	if err != nil {
		return "000000000000"
	}
	return snap.ID
}

// settle waits for the call's operation to end, and puts a VPS that was left off back on.
func (s *fuzzSite) settle(t *testing.T) {
	t.Helper()
	op, err := s.daemon.Operations.WaitOperation(t.Context(), s.lastOperation(t), 10*time.Second)
	if vps.CodeOf(err) != vps.CodeNotFound {
		check(t, err)
		if !op.Status.Final() {
			t.Fatalf("%s stands at %s: %+v", op.Kind, op.Status, op.Error)
		}
		if op.Status == vps.StatusFailed && op.Error.Code == vps.CodeInternal {
			t.Fatalf("%s failed inside: %+v", op.Kind, op.Error)
		}
	}
	check(t, s.host.Start(t.Context(), s.id, false))
}
