package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

// texts are what a string is made of. Those that fit a schema are its valid values;
// the others try it.
var texts = []string{
	"web1", "web2", "WEB1", "web9", "99999999-9999-4999-8999-999999999999", "", " ", ".", "..", "../../etc", "a/b", "%2f", "%", ";reboot", "$(id)",
	"\x00", "a\r\nb", "\u202e", "ü", "\xff\xfe", "' OR 1=1 --", "<script>", "]]>", strings.Repeat("x", 300), strings.Repeat("9", 30),
	"0", "1", "7", "42", "-1", "1e400", "1795344636295", "999999999999999999", "op-20261122T083000-7f3a", "op-1", "tok-000000000000", "*", `"0f1e"`, `W/"a"`, `"a", "b"`, `"`,
	"0s", "1ms", "20ms", "-5s", "999999m", "1h", "true", "false", "null", "en", "fr", "fr-CH;q=0.5", "de-DE-1996", "EUR", "euro", "XXX", "a@b.example", "a@b.c\r\nBcc: d@e.f",
	"2027-11-20T09:12:00Z", "2027-11-20T09:12:00+14:00", "9999-12-31T23:59:59-23:00", "0000-01-01T00:00:00Z", "2026-02-31T25:00:00Z", "tomorrow",
	"https://panel.example/hook", "http://127.0.0.1/", "before the upgrade", "8e03978e-40d5-43e8-bc93-6894a57f9324", "month", "panel", "active", "message", "operation.succeeded",
}

// caller makes the calls of one role, as openapi.yaml describes them and as it does not.
type caller struct {
	w     *wholeSite
	spec  *openapi3.T
	judge *judge
	// web calls from an address of its role: who shows wrong tokens must wait, and
	// nobody else.
	web map[string]*http.Client
	// tokens are secrets, by role; none of them is ever to be seen in an answer.
	tokens map[string]string
	random *rand.Rand
}

func newCaller(f *testing.F) *caller {
	f.Helper()
	spec, err := openapi3.NewLoader().LoadFromData(api.Spec)
	check(f, err)
	w := newWholeSite(f)
	web := map[string]*http.Client{}
	for i, role := range roles {
		from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i+1))}}
		transport := &http.Transport{DialContext: from.DialContext}
		f.Cleanup(transport.CloseIdleConnections)
		web[role] = &http.Client{Timeout: 30 * time.Second, Transport: transport}
	}
	return &caller{w: w, spec: spec, judge: newJudge(f), web: web, tokens: map[string]string{
		"none": "", "wrong": "vpssnap_000000000000_AAAAAAAAAAAAAAAAAAAAAAAAAA", "admin": w.admin, "read": w.read, "panel": w.panel,
		"shop": w.token(
			vps.TokenRequest{Name: "shop", Scopes: []vps.Scope{vps.ScopeRead, vps.ScopeOption}, Way: vps.WayOrder},
		),
		"bound": w.token(
			vps.TokenRequest{
				Name:   "bound",
				Scopes: []vps.Scope{vps.ScopeRead, vps.ScopeSnapshot, vps.ScopeOption},
				VPS:    []string{"web1"},
			},
		),
	}}
}

func (c *caller) pick(all []string) string { return all[c.random.IntN(len(all))] }

func (c *caller) often() bool { return c.random.IntN(10) > 0 }

// text is a string that fits the schema as a rule, and any other now and then.
func (c *caller) text(s *openapi3.Schema) string {
	if !c.often() {
		return c.pick(texts)
	}
	if len(s.Enum) > 0 {
		return fmt.Sprint(s.Enum[c.random.IntN(len(s.Enum))])
	}
	fit := slices.DeleteFunc(
		slices.Clone(texts), func(t string) bool { return s.VisitJSON(t, openapi3.EnableFormatValidation()) != nil },
	)
	if len(fit) == 0 {
		return c.pick(texts)
	}
	return c.pick(fit)
}

// value is JSON that fits the schema as a rule.
func (c *caller) value(s *openapi3.Schema, depth int) any {
	if !c.often() || depth > 6 {
		return []any{nil, true, -1, 1.5, 1e300, "x", "", []any{}, map[string]any{}, map[string]any{"a": []any{[]any{}}}, strings.Repeat("x", 600)}[c.random.IntN(11)]
	}
	switch {
	case s.Type.Is("object"):
		object := map[string]any{}
		for _, name := range sortedKeys(s.Properties) {
			if slices.Contains(s.Required, name) && c.often() || c.random.IntN(2) == 0 {
				object[name] = c.value(s.Properties[name].Value, depth+1)
			}
		}
		if !c.often() {
			object[c.pick(texts)] = "surplus"
		}
		return object
	case s.Type.Is("array"):
		list := []any{}
		for range c.random.IntN(3) {
			list = append(list, c.value(s.Items.Value, depth+1))
		}
		return list
	case s.Type.Is("boolean"):
		return c.random.IntN(2) == 0
	case s.Type.Is("integer"):
		return []int64{0, 1, 2, 50, 299, 900, 1 << 40, -1, 1<<63 - 1}[c.random.IntN(9)]
	}
	return c.text(s)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// request makes up a call: a path of the document with parameters, headers and a body.
func (c *caller) request(t *testing.T, method, path, role string) *http.Request {
	t.Helper()
	item := c.spec.Paths.Value(path)
	op := item.GetOperation(method)
	query, headers := url.Values{}, http.Header{}
	if op == nil { // a method that there is not
		op = &openapi3.Operation{}
	}
	for _, p := range slices.Concat(item.Parameters, op.Parameters) {
		given := p.Value.Required || c.random.IntN(4) == 0
		switch text := c.parameter(p.Value); {
		case p.Value.In == "path":
			path = strings.ReplaceAll(path, "{"+p.Value.Name+"}", strings.ReplaceAll(url.PathEscape(text), ".", "%2E"))
		case given && p.Value.In == "query":
			query.Add(p.Value.Name, text)
		case given && printable(text):
			headers.Add(p.Value.Name, text)
		}
	}
	if !c.often() {
		query.Add(c.pick([]string{"surplus", "limit", "vps", "now", "wait"}), c.pick(texts))
	}
	body, kind := c.body(t, op)
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+c.w.tcp+path, bytes.NewReader(body))
	check(t, err)
	r.URL.RawQuery = query.Encode()
	r.Header = headers
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	if secret := c.tokens[role]; secret != "" {
		r.Header.Set("Authorization", "Bearer "+secret)
	}
	return r
}

// parameter is its value in the form that it is sent in.
func (c *caller) parameter(p *openapi3.Parameter) string {
	s := p.Schema.Value
	switch {
	case p.Name == "vps" && c.often():
		return c.pick([]string{"web1", "web2", c.w.web1})
	case p.Name == "id" && p.In == "path" && c.often():
		page, err := c.w.daemon.Operations.Operations(context.Background(), vps.OperationQuery{Limit: 5})
		if err == nil && len(page.Operations) > 0 {
			return page.Operations[c.random.IntN(len(page.Operations))].ID
		}
	case p.Name == "If-Match" && c.often():
		if snap, err := c.w.daemon.Snapshots.Snapshot(context.Background(), c.w.web1); err == nil {
			return `"` + snap.Version() + `"`
		}
	case s.Type.Is("array"):
		return c.text(s.Items.Value) + "," + c.text(s.Items.Value)
	case !s.Type.Is("string") && c.often():
		return fmt.Sprint(c.value(s, 0))
	}
	return c.text(s)
}

// printable are the texts that net/http lets into a header.
func printable(s string) bool { return !strings.ContainsAny(s, "\x00\r\n") }

func (c *caller) body(t *testing.T, op *openapi3.Operation) (body []byte, kind string) {
	if op.RequestBody == nil {
		if c.often() {
			return nil, ""
		}
		return []byte(`{"surplus":1}`), "application/json"
	}
	if !op.RequestBody.Value.Required && c.random.IntN(3) == 0 {
		return nil, ""
	}
	value := c.value(op.RequestBody.Value.Content.Get("application/json").Schema.Value, 0)
	if object, ok := value.(map[string]any); ok && op.OperationID == "restoreSnapshot" && c.often() {
		if snap, err := c.w.daemon.Snapshots.Snapshot(context.Background(), c.w.web1); err == nil {
			object["confirm"] = snap.ID
		}
	}
	body, err := json.Marshal(value)
	check(t, err)
	switch c.random.IntN(30) {
	case 0:
		return body[:len(body)/2], "application/json"
	case 1:
		return bytes.Repeat(body, 70<<10/(len(body)+1)+1), "application/json"
	case 2:
		return body, c.pick(
			[]string{"text/plain", "application/json; charset=latin1", "application/xml", "multipart/form-data"},
		)
	case 3:
		return []byte("{\"description\":\"a\xff\"}"), "application/json"
	}
	return body, "application/json"
}

// answered sends a request and holds the answer against the contract.
func (c *caller) answered(t *testing.T, r *http.Request, role string) {
	t.Helper()
	resp, err := c.web[role].Do(r)
	check(t, err)
	defer resp.Body.Close()
	var body []byte
	if kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";"); kind != "text/event-stream" { // which has no end
		body, err = io.ReadAll(resp.Body)
		check(t, err)
	}
	what := fmt.Sprintf("%s %s as %s: %d", r.Method, r.URL.RequestURI(), role, resp.StatusCode)
	if resp.StatusCode >= http.StatusInternalServerError {
		t.Fatalf("%s: a request brought a healthy host to it: %s", what, body)
	}
	if resp.StatusCode == http.StatusTooManyRequests && role != "wrong" {
		t.Fatalf("%s: there is no limit here: %s", what, body)
	}
	for name, secret := range c.tokens {
		if secret != "" && bytes.Contains(body, []byte(secret)) {
			t.Errorf("%s: it shows the token %s", what, name)
		}
	}
	for _, inside := range []string{"goroutine ", ".go:", "runtime error", "sqlite", "panic", c.w.stateDir} {
		if bytes.Contains(body, []byte(inside)) && !strings.Contains(r.URL.Path, "/metrics") &&
			!strings.Contains(r.URL.Path, "/openapi.yaml") &&
			r.URL.Path != "/docs" {
			t.Errorf("%s: it shows %q: %s", what, inside, body)
		}
	}
	if role != "admin" && bytes.Contains(body, []byte(c.w.hostDir)) {
		t.Errorf("%s: it shows a path of the host: %s", what, body)
	}
	c.judge.judgeAnswer(t, r, resp.StatusCode, resp.Header, body)
}

var roles = []string{"none", "wrong", "read", "panel", "shop", "bound", "admin"}

// FuzzContract makes calls up from openapi.yaml, over a socket, to the real daemon
// on a fake host: every path and method in every role, with what is valid and what
// is not. Each answer is one that the document allows, and none is a 5xx.
func FuzzContract(f *testing.F) {
	c := newCaller(f)
	var calls [][2]string
	for _, path := range sortedKeys(c.spec.Paths.Map()) {
		for _, method := range []string{"GET", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE"} {
			calls = append(calls, [2]string{method, path})
		}
	}
	for call, one := range calls {
		for role := range roles {
			f.Add(uint16(call), uint8(role), uint64(1))
			if c.spec.Paths.Value(one[1]).GetOperation(one[0]) == nil {
				continue
			}
			for seed := range uint64(3 + role) { // the last ones may do most
				f.Add(uint16(call), uint8(role), seed+2)
			}
		}
	}
	f.Fuzz(func(t *testing.T, call uint16, role uint8, seed uint64) {
		one, as := calls[int(call)%len(calls)], roles[int(role)%len(roles)]
		c.random = rand.New(rand.NewPCG(seed, uint64(call)<<8|uint64(role)))
		if c.random.IntN(8) == 0 { // an earlier call may have cancelled it
			_, err := c.w.daemon.Options.PutOption(
				t.Context(), c.w.web1, vps.OptionOrder{State: vps.OptionActive}, vps.Actor{Way: vps.WayOrder},
			)
			check(t, err)
		}
		c.answered(t, c.request(t, one[0], one[1], as), as)
	})
}
