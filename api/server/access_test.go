package server_test

import (
	"net/http"
	"os/user"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"vpssnapd/api"
	"vpssnapd/api/server"
	"vpssnapd/daemon/daemontest"
	"vpssnapd/daemon/vps"
)

func TestOneToken(t *testing.T) {
	s := newSite(t)
	read := s.secret("read")
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
		{"two", "/v1/vps", []string{"Bearer " + read, "Bearer " + read}, 401},
		{"in the query", "/v1/vps?token=" + read, nil, 401},
		{"in the query as well", "/v1/vps?access_token=" + read, []string{"Bearer " + read}, 401},
		{"right", "/v1/vps", []string{"Bearer " + read}, 200},
		{"lower-case scheme", "/v1/vps", []string{"bearer " + read}, 200},
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
	s := newSiteWith(t, server.Config{OperatorGroup: outsiders(t), PerSecond: noLimit})
	if got := s.strangerAs("admin", http.MethodGet, "/v1/vps", ""); got.StatusCode != http.StatusForbidden {
		t.Errorf("a stranger with a token got %s", got.Status)
	}
}

func TestGuessing(t *testing.T) {
	s := newSite(t)
	s.stopClock()
	var limited answer
	tried := 0
	for ; tried < 200; tried++ {
		if limited = s.call("guess", http.MethodGet, "/v1/vps", ""); limited.StatusCode != 401 {
			break
		}
	}
	if tried != 20 || limited.StatusCode != http.StatusTooManyRequests || limited.Header.Get("Retry-After") == "" {
		t.Fatalf("after %d wrong tokens: %s, Retry-After %q", tried, limited.Status, limited.Header.Get("Retry-After"))
	}
	if p := limited.problem(t); p.Code != api.CodeRateLimited {
		t.Errorf("code %q", p.Code)
	}
	// A header cannot make it look like another address.
	r := s.request("guess", http.MethodGet, "/v1/vps", "")
	r.Header.Set("X-Forwarded-For", "192.0.2.7")
	r.Header.Set("X-Real-Ip", "192.0.2.7")
	if got := s.do(r); got.StatusCode != http.StatusTooManyRequests {
		t.Errorf("with X-Forwarded-For: %s", got.Status)
	}
	if got := s.operator(http.MethodGet, "/v1/vps", ""); got.StatusCode != 200 {
		t.Errorf("the operator is limited, too: %s", got.Status)
	}
}

// unnumbered takes from a 5xx what differs from one request to the next.
var unnumbered = regexp.MustCompile(`"request_id":"[A-Z2-7]+",`)

// What belongs to another customer looks as if it did not exist, to the byte: on
// every call, by name and by id, and also while libvirt is away.
func TestAnotherCustomersVPS(t *testing.T) {
	w := newWholeSite(t)
	bound := w.token(
		vps.TokenRequest{
			Name:   "bound",
			Scopes: []vps.Scope{vps.ScopeRead, vps.ScopeSnapshot, vps.ScopeOption},
			VPS:    []string{"web1"},
		},
	)
	theirs := w.ended(w.call(w.admin, "POST", "/v1/vps/web2/snapshot", ""))
	before := w.operations()
	spec, err := openapi3.NewLoader().LoadFromData(api.Spec)
	check(t, err)
	compare := func(when string) {
		tried := 0
		for path, item := range spec.Paths.Map() {
			for method, op := range item.Operations() {
				if op.Parameters.GetByInAndName("query", "vps") != nil ||
					item.Parameters.GetByInAndName("query", "vps") != nil {
					path += "?vps={vps}"
				}
				if need := op.Extensions["x-scope"]; !strings.Contains(path, "{vps}") &&
					!strings.Contains(path, "/operations/{id}") ||
					need == "admin" {
					continue
				}
				tried++
				body := bodies[op.OperationID]
				call := func(ref, id string) answer {
					return w.call(
						bound, method,
						strings.NewReplacer("{vps}", ref, "{id}", id, "{download}", "dl-0123456789ab").Replace(path),
						body,
					)
				}
				for own, unknown := range map[string]string{"web2": "web9", w.web2: "99999999-9999-4999-8999-999999999999"} {
					want, got := call(unknown, "op-99"), call(own, theirs.ID)
					if got.StatusCode != want.StatusCode ||
						unnumbered.ReplaceAllString(got.body, "") != unnumbered.ReplaceAllString(want.body, "") ||
						got.StatusCode < 400 ||
						when == "" && got.StatusCode != 404 {
						t.Errorf(
							"%s %s of %s%s: %s %s\nan unknown one: %s %s", method, path, own, when, got.Status,
							got.body, want.Status, want.body,
						)
					}
				}
			}
		}
		if tried < 14 {
			t.Errorf("%d calls only", tried)
		}
	}
	compare("")
	w.host.Disconnect()
	compare(", without libvirt")
	w.host.Connect()
	for until := time.Now().Add(10 * time.Second); w.call(bound, "GET", "/v1/vps", "").StatusCode != 200; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("libvirt is back, and not noticed")
		}
	}
	if after := w.operations(); after != before {
		t.Errorf("%d operations were begun", after-before)
	}
	for _, path := range []string{"/v1/vps", "/v1/operations", "/v1/messages"} {
		if got := w.call(bound, "GET", path, ""); got.StatusCode != 200 || strings.Contains(got.body, w.web2) ||
			strings.Contains(got.body, "web2") {
			t.Errorf("%s: %s %s", path, got.Status, got.body)
		}
	}
}

func TestBoundTokenSeesItsOwn(t *testing.T) {
	s := newSite(t)
	s.ended(s.call("admin", http.MethodDelete, "/v1/vps/web3/snapshot", ""))
	reached, _ := s.host.Hold(daemontest.InTake)
	mine := decode[api.Operation](t, s.call("bound", http.MethodPost, "/v1/vps/"+daemontest.Web1+"/snapshot", ""))
	<-reached
	for token, own := range map[string]string{"bound": daemontest.Web1, "bound-to-3": daemontest.Web3} {
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
	s.host.FillUp() // a message has the path of what there was no room for
	s.ended(s.call("panel", http.MethodPost, "/v1/vps/web1/snapshot", ""))
	for _, path := range []string{"/v1/vps", "/v1/vps/web3", "/v1/vps/web3/snapshot", "/v1/messages", "/v1/vps/web3/messages"} {
		if got := s.call("read", http.MethodGet, path, ""); strings.Contains(got.body, s.host.ImageDir()) ||
			got.StatusCode != 200 {
			t.Errorf("%s for a customer: %s %s", path, got.Status, got.body)
		}
	}
	for _, path := range []string{"/v1/vps/web3", "/v1/messages"} {
		if got := s.operator(http.MethodGet, path, ""); !strings.Contains(got.body, s.host.ImageDir()) {
			t.Errorf("%s for the operator: %s", path, got.body)
		}
	}
}

func TestAuthorIsTheCaller(t *testing.T) {
	s := newSite(t)
	s.call("bound", http.MethodPost, "/v1/vps/web1/snapshot", "")
	s.operator(http.MethodDelete, "/v1/vps/web3/snapshot", "")
	me, err := user.Current()
	check(t, err)
	ops := decode[api.OperationList](t, s.operator(http.MethodGet, "/v1/operations?limit=2", "")).Operations
	deleted, taken := ops[0], ops[1]
	if taken.Kind != "take" || taken.VPSName != "web1" || taken.Actor.Name != "bound" || taken.Actor.Way != "panel" ||
		deleted.Kind != "delete" || deleted.VPSName != "web3" || deleted.Actor.Name != me.Username || deleted.Actor.Way != "operator" {
		t.Errorf("the daemon was told: %+v", ops)
	}
}
