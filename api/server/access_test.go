package server_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"vpssnapd/api"
	"vpssnapd/api/server/servertest"
)

// Every call of openapi.yaml is tried by every role.
func TestEveryRouteForEveryRole(t *testing.T) {
	spec, err := openapi3.NewLoader().LoadFromData(api.Spec)
	check(t, err)
	fill := strings.NewReplacer("{vps}", servertest.Web1, "{id}", "op-404")
	s, foreign := newSite(t), newSiteFor(t, outsiders(t))
	roles := []string{"", "read", "snapshot", "option", "admin", "unix operator", "unix stranger"}
	for path, item := range spec.Paths.Map() {
		for method, op := range item.Operations() {
			body := ""
			if op.OperationID == "putOption" {
				body = `{"state":"active"}`
			}
			if op.OperationID == "describeSnapshot" {
				body = `{"description":"x"}`
			}
			need := op.Extensions["x-scope"].(string)
			for _, role := range roles {
				want := 0
				switch {
				case need == "none" || role == "unix operator" || role == need || role == "admin":
				case role == "":
					want = http.StatusUnauthorized
				default:
					want = http.StatusForbidden
				}
				var got answer
				switch role {
				case "unix operator":
					got = s.operator(method, fill.Replace(path), body)
				case "unix stranger":
					got = foreign.stranger(method, fill.Replace(path), body)
				default:
					got = s.call(role, method, fill.Replace(path), body)
				}
				refused := slices.Contains([]int{http.StatusUnauthorized, http.StatusForbidden}, got.StatusCode)
				if want != 0 && got.StatusCode != want || want == 0 && (refused || got.StatusCode >= 500) {
					t.Errorf("%s %s as %q: %s, want %d\n%s", method, path, role, got.Status, want, got.body)
				}
				if calls := foreign.service.Calls(); len(calls) != 0 {
					t.Fatalf("%s %s: a stranger reached the daemon: %v", method, path, calls)
				}
			}
		}
	}
}

func TestOneToken(t *testing.T) {
	s := newSite(t)
	cases := []struct {
		name    string
		path    string
		headers []string
		want    int
	}{
		{"none", "/v1/vps", nil, 401},
		{"empty", "/v1/vps", []string{""}, 401},
		{"no secret", "/v1/vps", []string{"Bearer "}, 401},
		{"another scheme", "/v1/vps", []string{"Basic cmVhZA=="}, 401},
		{"wrong", "/v1/vps", []string{"Bearer wrong"}, 401},
		{"two", "/v1/vps", []string{"Bearer read", "Bearer read"}, 401},
		{"in the query", "/v1/vps?token=read", nil, 401},
		{"in the query as well", "/v1/vps?access_token=read", []string{"Bearer read"}, 401},
		{"right", "/v1/vps", []string{"Bearer read"}, 200},
		{"lower-case scheme", "/v1/vps", []string{"bearer read"}, 200},
	}
	for _, c := range cases {
		r := s.request("", http.MethodGet, c.path, "")
		r.Header["Authorization"] = c.headers
		got := s.do(r)
		if got.StatusCode != c.want {
			t.Errorf("%s: %s, want %d", c.name, got.Status, c.want)
		}
		if c.want == 401 {
			if p := got.problem(t); p.Code != api.CodeUnauthenticated || got.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s: code %q, WWW-Authenticate %q", c.name, p.Code, got.Header.Get("WWW-Authenticate"))
			}
		}
	}
	if strings.Contains(s.log.String(), "token=") {
		t.Error("the log shows the query")
	}
}

func TestTokenMeansNothingOnTheSocket(t *testing.T) {
	s := newSiteFor(t, outsiders(t))
	if got := s.strangerAs("admin", http.MethodGet, "/v1/vps", ""); got.StatusCode != http.StatusForbidden {
		t.Errorf("a stranger with a token got %s", got.Status)
	}
}

func TestGuessing(t *testing.T) {
	s := newSite(t)
	var limited answer
	for range 200 {
		if limited = s.call("guess", http.MethodGet, "/v1/vps", ""); limited.StatusCode != 401 {
			break
		}
	}
	if limited.StatusCode != http.StatusTooManyRequests || limited.Header.Get("Retry-After") == "" {
		t.Fatalf("200 wrong tokens: %s, Retry-After %q", limited.Status, limited.Header.Get("Retry-After"))
	}
	if p := limited.problem(t); p.Code != api.CodeRateLimited {
		t.Errorf("code %q", p.Code)
	}
	// A header cannot make it look like another address.
	r := s.request("guess", http.MethodGet, "/v1/vps", "")
	r.Header.Set("X-Forwarded-For", "192.0.2.7")
	r.Header.Set("X-Real-Ip", "192.0.2.7")
	for range 50 {
		s.do(s.request("guess", http.MethodGet, "/v1/vps", ""))
	}
	if got := s.do(r); got.StatusCode != http.StatusTooManyRequests {
		t.Errorf("with X-Forwarded-For: %s", got.Status)
	}
	if got := s.operator(http.MethodGet, "/v1/vps", ""); got.StatusCode != 200 {
		t.Errorf("the operator is limited, too: %s", got.Status)
	}
}

// What belongs to another customer looks as if it did not exist, to the byte.
func TestAnotherCustomersVPS(t *testing.T) {
	s := newSite(t)
	theirs := decode[api.Operation](t, s.call("admin", http.MethodDelete, "/v1/vps/web3/snapshot", ""))
	calls := []struct{ method, path, body string }{
		{"GET", "/v1/vps/VPS", ""},
		{"GET", "/v1/vps/VPS/option", ""},
		{"PUT", "/v1/vps/VPS/option", `{"state":"active"}`},
		{"DELETE", "/v1/vps/VPS/option", ""},
		{"GET", "/v1/vps/VPS/snapshot", ""},
		{"POST", "/v1/vps/VPS/snapshot", ""},
		{"PATCH", "/v1/vps/VPS/snapshot", `{"description":"x"}`},
		{"DELETE", "/v1/vps/VPS/snapshot", ""},
		{"POST", "/v1/vps/VPS/snapshot/restore", ""},
		{"POST", "/v1/vps/VPS/snapshot/undo-restore", ""},
		{"GET", "/v1/vps/VPS/messages", ""},
		{"GET", "/v1/operations?vps=VPS", ""},
		{"GET", "/v1/operations/" + theirs.ID, ""},
		{"POST", "/v1/operations/" + theirs.ID + "/cancel", ""},
	}
	before := len(s.service.Calls())
	for _, c := range calls {
		unknown := s.call("bound", c.method, strings.NewReplacer("VPS", "web9", theirs.ID, "op-99").Replace(c.path), c.body)
		for _, ref := range []string{"web3", servertest.Web3} {
			got := s.call("bound", c.method, strings.ReplaceAll(c.path, "VPS", ref), c.body)
			if got.StatusCode != 404 || got.body != unknown.body {
				t.Errorf("%s %s of %s: %s %s\nan unknown one: %s %s", c.method, c.path, ref, got.Status, got.body, unknown.Status, unknown.body)
			}
		}
	}
	if after := len(s.service.Calls()); after != before {
		t.Errorf("the daemon was told: %v", s.service.Calls()[before:])
	}
}

func TestBoundTokenSeesItsOwn(t *testing.T) {
	s := newSite(t)
	s.call("admin", http.MethodDelete, "/v1/vps/web3/snapshot", "")
	mine := decode[api.Operation](t, s.call("bound", http.MethodPost, "/v1/vps/"+servertest.Web1+"/snapshot", ""))
	for token, own := range map[string]string{"bound": servertest.Web1, "bound-to-3": servertest.Web3} {
		list := decode[api.VPSList](t, s.call(token, http.MethodGet, "/v1/vps", ""))
		if len(list.VPS) != 1 || list.VPS[0].ID != own {
			t.Errorf("%s lists %+v", token, list.VPS)
		}
		ops := decode[api.OperationList](t, s.call(token, http.MethodGet, "/v1/operations?limit=1", ""))
		if len(ops.Operations) != 1 || ops.Operations[0].VPS != own {
			t.Errorf("%s lists operations %+v", token, ops)
		}
		messages := decode[api.MessageList](t, s.call(token, http.MethodGet, "/v1/messages?limit=1", ""))
		if len(messages.Messages) != 1 || messages.Messages[0].VPS != own {
			t.Errorf("%s lists messages %+v", token, messages)
		}
	}
	if got := s.call("bound", http.MethodPost, "/v1/operations/"+mine.ID+"/cancel", ""); got.StatusCode != 202 {
		t.Errorf("cancelling one's own operation: %s", got.Status)
	}
	if got := s.call("bound", http.MethodGet, "/v1/host", ""); got.StatusCode != 403 {
		t.Errorf("a customer reads the host: %s", got.Status)
	}
}

func TestHostPathsAreForOperators(t *testing.T) {
	s := newSite(t)
	for _, path := range []string{"/v1/vps", "/v1/vps/web3", "/v1/vps/web3/snapshot", "/v1/messages", "/v1/vps/web3/messages"} {
		if got := s.call("read", http.MethodGet, path, ""); strings.Contains(got.body, "/srv/") || got.StatusCode != 200 {
			t.Errorf("%s for a customer: %s %s", path, got.Status, got.body)
		}
	}
	for _, path := range []string{"/v1/vps/web3", "/v1/messages"} {
		if got := s.operator(http.MethodGet, path, ""); !strings.Contains(got.body, "/srv/images") {
			t.Errorf("%s for the operator: %s", path, got.body)
		}
	}
}

func TestAuthorIsTheCaller(t *testing.T) {
	s := newSite(t)
	s.call("bound", http.MethodPost, "/v1/vps/web1/snapshot", "")
	s.operator(http.MethodDelete, "/v1/vps/web3/snapshot", "")
	calls := strings.Join(s.service.Calls(), "\n")
	if !strings.Contains(calls, "take web1 by bound (panel)") || !strings.Contains(calls, "delete web3 by") || !strings.Contains(calls, "(operator)") {
		t.Errorf("the daemon was told:\n%s", calls)
	}
}
