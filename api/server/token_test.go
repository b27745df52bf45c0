package server_test

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"vpssnapd/api"
	"vpssnapd/api/server"
	"vpssnapd/daemon/daemontest"
	"vpssnapd/daemon/vps"
)

func TestTokenFromItsMakingToItsEnd(t *testing.T) {
	w := newWholeSite(t)
	got := w.operator(
		"POST", "/v1/tokens",
		`{"name":"shop","scopes":["read","option"],"way":"order","vps":["web1"],"expires_in_seconds":7200}`,
	)
	made := decode[api.NewToken](t, got)
	if got.StatusCode != 201 || made.Token.Way != "order" || !slices.Equal(made.Token.VPS, []string{w.web1}) ||
		made.Token.ExpiresAt == nil || made.Token.LastUsedAt != nil {
		t.Fatalf("%s %s", got.Status, got.body)
	}
	if got := w.call(made.Secret, "GET", "/v1/vps", ""); got.StatusCode != 200 || !strings.Contains(got.body, w.web1) ||
		strings.Contains(got.body, w.web2) {
		t.Errorf("it sees %s %s", got.Status, got.body)
	}
	find := func() api.Token {
		for _, k := range decode[api.TokenList](t, w.call(w.admin, "GET", "/v1/tokens", "")).Tokens {
			if k.ID == made.Token.ID {
				return k
			}
		}
		return api.Token{}
	}
	deadline := time.Now().Add(10 * time.Second)
	for find().LastUsedAt == nil && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	used := find().LastUsedAt
	if used == nil {
		t.Fatal("its use is not noted")
	}
	if list := w.call(w.admin, "GET", "/v1/tokens", "").body; strings.Contains(list, made.Secret[len("vpssnap_")+12:]) {
		t.Error("the list tells the secret")
	}
	w.restart(t)
	w.pass(30 * time.Minute)
	if got := w.call(made.Secret, "GET", "/v1/offers", ""); got.StatusCode != 200 {
		t.Errorf("after a restart: %s", got.Status)
	}
	if again := find().LastUsedAt; again == nil || !again.Equal(*used) {
		t.Errorf("its use is noted anew within the hour: %v, then %v", used, again)
	}
	w.pass(2 * time.Hour)
	if got := w.call(made.Secret, "GET", "/v1/offers", ""); got.StatusCode != 401 {
		t.Errorf("expired: %s", got.Status)
	}
	if got := w.call(w.admin, "DELETE", "/v1/tokens/"+made.Token.ID, ""); got.StatusCode != 204 || got.body != "" {
		t.Errorf("revoking: %s %s", got.Status, got.body)
	}
	if got := w.call(w.admin, "DELETE", "/v1/tokens/"+made.Token.ID, ""); got.StatusCode != 404 {
		t.Errorf("revoking it twice: %s", got.Status)
	}
}

// onDisk says how often the daemon's files hold a text.
func (w *wholeSite) onDisk(text string) (n int) {
	w.t.Helper()
	check(w.t, filepath.WalkDir(w.stateDir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		n += strings.Count(string(content), text)
		return err
	}))
	return n
}

// What is on the disk opens nothing.
func TestSecretsAreNotKept(t *testing.T) {
	w := newWholeSite(t)
	made := decode[api.NewToken](t, w.with(w.admin, "POST", "/v1/tokens", `{"name":"jo","scopes":["read"]}`, keyHeader, "k"))
	secret := made.Secret[strings.LastIndex(made.Secret, "_")+1:]
	w.ended(w.call(w.admin, "POST", "/v1/vps/web1/snapshot", ""))
	link := decode[api.Download](t, w.with(w.admin, "POST", "/v1/vps/web1/snapshot/download", "", keyHeader, "l"))
	_, signature, _ := strings.Cut(link.URL, ".")
	hook := decode[api.NewWebhook](
		t, w.with(w.admin, "POST", "/v1/webhooks", `{"url":"https://panel.example.net/"}`, keyHeader, "m"),
	)
	// The daemon signs with a webhook's secret: that is in the webhook's own record.
	for text, want := range map[string]int{secret: 0, signature: 0, hook.Secret: 1, link.ID: -1} {
		if n := w.onDisk(text); want >= 0 && n > want || want < 0 && n == 0 {
			t.Errorf("%s is on the disk %d times", text, n)
		}
		if want >= 0 && strings.Contains(w.log.String(), text) {
			t.Errorf("%s is in the log", text)
		}
	}
	// Nor does any other part of a token.
	for _, wrong := range []string{
		made.Token.ID, "vpssnap_" + strings.TrimPrefix(made.Token.ID, "tok-"), secret, made.Secret + "A", made.Secret[:len(made.Secret)-1],
		strings.ToUpper(made.Secret), "vpssnap_" + strings.TrimPrefix(made.Token.ID, "tok-") + "_" + strings.Repeat("A", 26), "vpssnap_000000000000_" + secret,
	} {
		if got := w.call(wrong, "GET", "/v1/vps", ""); got.StatusCode != 401 {
			t.Errorf("%q: %s", wrong, got.Status)
		}
	}
}

func TestTokensThatAreRefused(t *testing.T) {
	w := newWholeSite(t)
	for name, c := range map[string]struct {
		body string
		want int
	}{
		"no scopes":       {`{"name":"a","scopes":[]}`, 400},
		"unknown scope":   {`{"name":"a","scopes":["root"]}`, 400},
		"scope none":      {`{"name":"a","scopes":["none"]}`, 400},
		"no name":         {`{"name":"","scopes":["read"]}`, 400},
		"a made name":     {`{"name":"panel/jo","scopes":["read"]}`, 400},
		"a taken name":    {`{"name":"panel","scopes":["read"]}`, 400},
		"operator's way":  {`{"name":"a","scopes":["read"],"way":"operator"}`, 400},
		"no VPS at all":   {`{"name":"a","scopes":["read"],"vps":[]}`, 400},
		"unknown VPS":     {`{"name":"a","scopes":["read"],"vps":["web9"]}`, 404},
		"bound admin":     {`{"name":"a","scopes":["admin"],"vps":["web1"]}`, 400},
		"expired at once": {`{"name":"a","scopes":["read"],"expires_in_seconds":0}`, 400},
		"expired before":  {`{"name":"a","scopes":["read"],"expires_in_seconds":-1}`, 400},
		"unknown field":   {`{"name":"a","scopes":["read"],"secret":"x"}`, 400},
	} {
		if got := w.call(w.admin, "POST", "/v1/tokens", c.body); got.StatusCode != c.want {
			t.Errorf("%s: %s %s", name, got.Status, got.body)
		}
	}
}

// A panel's token makes tokens for browsers, and none that is more than itself.
func TestTokenForABrowser(t *testing.T) {
	w := newWholeSite(t)
	bound := w.token(
		vps.TokenRequest{
			Name:   "bound",
			Scopes: []vps.Scope{vps.ScopeRead, vps.ScopeSnapshot},
			VPS:    []string{"web1"},
			Expire: 30 * time.Minute,
		},
	)
	got := w.call(
		w.panel, "POST", "/v1/tokens",
		`{"name":"jo","scopes":["read","snapshot"],"vps":["web1"],"expires_in_seconds":900}`,
	)
	jo := decode[api.NewToken](t, got)
	if got.StatusCode != 201 || jo.Token.Name != "panel/jo" || jo.Token.Parent == "" ||
		jo.Token.ExpiresAt.Sub(jo.Token.CreatedAt) != 15*time.Minute {
		t.Fatalf("%s %s", got.Status, got.body)
	}
	op := w.ended(w.call(jo.Secret, "POST", "/v1/vps/web1/snapshot", ""))
	if done, err := w.daemon.Operations.Operation(t.Context(), op.ID); err != nil ||
		done.Actor != (vps.Actor{Name: "panel/jo", Way: vps.WayPanel}) {
		t.Errorf("the take is by %+v (%v)", done.Actor, err)
	}
	unknown := w.call(bound, "POST", "/v1/tokens", `{"name":"a","scopes":["read"],"vps":["web9"]}`)
	for name, c := range map[string]struct {
		by, body string
		want     int
	}{
		"a scope that it has not": {w.panel, `{"name":"a","scopes":["read","option"],"vps":["web1"]}`, 403},
		"admin":                   {w.panel, `{"name":"a","scopes":["admin"],"vps":["web1"]}`, 403},
		"for all VPS":             {w.panel, `{"name":"a","scopes":["read"]}`, 403},
		"for over an hour":        {w.panel, `{"name":"a","scopes":["read"],"vps":["web1"],"expires_in_seconds":3601}`, 403},
		"another way":             {w.panel, `{"name":"a","scopes":["read"],"vps":["web1"],"way":"order"}`, 403},
		"by one that was made":    {jo.Secret, `{"name":"a","scopes":["read"],"vps":["web1"]}`, 403},
		"another's VPS":           {bound, `{"name":"a","scopes":["read"],"vps":["web2"]}`, 404},
		"another's VPS by id":     {bound, `{"name":"a","scopes":["read"],"vps":["web1","` + w.web2 + `"]}`, 404},
	} {
		got := w.call(c.by, "POST", "/v1/tokens", c.body)
		if got.StatusCode != c.want || c.want == 404 && got.body != unknown.body {
			t.Errorf("%s: %s %s", name, got.Status, got.body)
		}
	}
	short := decode[api.NewToken](t, w.call(bound, "POST", "/v1/tokens", `{"name":"a","scopes":["read"],"vps":["web1"]}`))
	if left := short.Token.ExpiresAt.Sub(short.Token.CreatedAt); left > 30*time.Minute {
		t.Errorf("it outlives the one that made it: %s", left)
	}
	for _, k := range decode[api.TokenList](t, w.operator("GET", "/v1/tokens", "")).Tokens {
		if k.Name == "panel" {
			w.operator("DELETE", "/v1/tokens/"+k.ID, "")
		}
	}
	for name, secret := range map[string]string{"the panel": w.panel, "the browser": jo.Secret} {
		if got := w.call(secret, "GET", "/v1/vps", ""); got.StatusCode != 401 {
			t.Errorf("after the panel's token was revoked %s gets %s", name, got.Status)
		}
	}
}

// Every call of openapi.yaml is made by everybody: who may is let through, who may
// not is refused, and to whom the VPS does not exist it looks unknown.
func TestEveryCallByEveryRole(t *testing.T) {
	spec, err := openapi3.NewLoader().LoadFromData(api.Spec)
	check(t, err)
	w := newWholeSite(t)
	foreign := serveSite(
		t, server.Config{Services: daemontest.Services(w.daemon), OperatorGroup: outsiders(t), PerSecond: noLimit},
	)
	roles := map[string]string{
		"no token":    "",
		"wrong token": "vpssnap_000000000000_AAAAAAAAAAAAAAAAAAAAAAAAAA",
		"admin":       w.admin,
	}
	for _, s := range []vps.Scope{vps.ScopeRead, vps.ScopeSnapshot, vps.ScopeOption} {
		roles[string(s)] = w.token(vps.TokenRequest{Name: "all-" + string(s), Scopes: []vps.Scope{s}})
		roles[string(s)+" bound to it"] = w.token(
			vps.TokenRequest{Name: "web1-" + string(s), Scopes: []vps.Scope{s}, VPS: []string{w.web1}},
		)
		roles[string(s)+" bound to another"] = w.token(
			vps.TokenRequest{Name: "web2-" + string(s), Scopes: []vps.Scope{s}, VPS: []string{w.web2}},
		)
	}
	fill := strings.NewReplacer(
		"{vps}", w.web1, "{token}", "tok-000000000000", "{download}", "dl-000000000000", "{webhook}", "wh-000000000000",
	)
	n := 0
	for path, item := range spec.Paths.Map() {
		for method, op := range item.Operations() {
			need := op.Extensions["x-scope"].(string)
			for role, secret := range roles {
				n++
				at := fill.Replace(path)
				if strings.Contains(path, "{id}") {
					at = strings.ReplaceAll(at, "{id}", w.ended(w.takeAnew()).ID)
				}
				// Each from an address of its own, so that the wrong tokens are not too many for one.
				got := w.with(secret, method, at, bodies[op.OperationID], "X-Forwarded-For", fmt.Sprintf("192.0.2.%d", n%250))
				w.judgeRole(
					fmt.Sprintf("%s %s by %s", method, path, role), got, need, role,
					strings.Contains(path, "{vps}") || strings.Contains(path, "/operations/{id}"),
				)
			}
			at := strings.ReplaceAll(fill.Replace(path), "{id}", "op-404")
			if got := w.operator(method, at, bodies[op.OperationID]); got.StatusCode == 401 || got.StatusCode == 403 ||
				got.StatusCode >= 500 {
				t.Errorf("%s %s by an operator on the socket: %s", method, path, got.Status)
			}
			if got := foreign.stranger(method, at, bodies[op.OperationID]); (got.StatusCode == 403 || path == "/metrics" && got.StatusCode == 404) != (need != "none") {
				t.Errorf("%s %s by a stranger on the socket: %s", method, path, got.Status)
			}
		}
	}
	if n < 300 {
		t.Errorf("%d cases only", n)
	}
}

// bodies are what calls that need a body get.
var bodies = map[string]string{
	"putOption": `{"state":"active"}`, "describeSnapshot": `{"description":"x"}`, "restoreSnapshot": `{"confirm":"0"}`,
	"createToken": `{"name":"x","scopes":["read"],"vps":["web1"]}`, "createWebhook": `{"url":"https://panel.example.net/"}`,
}

// takeAnew begins an operation of web1, whatever state it is in.
func (w *wholeSite) takeAnew() answer {
	w.t.Helper()
	w.operator("PUT", "/v1/vps/"+w.web1+"/option", `{"state":"active"}`)
	for _, op := range decode[api.OperationList](w.t, w.operator("GET", "/v1/operations?vps="+w.web1+"&limit=1", "")).Operations {
		_, err := w.daemon.Operations.WaitOperation(w.t.Context(), op.ID, 30*time.Second)
		check(w.t, err)
	}
	if got := w.operator("DELETE", "/v1/vps/"+w.web1+"/snapshot", ""); got.StatusCode == 202 {
		return got
	}
	return w.operator("POST", "/v1/vps/"+w.web1+"/snapshot", "")
}

// judgeRole compares an answer with what the route table promises to a role.
func (w *wholeSite) judgeRole(what string, got answer, need, role string, ofVPS bool) {
	w.t.Helper()
	scope, bound, _ := strings.Cut(role, " bound to ")
	refused := got.StatusCode == http.StatusUnauthorized || got.StatusCode == http.StatusForbidden
	switch {
	case got.StatusCode >= 500:
		w.t.Errorf("%s: %s %s", what, got.Status, got.body)
	case need == "none":
		if refused {
			w.t.Errorf("%s: %s", what, got.Status)
		}
	case strings.HasSuffix(role, "token"):
		if got.StatusCode != http.StatusUnauthorized || got.Header.Get("WWW-Authenticate") == "" {
			w.t.Errorf("%s: %s", what, got.Status)
		}
	case scope != need && scope != "admin":
		want := http.StatusForbidden
		if strings.HasPrefix(what, "GET /metrics ") {
			want = http.StatusNotFound // it is not there for who may not see it
		}
		if got.StatusCode != want {
			w.t.Errorf("%s: %s", what, got.Status)
		}
	case ofVPS && bound == "another":
		if got.StatusCode != http.StatusNotFound || !strings.Contains(got.body, `"no such `) {
			w.t.Errorf("%s: %s %s", what, got.Status, got.body)
		}
	case bound == "another" && strings.Contains(got.body, w.web1):
		w.t.Errorf("%s tells of web1: %s", what, got.body)
	case refused && bound != "another":
		w.t.Errorf("%s: %s %s", what, got.Status, got.body)
	}
}
