package server_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"vpssnapd/api"
	"vpssnapd/api/server"
	"vpssnapd/daemon/vps"
)

// What is sent to webhooks is as openapi.yaml says, and tells no path of the host.
func TestWebhookMessages(t *testing.T) {
	spec, err := openapi3.NewLoader().LoadFromData(api.Spec)
	check(t, err)
	until := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	data := map[string]vps.EventData{
		"operation": {
			Operation: &vps.OperationEvent{
				ID:        "op-1",
				Kind:      vps.KindTake,
				Status:    vps.StatusFailed,
				Step:      "switch",
				ActorName: "jo",
				ActorWay:  vps.WayPanel,
				Code:      vps.CodeInternal,
				Detail:    "no",
				Remedy:    "wait",
			},
		},
		"option": {
			Option: &vps.OptionEvent{
				ID:         "opt-1",
				State:      vps.OptionGrace,
				GraceUntil: &until,
				ActorName:  "jo",
				ActorWay:   vps.WayOrder,
			},
		},
		"snapshot": {Snapshot: &vps.SnapshotEvent{ID: "abc", State: vps.SnapshotAvailable, UndoUntil: &until}},
		"space":    {Space: &vps.SpaceEvent{Level: vps.SpaceCritical, Path: "/srv/images", TotalBytes: 2, FreeBytes: 1}},
		"webhook":  {},
	}
	types := spec.Components.Schemas["WebhookEventType"].Value.Enum
	for _, kind := range append(slices.Clone(types), any(string(vps.EventWebhookTest))) {
		e := vps.Event{ID: 7, At: until, Type: vps.EventType(kind.(string)), VPS: "id-1", VPSName: "web1"}
		family, _, _ := strings.Cut(kind.(string), ".")
		e.EventData = data[family]
		body, err := server.WebhookBody(e, "kvm7")
		check(t, err)
		var read any
		check(t, json.Unmarshal(body, &read))
		if err := spec.Components.Schemas["WebhookMessage"].Value.VisitJSON(read); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		whole := strings.Contains(string(body), `"type":"`+string(e.Type)+`"`) &&
			(family == "webhook" || strings.Contains(string(body), `"`+family+`":{`))
		if !whole || strings.Contains(string(body), "/srv") {
			t.Errorf("%s: %s", kind, body)
		}
		if e.Type != vps.EventWebhookTest && !e.Type.ForWebhooks() {
			t.Errorf("webhooks are not told of %s", kind)
		}
	}
	for _, kind := range spec.Components.Schemas["EventType"].Value.Enum {
		if told := vps.EventType(kind.(string)).ForWebhooks(); told != slices.Contains(types, kind) {
			t.Errorf("%s is told to webhooks: %v", kind, told)
		}
	}
}

// An operator makes a webhook over REST, and a take arrives there.
func TestWebhookOverREST(t *testing.T) {
	w := newWholeSite(t)
	type message struct {
		head http.Header
		body []byte
	}
	got := make(chan message, 100)
	panel := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- message{r.Header, body}
	}))
	defer panel.Close()
	made := decode[api.NewWebhook](
		t,
		w.call(w.admin, "POST", "/v1/webhooks", `{"url":"`+panel.URL+`/?key=hunter2","types":["operation.succeeded"]}`),
	)
	library, err := standardwebhooks.NewWebhook(made.Secret)
	check(t, err)
	tested := w.call(w.admin, "POST", "/v1/webhooks/"+made.Webhook.ID+"/test", "")
	if tested.StatusCode != 200 || !strings.Contains(tested.body, `"delivered":true`) {
		t.Errorf("a test: %s %s", tested.Status, tested.body)
	}
	op := w.ended(w.takeAnew())
	for _, want := range []string{"webhook.test", "operation.succeeded"} {
		m := <-got
		check(t, library.Verify(m.body, m.head))
		var told api.WebhookMessage
		check(t, json.Unmarshal(m.body, &told))
		if told.Type != want || told.Data.Host == "" || told.Data.Operation != nil && told.Data.Operation.ID != op.ID {
			t.Errorf("told %s, want %s", m.body, want)
		}
	}
	for _, path := range []string{"/v1/webhooks", "/v1/webhooks/" + made.Webhook.ID} {
		if shown := w.call(w.admin, "GET", path, ""); shown.StatusCode != 200 || strings.Contains(shown.body, made.Secret) {
			t.Errorf("%s: %s %s", path, shown.Status, shown.body)
		}
	}
	for _, body := range []string{`{}`, `{"url":""}`, `{"url":"ftp://127.0.0.1/"}`, `{"url":"https://10.0.0.1/"}`, `{"url":"https://a.example/","types":[]}`,
		`{"url":"https://a.example/","types":["message"]}`, `{"url":"https://a.example/","secret":"x"}`, `{"url":["https://a.example/"]}`} {
		if refused := w.call(w.admin, "POST", "/v1/webhooks", body); refused.StatusCode != 400 ||
			refused.problem(t).Code != api.CodeInvalid {
			t.Errorf("%s: %s %s", body, refused.Status, refused.body)
		}
	}
	if gone := w.call(w.admin, "DELETE", "/v1/webhooks/"+made.Webhook.ID, ""); gone.StatusCode != 204 {
		t.Errorf("deleted: %s", gone.Status)
	}
}
