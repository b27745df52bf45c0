package server_test

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/server"
	"vpssnapd/daemon/daemontest"
	"vpssnapd/daemon/vps"
)

func TestOddReferences(t *testing.T) {
	s := newSite(t)
	odd := []string{
		"../../etc", ";reboot", "$(id)", "\x00", "a\r\nb", strings.Repeat("x", 300), "a/b", "..", ".", " ", "%",
		"' OR 1=1 --", "ü\u202e", "\xff\xfe", "web1\n", "<script>",
	}
	for _, ref := range odd {
		for _, form := range []string{url.PathEscape(ref), strings.ReplaceAll(url.PathEscape(ref), ".", "%2e")} {
			for _, path := range []string{"/v1/vps/%s", "/v1/vps/%s/snapshot", "/v1/vps/%s/messages", "/v1/operations/%s"} {
				got := s.raw("GET "+fmt.Sprintf(path, form)+" HTTP/1.1", "")
				if got.StatusCode != 400 && got.StatusCode != 404 {
					t.Errorf("GET %s for %q: %s %s", fmt.Sprintf(path, form), ref, got.Status, got.body)
				}
			}
		}
	}
	for _, path := range []string{"/v1/vps/web1%2fsnapshot", "/v1/vps/../../etc/passwd", "/v1//vps", "/v1/vps/", "/v1/vps/%zz"} {
		if got := s.raw("GET "+path+" HTTP/1.1", ""); got.StatusCode != 400 && got.StatusCode != 404 {
			t.Errorf("GET %s: %s %s", path, got.Status, got.body)
		}
	}
}

// A name is decoded once: an escaped percent sign stays one.
func TestReferenceIsDecodedOnce(t *testing.T) {
	s := newSite(t)
	if got := s.call("read", http.MethodGet, "/v1/vps/%77eb1", ""); got.StatusCode != 200 {
		t.Errorf("web1 with one escape: %s", got.Status)
	}
	if got := s.call("read", http.MethodGet, "/v1/vps/%2577eb1", ""); got.StatusCode != 404 {
		t.Errorf("web1 escaped twice: %s", got.Status)
	}
}

// raw sends a request line as it is, as the reader; net/http would tidy it up.
func (s *site) raw(line, rest string) answer {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.tcp)
	check(s.t, err)
	defer conn.Close()
	check(s.t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = fmt.Fprintf(
		conn, "%s\r\nHost: x\r\nAuthorization: Bearer %s\r\nConnection: close\r\n%s\r\n", line, s.secret("admin"), rest,
	)
	check(s.t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	check(s.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	check(s.t, err)
	return answer{resp, string(body)}
}

func TestBadBodies(t *testing.T) {
	long := strings.Repeat("x", 501)
	cases := []struct {
		name, method, path, body string
		want                     int
	}{
		{"unknown field", "POST", "/v1/vps/web1/snapshot", `{"descripton":"x"}`, 400},
		{"field in another case", "POST", "/v1/vps/web1/snapshot", `{"Replace":true}`, 400},
		{"malformed", "POST", "/v1/vps/web1/snapshot", `{"description":`, 400},
		{"garbage after it", "POST", "/v1/vps/web1/snapshot", `{} {}`, 400},
		{"no object", "POST", "/v1/vps/web1/snapshot", `[]`, 400},
		{"null", "POST", "/v1/vps/web1/snapshot", `null`, 400},
		{"wrong type", "POST", "/v1/vps/web1/snapshot", `{"replace":"yes"}`, 400},
		{"unknown policy", "POST", "/v1/vps/web1/snapshot", `{"quiesce":"maybe"}`, 400},
		{"long description", "POST", "/v1/vps/web1/snapshot", `{"description":"` + long + `"}`, 400},
		{"control characters", "PATCH", "/v1/vps/web3/snapshot", `{"description":"a\u001b[2J"}`, 400},
		{"no description", "PATCH", "/v1/vps/web3/snapshot", `{}`, 400},
		{"no body", "PATCH", "/v1/vps/web3/snapshot", "", 400},
		{"not UTF-8", "PATCH", "/v1/vps/web3/snapshot", "{\"description\":\"\xff\"}", 400},
		{"deep", "POST", "/v1/vps/web1/snapshot", strings.Repeat("[", 30000), 400},
		{"deep and closed", "POST", "/v1/vps/web1/snapshot", strings.Repeat("[", 9000) + strings.Repeat("]", 9000), 400},
		{
			"a field twice",
			"POST",
			"/v1/vps/web3/snapshot/restore",
			`{"confirm":"abcdef012345","confirm":"abcdef012345"}`,
			400,
		},
		{
			"a field twice, escaped",
			"POST",
			"/v1/vps/web3/snapshot/restore",
			`{"confirm":"abcdef012345","c\u006fnfirm":"abcdef012345"}`,
			400,
		},
		{
			"a field twice further in",
			"PUT",
			"/v1/vps/web1/option",
			`{"state":"active","price":{"amount":1,"currency":"EUR","period":"month","amount":0}}`,
			400,
		},
		{"a day that there is not", "PUT", "/v1/vps/web1/option", `{"state":"active","ends_at":"2027-02-30T00:00:00Z"}`, 400},
		{"body where none belongs", "DELETE", "/v1/vps/web3/snapshot", `{"confirm":"x"}`, 400},
		{"grace by order", "PUT", "/v1/vps/web1/option", `{"state":"grace"}`, 400},
		{"no state", "PUT", "/v1/vps/web1/option", `{}`, 400},
		{
			"currency",
			"PUT",
			"/v1/vps/web1/option",
			`{"state":"active","price":{"amount":1,"currency":"euro","period":"month"}}`,
			400,
		},
		{
			"negative price",
			"PUT",
			"/v1/vps/web1/option",
			`{"state":"active","price":{"amount":-1,"currency":"EUR","period":"month"}}`,
			400,
		},
		{
			"price with a surplus",
			"PUT",
			"/v1/vps/web1/option",
			`{"state":"active","price":{"amount":1,"currency":"EUR","period":"month","tax":1}}`,
			400,
		},
		{
			"fraction",
			"PUT",
			"/v1/vps/web1/option",
			`{"state":"active","price":{"amount":1.5,"currency":"EUR","period":"month"}}`,
			400,
		},
		{"mail header", "PUT", "/v1/vps/web1/option", `{"state":"active","contact_email":"a@b.c\r\nBcc: d@e.f"}`, 400},
		{"locale", "PUT", "/v1/vps/web1/option", `{"state":"active","locale":"../../fr"}`, 400},
		{"date", "PUT", "/v1/vps/web1/option", `{"state":"active","ends_at":"tomorrow"}`, 400},
		{"impossible date", "PUT", "/v1/vps/web1/option", `{"state":"active","ends_at":"2026-02-31T25:00:00Z"}`, 400},
		{"long reference", "PUT", "/v1/vps/web1/option", `{"state":"active","order_ref":"` + long + `"}`, 400},
		{"limit", "GET", "/v1/operations?limit=0", "", 400},
		{"large limit", "GET", "/v1/operations?limit=100000", "", 400},
		{"limit in words", "GET", "/v1/messages?limit=ten", "", 400},
		{"unknown parameter", "DELETE", "/v1/vps/web1/option?nwo=true", "", 400},
		{"parameter twice", "DELETE", "/v1/vps/web1/option?now=false&now=true", "", 400},
		{"malformed query", "GET", "/v1/messages?kind=%zz", "", 400},
		{"a % in a name", "GET", "/v1/vps/a%25zz", "", 404},
		{"foreign cursor", "GET", "/v1/messages?cursor=op-1", "", 400},
		{"status", "GET", "/v1/operations?status=done", "", 400},
		{"wait", "GET", "/v1/operations/op-1?wait=-5s", "", 400},
		{"wait in words", "GET", "/v1/operations/op-1?wait=long", "", 400},
		{"unconfirmed", "POST", "/v1/vps/web3/snapshot/restore", "", 422},
		{"unknown path", "GET", "/v1/nothing", "", 404},
		{"unknown method", "DELETE", "/v1/vps", "", 405},
	}
	s := newSite(t)
	before := s.lastEvent()
	for _, c := range cases {
		got := s.call("admin", c.method, c.path, c.body)
		if got.StatusCode != c.want {
			t.Errorf("%s: %s, want %d: %s", c.name, got.Status, c.want, got.body)
			continue
		}
		p := got.problem(t)
		if p.Status != c.want || p.Detail == "" || p.Title == "" || p.Type != "urn:vpssnapd:problem:"+string(p.Code) {
			t.Errorf("%s: %+v", c.name, p)
		}
		if c.want == 400 && p.Code != api.CodeInvalid {
			t.Errorf("%s: code %q", c.name, p.Code)
		}
		if strings.Contains(got.body, "Schema") || strings.Contains(got.body, ".go") || len(got.body) > 1000 {
			t.Errorf("%s: says too much: %s", c.name, got.body)
		}
	}
	if after := s.lastEvent(); after != before {
		t.Errorf("%d things have happened", after-before)
	}
}

func TestContentType(t *testing.T) {
	s := newSite(t)
	for kind, want := range map[string]int{
		"": 415, "text/plain": 415, "application/x-www-form-urlencoded": 415, "application/json; charset=latin1": 415,
		"application/json": 400, "application/json; charset=UTF-8": 400,
	} {
		r := s.request("admin", http.MethodPost, "/v1/vps/web1/snapshot", `{"x":1}`)
		r.Header.Set("Content-Type", kind)
		got := s.do(r)
		if p := got.problem(t); got.StatusCode != want || p.Code != api.CodeInvalid {
			t.Errorf("%q: %s %q, want %d", kind, got.Status, p.Code, want)
		}
	}
}

// endless is a body of any size.
type endless struct{ left int64 }

func (e *endless) Read(p []byte) (int, error) {
	if e.left <= 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), e.left)
	for i := range p[:n] {
		p[i] = ' '
	}
	e.left -= n
	return int(n), nil
}

func TestLargeBody(t *testing.T) {
	s := newSite(t)
	for name, length := range map[string]int64{"declared": 1 << 30, "chunked": -1} {
		line := "Content-Length: 1073741824\r\n"
		if length < 0 {
			line = "Transfer-Encoding: chunked\r\n"
		}
		conn, err := net.Dial("tcp", s.tcp)
		check(t, err)
		check(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
		_, err = fmt.Fprintf(
			conn,
			"POST /v1/vps/web1/snapshot HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n%s\r\n",
			s.secret("admin"), line,
		)
		check(t, err)
		go send(conn, length < 0)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		check(t, err)
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: %s", name, resp.Status)
		}
		resp.Body.Close()
		conn.Close()
	}
	just := strings.Repeat(" ", 64<<10-2) + "{}"
	if got := s.call("admin", http.MethodPost, "/v1/vps/web1/snapshot", just); got.StatusCode != 202 {
		t.Errorf("64 KiB: %s", got.Status)
	}
}

// send writes until the server has enough.
func send(w io.Writer, chunked bool) {
	body := &endless{left: 1 << 30}
	buf := make([]byte, 32<<10)
	for {
		n, err := body.Read(buf)
		if err != nil {
			return
		}
		if chunked {
			_, err = fmt.Fprintf(w, "%x\r\n%s\r\n", n, buf[:n])
		} else {
			_, err = w.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

func TestSlowCallers(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	conns := map[string]net.Conn{}
	for name, start := range map[string]string{
		"headers": "GET /v1/vps HTTP/1.1\r\nHost: x\r\n",
		"body":    "POST /v1/vps/web1/snapshot HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + s.secret("admin") + "\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{",
		"refused": "POST /v1/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
	} {
		conn, err := net.Dial("tcp", s.tcp)
		check(t, err)
		defer conn.Close()
		check(t, conn.SetDeadline(time.Now().Add(13*time.Second)))
		_, err = io.WriteString(conn, start)
		check(t, err)
		conns[name] = conn
	}
	for name, conn := range conns {
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection is still open after 13 s", name)
		}
	}
}

// The limits that end slow callers must not end a waiting caller.
func TestWaitOutlastsTheLimits(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.host.Hold(daemontest.InTake)
	op := decode[api.Operation](t, s.call("admin", http.MethodPost, "/v1/vps/web1/snapshot", ""))
	got := s.call("read", http.MethodGet, "/v1/operations/"+op.ID+"?wait=11s", "")
	if got.StatusCode != 200 || decode[api.Operation](t, got).ID != op.ID {
		t.Errorf("%s %s", got.Status, got.body)
	}
}

// failing is a daemon with whom everything goes wrong; nil: nothing.
type failing struct {
	server.Overview
	err atomic.Pointer[error]
}

func (f *failing) fail(err error) { f.err.Store(&err) }

func (f *failing) failure() error {
	if err := f.err.Load(); err != nil {
		return *err
	}
	return nil
}

func (f *failing) ShowVPS(ctx context.Context, ref string) (vps.VPS, error) {
	if err := f.failure(); err != nil {
		return vps.VPS{}, err
	}
	return f.Overview.ShowVPS(ctx, ref)
}

func (f *failing) Ready(ctx context.Context) error {
	return cmp.Or(f.failure(), f.Overview.Ready(ctx))
}

func newFailingSite(t *testing.T) (*site, *failing) {
	t.Helper()
	f := &failing{}
	return newSiteAround(t, func(d *server.Services) { f.Overview, d.Overview = d.Overview, f }), f
}

func TestInsideErrorsStayInside(t *testing.T) {
	s, daemon := newFailingSite(t)
	secret := "/var/lib/vpssnapd/secret.db is locked"
	for name, err := range map[string]error{
		"plain":    errors.New(secret),
		"wrapped":  fmt.Errorf("cannot read: %w", errors.New(secret)),
		"internal": vps.Errorf(vps.CodeInternal, "%s", secret),
		"cause":    vps.Errorf(vps.CodeHypervisorUnavailable, "libvirt does not answer").Because(errors.New(secret)),
		"unknown":  vps.Errorf("brand_new", "%s", secret),
	} {
		daemon.fail(err)
		got := s.call("read", http.MethodGet, "/v1/vps/web1", "")
		p := got.problem(t)
		if strings.Contains(got.body, "secret") || got.StatusCode < 500 || p.RequestID == "" ||
			p.RequestID != got.Header.Get("X-Request-Id") {
			t.Errorf("%s: %s %s", name, got.Status, got.body)
		}
		if log := s.log.String(); !strings.Contains(log, "secret.db") || !strings.Contains(log, p.RequestID) {
			t.Errorf("%s: the log does not tell: %s", name, log)
		}
		if got := s.call("", http.MethodGet, "/readyz", ""); got.StatusCode != 503 || strings.Contains(got.body, "secret") {
			t.Errorf("%s: /readyz: %s %s", name, got.Status, got.body)
		}
	}
}

// panicking panics when it is asked for the host.
type panicking struct{ server.Overview }

func (panicking) Host(context.Context) (vps.Host, error) { panic("the test asked for it") }

func newPanickingSite(t *testing.T) *site {
	t.Helper()
	return newSiteAround(t, func(d *server.Services) { d.Overview = panicking{d.Overview} })
}

func TestPanic(t *testing.T) {
	s := newPanickingSite(t)
	got := s.call("admin", http.MethodGet, "/v1/host", "")
	if p := got.problem(t); got.StatusCode != 500 || p.Code != api.CodeInternal || strings.Contains(got.body, "test") {
		t.Errorf("%s %s", got.Status, got.body)
	}
	log := s.log.String()
	if !strings.Contains(log, "server_test.panicking.Host") || strings.Contains(log, "goroutine") ||
		strings.Contains(log, ".go:") {
		t.Errorf("the log: %s", log)
	}
	if got := s.call("admin", http.MethodGet, "/v1/vps", ""); got.StatusCode != 200 {
		t.Errorf("afterwards: %s", got.Status)
	}
}

func TestForeignOriginGetsNoLeave(t *testing.T) {
	s := newSite(t)
	for _, method := range []string{http.MethodGet, http.MethodOptions} {
		r := s.request("read", method, "/v1/vps", "")
		r.Header.Set("Origin", "https://evil.example")
		r.Header.Set("Access-Control-Request-Method", "DELETE")
		for name := range s.do(r).Header {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("%s: %s", method, name)
			}
		}
	}
}

// What an answer to odd input must say, beyond its status.
func TestOddInput(t *testing.T) {
	s := newSite(t)
	type check func(answer) bool
	detail := func(want string) check {
		return func(a answer) bool { return strings.Contains(a.problem(t).Detail, want) }
	}
	for name, c := range map[string]struct {
		method, path, body string
		headers            []string
		status             int
		ok                 check
	}{
		"a day that there is not": {"PUT", "/v1/vps/web1/option", `{"state":"active","ends_at":"2027-02-30T00:00:00Z"}`, nil, 400, detail("2027-02-30")},
		"one of a list":           {"GET", "/v1/events?type=x", "", nil, 400, detail("the parameter type is not accepted")},
		"twice":                   {"POST", "/v1/vps/web1/snapshot", `{"description":"a","description":"b"}`, nil, 400, detail(`"description" twice`)},
		"in each of two objects":  {"PUT", "/v1/vps/web1/option", `{"state":"active","price":{"amount":1,"currency":"EUR","period":"month"},"locale":"fr"}`, nil, 200, nil},
		"compressed":              {"POST", "/v1/vps/web1/snapshot", "\x1f\x8b", []string{"Content-Encoding", "gzip"}, 415, detail("compressed")},
		"not compressed":          {"PATCH", "/v1/vps/web3/snapshot", `{"description":"x"}`, []string{"Content-Encoding", "identity"}, 200, nil},
		"languages in two headers": {"GET", "/v1/vps/nobody", "", []string{"Accept-Language", "de", "Accept-Language", "fr;q=0.5"}, 404,
			func(a answer) bool { return a.Header.Get("Content-Language") == "en" }},
		"no language":                {"GET", "/v1/vps/web1", "", []string{"Accept-Language", ""}, 200, nil},
		"a method that there is not": {"HEAD", "/v1/vps", "", nil, 405, func(a answer) bool { return a.Header.Get("Allow") == "GET" }},
		"OPTIONS": {"OPTIONS", "/v1/vps/web1/snapshot", "", []string{"Origin", "http://evil.example"}, 405,
			func(a answer) bool {
				return !strings.Contains(a.Header.Get("Allow"), "OPTIONS") && a.Header.Get("Access-Control-Allow-Origin") == ""
			}},
	} {
		got := s.with("admin", c.method, c.path, c.body, c.headers...)
		if got.StatusCode != c.status || c.ok != nil && !c.ok(got) {
			t.Errorf("%s: %s %v %s", name, got.Status, got.Header, got.body)
		}
	}
	if got := s.with("read", "GET", "/v1/vps/nobody", "", "Accept-Language", "ja", "Accept-Language", "fr;q=0.5"); got.Header.Get(
		"Content-Language",
	) != "fr" {
		t.Errorf("the second of two languages: %v", got.Header)
	}
}
