package server_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

const keyHeader = "Idempotency-Key"

// same reports whether two answers are the same for a client.
func same(a, b answer) bool {
	return a.StatusCode == b.StatusCode && a.body == b.body && a.Header.Get("Location") == b.Header.Get("Location") &&
		a.Header.Get("ETag") == b.Header.Get("ETag") && a.Header.Get("Content-Type") == b.Header.Get("Content-Type")
}

// TestEveryChangingCallMayBeRepeated makes each changing call of openapi.yaml
// twice with one key: the second time nothing is done, and the answer is the same.
// With another body the key is refused.
func TestEveryChangingCallMayBeRepeated(t *testing.T) {
	w := newWholeSite(t)
	tried := map[string]bool{}
	twice := func(operation, method, path, body string, want int) answer {
		t.Helper()
		tried[operation] = true
		first := w.with(w.admin, method, path, body, keyHeader, operation)
		done := w.operations()
		again := w.with(w.admin, method, path, body, keyHeader, operation)
		if first.StatusCode != want || !same(first, again) && operation != "createToken" {
			t.Fatalf("%s: first %s %s\nagain %s %s", operation, first.Status, first.body, again.Status, again.body)
		}
		if n := w.operations(); n != done {
			t.Errorf("%s: %d operations, then %d", operation, done, n)
		}
		other := w.with(w.admin, method, path, body, keyHeader, operation, "If-Match", "*")
		if other.StatusCode != http.StatusUnprocessableEntity || other.problem(t).Code != api.CodeInvalid {
			t.Errorf("%s, another call with its key: %s %s", operation, other.Status, other.body)
		}
		return first
	}
	option, snapshot := "/v1/vps/"+w.web1+"/option", "/v1/vps/"+w.web1+"/snapshot"
	twice("putOption", "PUT", option, `{"state":"active","order_ref":"A-1"}`, 200)
	w.ended(twice("takeSnapshot", "POST", snapshot, `{"description":"a <b> & ü"}`, 202))
	made := decode[api.Download](t, twice("makeDownload", "POST", snapshot+"/download", `{"format":"raw"}`, 201))
	if got := w.call("", "GET", made.URL, ""); got.StatusCode != 200 || int64(len(got.body)) != made.SizeBytes {
		t.Errorf("the download: %s, %d bytes", got.Status, len(got.body))
	}
	twice("revokeDownload", "DELETE", snapshot+"/download/"+made.ID, "", 204)
	if got := w.call("", "GET", made.URL, ""); got.StatusCode != 404 {
		t.Errorf("the revoked download: %s", got.Status)
	}
	if got := w.with(w.admin, "POST", snapshot+"/download", `{"format":"raw"}`, keyHeader, "makeDownload"); got.StatusCode != 404 {
		t.Errorf("the call that had made it: %s %s", got.Status, got.body)
	}
	twice("describeSnapshot", "PATCH", snapshot, `{"description":"another"}`, 200)
	id := decode[api.Snapshot](t, w.call(w.admin, "GET", snapshot, "")).ID
	w.ended(twice("restoreSnapshot", "POST", snapshot+"/restore", `{"confirm":"`+id+`"}`, 202))
	w.ended(twice("undoRestore", "POST", snapshot+"/undo-restore", "", 202))
	twice("repairHost", "POST", "/v1/host/repair", "", 200)
	snap, err := w.daemon.Snapshots.Snapshot(t.Context(), w.web1)
	check(t, err)
	check(t, os.Chtimes(snap.Disks[0].Base, time.Time{}, time.Now().Add(time.Second)))
	twice("vouchForSnapshot", "POST", snapshot+"/vouch", `{"confirm":"`+id+`"}`, 200)

	w.host.SetHook(func(_ context.Context, at, _ string) error {
		if at == "PointDisks.before" {
			return fmt.Errorf("%w: read-only file system", hypervisor.ErrPersistence)
		}
		return nil
	})
	op := w.ended(twice("deleteSnapshot", "DELETE", snapshot, "", 202))
	if op.Status != "needs_attention" {
		t.Fatalf("the deletion is %s", op.Status)
	}
	w.host.SetHook(nil)
	w.ended(twice("resumeOperation", "POST", "/v1/operations/"+op.ID+"/resume", "", 202))

	release := make(chan struct{})
	w.host.SetHook(func(_ context.Context, at, _ string) error {
		if at == "CreateOverlay.before" {
			<-release
		}
		return nil
	})
	op = decode[api.Operation](t, w.call(w.admin, "POST", snapshot, ""))
	cancelled := twice("cancelOperation", "POST", "/v1/operations/"+op.ID+"/cancel", "", 202)
	close(release)
	if op := w.ended(cancelled); op.Status != "cancelled" {
		t.Errorf("the take is %s", op.Status)
	}
	if again := w.with(w.admin, "POST", "/v1/operations/"+op.ID+"/cancel", "", keyHeader, "cancelOperation"); !same(
		cancelled, again,
	) {
		t.Errorf("after its end: %s %s", again.Status, again.body)
	}
	w.host.SetHook(nil)
	twice("cancelOption", "DELETE", option+"?now=true", "", 200)

	token := decode[api.NewToken](t, twice("createToken", "POST", "/v1/tokens", `{"name":"jo","scopes":["read"]}`, 201))
	again := decode[api.NewToken](
		t, w.with(w.admin, "POST", "/v1/tokens", `{"name":"jo","scopes":["read"]}`, keyHeader, "createToken"),
	)
	if again.Token.ID != token.Token.ID || again.Secret == token.Secret {
		t.Errorf("made %+v, then %+v", token, again)
	}
	for secret, want := range map[string]int{token.Secret: 401, again.Secret: 200} {
		if got := w.call(secret, "GET", "/v1/vps", ""); got.StatusCode != want {
			t.Errorf("one of both secrets: %s, want %d", got.Status, want)
		}
	}
	twice("revokeToken", "DELETE", "/v1/tokens/"+token.Token.ID, "", 204)
	if got := w.with(w.admin, "POST", "/v1/tokens", `{"name":"jo","scopes":["read"]}`, keyHeader, "createToken"); got.StatusCode != 404 {
		t.Errorf("the revoked token came back: %s", got.Status)
	}

	hook := decode[api.NewWebhook](t, twice("createWebhook", "POST", "/v1/webhooks", `{"url":"https://127.0.0.1:1/"}`, 201))
	if all := decode[api.WebhookList](t, w.call(w.admin, "GET", "/v1/webhooks", "")).Webhooks; len(all) != 1 ||
		hook.Secret == "" {
		t.Errorf("one call twice made %+v", all)
	}
	twice("testWebhook", "POST", "/v1/webhooks/"+hook.Webhook.ID+"/test", "", 200)
	twice("deleteWebhook", "DELETE", "/v1/webhooks/"+hook.Webhook.ID, "", 204)
	if got := w.with(w.admin, "POST", "/v1/webhooks", `{"url":"https://127.0.0.1:1/"}`, keyHeader, "createWebhook"); got.StatusCode != 404 {
		t.Errorf("the deleted webhook came back: %s %s", got.Status, got.body)
	}

	spec, err := openapi3.NewLoader().LoadFromData(api.Spec)
	check(t, err)
	for path, item := range spec.Paths.Map() {
		for method, op := range item.Operations() {
			keyed := op.Parameters.GetByInAndName("header", keyHeader) != nil
			if keyed != (method != http.MethodGet && method != http.MethodHead) || keyed != tried[op.OperationID] {
				t.Errorf("%s %s: takes a key: %v, tried: %v", method, path, keyed, tried[op.OperationID])
			}
		}
	}
}

func TestOneKeyManyTimesIsOneOperation(t *testing.T) {
	w := newWholeSite(t)
	path := "/v1/vps/" + w.web1 + "/snapshot"
	answers := make([]answer, 100)
	var all sync.WaitGroup
	for i := range answers[:50] { // at once
		all.Go(func() { answers[i] = w.with(w.panel, "POST", path, `{"description":"x"}`, keyHeader, "k") })
	}
	all.Wait()
	for i := range answers[50:] { // and one after the other
		answers[50+i] = w.with(w.panel, "POST", path, `{"description":"x"}`, keyHeader, "k")
	}
	for _, a := range answers {
		if a.StatusCode != 202 || !same(a, answers[0]) {
			t.Fatalf("%s %s\nand %s %s", answers[0].Status, answers[0].body, a.Status, a.body)
		}
	}
	w.ended(answers[0])
	if n := w.operations(); n != 1 {
		t.Errorf("%d operations", n)
	}
	// The same key of another client is another call.
	if got := w.with(w.admin, "POST", path, `{"description":"x"}`, keyHeader, "k"); got.StatusCode != 409 {
		t.Errorf("another token with the key: %s", got.Status)
	}
	for name, body := range map[string]string{"another body": `{"description":"y"}`, "no body": ""} {
		if got := w.with(w.panel, "POST", path, body, keyHeader, "k"); got.StatusCode != 422 ||
			got.problem(t).Code != api.CodeInvalid {
			t.Errorf("%s: %s", name, got.Status)
		}
	}
	// The answer outlives the daemon, for a day.
	w.restart(t)
	if got := w.with(w.panel, "POST", path, `{"description":"x"}`, keyHeader, "k"); !same(got, answers[0]) {
		t.Errorf("after a restart: %s %s", got.Status, got.body)
	}
	w.pass(24*time.Hour + time.Minute)
	if got := w.with(w.panel, "POST", path, `{"description":"x"}`, keyHeader, "k"); got.StatusCode != 409 {
		t.Errorf("a day later: %s", got.Status)
	}
}

// A call that was refused has changed nothing, and is tried again.
func TestRefusedCallIsNotRemembered(t *testing.T) {
	w := newWholeSite(t)
	path := "/v1/vps/" + w.web1 + "/snapshot"
	if got := w.with(w.panel, "POST", path+"/restore", "", keyHeader, "k"); got.StatusCode != 404 {
		t.Fatalf("a restore without snapshot: %s", got.Status)
	}
	w.ended(w.with(w.panel, "POST", path, "", keyHeader, "k"))
}

func TestOddKeys(t *testing.T) {
	w := newWholeSite(t)
	path := "/v1/vps/" + w.web1 + "/snapshot"
	for name, keys := range map[string][]string{
		"256 characters": {strings.Repeat("k", 256)}, "empty": {""}, "two": {"a", "b"}, "a space": {"a b"}, "not ASCII": {"clé"},
	} {
		r := w.request(w.panel, "POST", path, "")
		r.Header[keyHeader] = keys
		if got := w.do(r); got.StatusCode != 400 || got.problem(t).Code != api.CodeInvalid {
			t.Errorf("%s: %s %s", name, got.Status, got.body)
		}
	}
	if n := w.operations(); n != 0 {
		t.Fatalf("%d operations", n)
	}
	w.ended(w.with(w.panel, "POST", path, "", keyHeader, strings.Repeat("k", 255)))
}

// What two clients have seen, one of them only may change.
func TestIfMatch(t *testing.T) {
	w := newWholeSite(t)
	option, snapshot := "/v1/vps/"+w.web1+"/option", "/v1/vps/"+w.web1+"/snapshot"
	w.ended(w.call(w.admin, "POST", snapshot, ""))
	cases := []struct{ name, path, method, body, other string }{
		{"option", option, "PUT", `{"state":"active","order_ref":"A"}`, `{"state":"active","order_ref":"B"}`},
		{"snapshot", snapshot, "PATCH", `{"description":"A"}`, `{"description":"B"}`},
	}
	for _, c := range cases {
		seen := w.call(w.read, "GET", c.path, "").Header.Get("ETag")
		if len(seen) < 10 || seen[0] != '"' {
			t.Fatalf("%s: ETag %s", c.name, seen)
		}
		if again := w.call(w.read, "GET", c.path, "").Header.Get("ETag"); again != seen {
			t.Errorf("%s: ETag %s, then %s, and nothing was changed", c.name, seen, again)
		}
		first := w.with(w.admin, c.method, c.path, c.body, "If-Match", `"other", `+seen)
		if now := w.call(w.read, "GET", c.path, "").Header.Get("ETag"); first.StatusCode != 200 ||
			first.Header.Get("ETag") != now ||
			now == seen {
			t.Errorf("%s: %s, ETag %s, then %s", c.name, first.Status, first.Header.Get("ETag"), now)
		}
		for _, match := range []string{seen, `W/` + first.Header.Get("ETag"), `"*"`, `""`} {
			got := w.with(w.admin, c.method, c.path, c.other, "If-Match", match)
			if got.StatusCode != 412 || got.problem(t).Code != api.CodePreconditionFailed {
				t.Errorf("%s, If-Match %s: %s", c.name, match, got.Status)
			}
		}
		if got := w.with(w.admin, c.method, c.path, c.other, "If-Match", "unquoted"); got.StatusCode != 400 {
			t.Errorf("%s, unquoted: %s", c.name, got.Status)
		}
		if got := w.with(w.admin, c.method, c.path, c.other, "If-Match", "*"); got.StatusCode != 200 {
			t.Errorf("%s, whatever there is: %s", c.name, got.Status)
		}
	}
	seen := w.call(w.read, "GET", option, "").Header.Get("ETag")
	if got := w.with(w.admin, "DELETE", option, "", "If-Match", `"other"`); got.StatusCode != 412 {
		t.Errorf("cancelling what was not seen: %s", got.Status)
	}
	if got := w.with(w.admin, "DELETE", option, "", "If-Match", seen); got.StatusCode != 200 {
		t.Errorf("cancelling what was seen: %s", got.Status)
	}
}

// The last second of the year 9999 in the west is one of the year 10000 in UTC,
// which JSON cannot say.
func TestEndAfterTheLastYear(t *testing.T) {
	w := newWholeSite(t)
	path := "/v1/vps/" + w.web1 + "/option"
	for end, want := range map[string]int{"9999-12-31T23:59:59Z": 200, "9999-12-31T23:59:59-01:00": 400} {
		if got := w.call(w.admin, "PUT", path, `{"state":"active","ends_at":"`+end+`"}`); got.StatusCode != want {
			t.Errorf("%s: %s %s", end, got.Status, got.body)
		}
	}
}

func TestIfMatchWhereThereIsNothing(t *testing.T) {
	w := newWholeSite(t)
	_, err := w.daemon.Options.CancelOption(t.Context(), w.web2, true, vps.Actor{})
	check(t, err)
	path := "/v1/vps/" + w.web2 + "/option"
	if got := w.with(w.admin, "PUT", path, `{"state":"active"}`, "If-Match", "*"); got.StatusCode != 412 {
		t.Errorf("an order on the condition that there is an option: %s", got.Status)
	}
	if got := w.call(w.admin, "PUT", path, `{"state":"active"}`); got.StatusCode != 200 {
		t.Errorf("without condition: %s", got.Status)
	}
}
