package site_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"vpssnapd/api"
	"vpssnapd/hypervisor/lab"
)

// TestWebhookAcrossAKill: the daemon's process is killed when a webhook has got a
// message and not answered yet; the next one sends it again, with the same id, and
// then the rest.
func TestWebhookAcrossAKill(t *testing.T) {
	t.Parallel()
	h := newHost(t, "[webhook]\nallow = [\"127.0.0.1/32\"]\nallow_http = true\n")
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", Format: "qcow2", SizeBytes: 16 << 20}}}, "running")
	type message struct {
		head http.Header
		body []byte
	}
	got, dead := make(chan message, 100), make(chan struct{})
	panel := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- message{r.Header, body}
		<-dead
	}))
	defer panel.Close()
	made, err := h.Client.CreateWebhook(t.Context(), api.WebhookRequest{URL: panel.URL,
		Types: []api.WebhookEventType{
			api.WebhookEventTypeOperationPending,
			api.WebhookEventTypeOperationSucceeded,
			api.WebhookEventTypeOperationFailed,
		}})
	h.must(err)
	library, err := standardwebhooks.NewWebhook(made.Secret)
	h.must(err)
	next := func() (id string, told api.WebhookMessage) {
		t.Helper()
		select {
		case m := <-got:
			h.must(library.Verify(m.body, m.head))
			h.must(json.Unmarshal(m.body, &told))
			return m.head.Get("webhook-id"), told
		case <-time.After(time.Minute):
			t.Fatal("no message within a minute")
		}
		return "", told
	}
	op, err := h.Client.Take(t.Context(), "web1", api.TakeRequest{})
	h.must(err)
	first, _ := next()
	h.must(h.KillDaemon())
	close(dead)
	h.must(h.StartDaemon(t.Context()))
	again, told := next()
	if again != first || told.Type != "operation.pending" || told.Data.VPSName != "web1" || told.Data.Operation.ID != op.ID {
		t.Errorf("first %s, then %s: %+v", first, again, told)
	}
	// Whether the take went on or was undone depends on how far it was.
	ended, err := h.Client.WaitOperation(t.Context(), op.ID, time.Minute)
	h.must(err)
	if _, told = next(); told.Type != "operation."+string(ended.Status) || told.Data.Operation.ID != op.ID {
		t.Errorf("then %+v, and it is %s", told, ended.Status)
	}
}
