package daemon_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/webhook"
	"vpssnapd/hypervisor"
)

// panels are receivers of webhooks on one HTTPS server: each has a path.
type panels struct {
	t     *testing.T
	serve *httptest.Server
	mu    sync.Mutex
	got   map[string][]posted // by path
	hooks map[string]vps.Webhook
	// answer says what to do about a message; nil: 204.
	answer func(path string, n int, w http.ResponseWriter, r *http.Request)
}

// posted is a message that was received; its signature was right.
type posted struct {
	id   string
	body string
	vps.Event
}

// newHooks makes a world with a server that its webhooks may lead to. What is sent
// is an event as JSON: how it looks on the wire is the API's business.
func newHooks(t *testing.T) (*world, *panels) {
	t.Helper()
	p := &panels{t: t, got: map[string][]posted{}, hooks: map[string]vps.Webhook{}}
	p.serve = httptest.NewUnstartedServer(p)
	p.serve.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.serve.StartTLS()
	t.Cleanup(p.serve.Close)
	roots := x509.NewCertPool()
	roots.AddCert(p.serve.Certificate())
	return newWorld(t, func(c *daemon.Config) {
		c.Webhook = webhook.Config{
			Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
			TLS:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		}
		c.WebhookBody = func(e vps.Event, _ string) ([]byte, error) { return json.Marshal(e) }
	}), p
}

func (p *panels) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	m := posted{id: r.Header.Get("webhook-id"), body: string(body)}
	p.mu.Lock()
	library, bad := standardwebhooks.NewWebhook(p.hooks[r.URL.Path].Secret)
	if err != nil || bad != nil || library.Verify(body, r.Header) != nil || json.Unmarshal(body, &m.Event) != nil {
		p.t.Errorf("%s got something that is not signed, or not what was told: %s", r.URL.Path, body)
	}
	p.got[r.URL.Path] = append(p.got[r.URL.Path], m)
	n, answer := len(p.got[r.URL.Path]), p.answer
	p.mu.Unlock()
	if answer != nil {
		answer(r.URL.Path, n, w, r)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (p *panels) answers(f func(path string, n int, w http.ResponseWriter, r *http.Request)) {
	p.mu.Lock()
	p.answer = f
	p.mu.Unlock()
}

// at lists what a path has received.
func (p *panels) at(path string) []posted {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got[path])
}

// hook makes a webhook that leads to a path.
func (w *world) hook(p *panels, path string, types ...vps.EventType) vps.Webhook {
	w.t.Helper()
	p.mu.Lock() // nothing of it arrives before its secret is known
	defer p.mu.Unlock()
	made, err := w.daemon.Webhooks.CreateWebhook(ctx, p.serve.URL+path, types, operator)
	w.must(err)
	p.hooks[path] = made
	return made
}

func (w *world) webhook(id string) vps.Webhook {
	w.t.Helper()
	now, err := w.daemon.Webhooks.Webhook(ctx, id)
	w.must(err)
	return now
}

func told(all []posted) string {
	var types []string
	for _, m := range all {
		types = append(types, string(m.Type))
	}
	slices.Sort(types)
	return strings.Join(types, " ")
}

func TestWebhooksOfALife(t *testing.T) {
	w, p := newHooks(t)
	start := w.lastEvent()
	all := w.hook(p, "/all")
	some := w.hook(p, "/some", vps.EventOperationSucceeded, vps.EventSpaceCritical)
	id := w.vps("web1", hypervisor.Running)
	op := w.take(id, vps.TakeRequest{})
	w.eventually("everything is delivered", func() bool { return w.waiting() == 0 })
	if got := told(p.at("/all")); got != "operation.pending operation.running operation.succeeded option.active snapshot.available snapshot.creating" {
		t.Errorf("told: %s", got)
	}
	events := w.heard(start)
	seen := map[string]bool{}
	for _, m := range p.at("/all") {
		if seen[m.id] || !strings.HasPrefix(m.id, "msg_") {
			t.Errorf("the id %q is not of its own", m.id)
		}
		seen[m.id] = true
		if e := events[m.ID-start-1]; e.Type != m.Type || !e.At.Equal(m.At) || m.VPS != id {
			t.Errorf("told %+v of the event %+v", m.Event, e)
		}
	}
	got := p.at("/some")
	if told(got) != "operation.succeeded" || got[0].Operation.ID != op.ID || got[0].Operation.Kind != vps.KindTake ||
		got[0].VPSName != "web1" {
		t.Errorf("who wants some is told %+v", got)
	}
	now := w.webhook(some.ID)
	if now.DeliveredAt == nil || now.FailedAt != nil || now.Waiting != 0 || now.LastError != "" {
		t.Errorf("it fares %+v", now)
	}
	w.must(w.daemon.Webhooks.DeleteWebhook(ctx, all.ID, operator))
	w.refuses(vps.CodeNotFound, w.daemon.Webhooks.DeleteWebhook(ctx, all.ID, operator))
	before := len(p.at("/all"))
	w.delete(id)
	w.eventually("the other is told on", func() bool { return len(p.at("/some")) == 2 && w.waiting() == 0 })
	if n := len(p.at("/all")); n != before {
		t.Error("a webhook that was deleted is told")
	}
}

// The alarms of space, too.
func TestWebhookOfSpace(t *testing.T) {
	w, p := newHooks(t)
	config := w.config
	w.close()
	w.config = func(c *daemon.Config) { config(c); c.Settings.Space.Headroom = 1 << 30 }
	w.open()
	w.hook(p, "/a", vps.EventSpaceCritical, vps.EventSpaceOK)
	w.vps("web1", hypervisor.Running)
	w.host.SetFree(1)
	w.daemon.LookAtSpace(ctx)
	w.eventually("the alarm arrives", func() bool { return told(p.at("/a")) == "space.critical" })
	if m := p.at("/a")[0]; m.VPS != "" || m.Space.FreeBytes != 1 {
		t.Errorf("told %+v", m.Event)
	}
}

// What its receiver does not take is sent again with the same id and body, by the
// next process, too, and only to it.
func TestWebhookIsTriedAgain(t *testing.T) {
	w, p := newHooks(t)
	w.setClock(time.Now().Add(time.Hour)) // behind what events are written with
	p.answers(func(path string, _ int, w http.ResponseWriter, _ *http.Request) {
		if path == "/ill" {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = w.Write([]byte("stack trace"))
		}
	})
	ill := w.hook(p, "/ill", vps.EventOptionActive)
	well := w.hook(p, "/well", vps.EventOptionActive)
	w.vps("web1", hypervisor.Running)
	w.eventually("one takes it, and that is recorded", func() bool { return w.webhook(well.ID).DeliveredAt != nil })
	w.eventually("the other's failure is seen", func() bool { return w.webhook(ill.ID).FailedAt != nil })
	if now := w.webhook(ill.ID); now.LastError != "the receiver answered 500" || now.Waiting != 1 || now.DeliveredAt != nil {
		t.Errorf("it fares %+v", now)
	}
	w.crash()
	p.answers(nil)
	w.open()
	w.eventually("it arrives", func() bool { w.later(5 * time.Second); return w.waiting() == 0 })
	got := p.at("/ill")
	if len(got) != 2 || got[0].id != got[1].id || got[0].body != got[1].body || len(p.at("/well")) != 1 {
		t.Errorf("the one got %d, the other %d", len(got), len(p.at("/well")))
	}
	if now := w.webhook(ill.ID); now.LastError != "" || now.Waiting != 0 || now.DeliveredAt == nil {
		t.Errorf("then it fares %+v", now)
	}
}

// A daemon that dies between the sending and its record sends again, with the same id.
func TestWebhookKilledBeforeItsRecord(t *testing.T) {
	w, p := newHooks(t)
	received, dead := make(chan struct{}), make(chan struct{})
	p.answers(func(string, int, http.ResponseWriter, *http.Request) {
		close(received)
		<-dead // the answer comes when nobody is there to note it
	})
	w.hook(p, "/a", vps.EventOptionActive)
	id := w.vps("web1", hypervisor.Running)
	<-received
	w.crash()
	close(dead)
	p.answers(nil)
	w.open()
	w.eventually("it is sent again", func() bool { return len(p.at("/a")) == 2 && w.waiting() == 0 })
	if got := p.at("/a"); got[0].id != got[1].id || got[0].body != got[1].body || got[1].VPS != id {
		t.Errorf("first %+v, then %+v", got[0], got[1])
	}
}

// A receiver that hangs delays no other, however many there are of them.
func TestWebhookHangs(t *testing.T) {
	w, p := newHooks(t)
	end := make(chan struct{})
	defer close(end)
	p.answers(func(path string, _ int, _ http.ResponseWriter, r *http.Request) {
		if path != "/well" {
			select {
			case <-end:
			case <-r.Context().Done():
			}
		}
	})
	for i := range 8 {
		w.hook(p, fmt.Sprintf("/hung%d", i))
	}
	w.hook(p, "/well", vps.EventOperationSucceeded)
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{})
	w.eventually("the other is told", func() bool { return len(p.at("/well")) == 1 })
	for i := range 8 {
		if n := len(p.at(fmt.Sprintf("/hung%d", i))); n > 1 {
			t.Errorf("%d messages are under way to one that hangs", n)
		}
	}
}

// 410 ends it: nothing more is sent until a test succeeds.
func TestWebhookGone(t *testing.T) {
	w, p := newHooks(t)
	p.answers(func(_ string, _ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) })
	hook := w.hook(p, "/a")
	id := w.vps("web1", hypervisor.Running)
	w.eventually("it is disabled", func() bool { return w.webhook(hook.ID).DisabledAt != nil })
	n := len(p.at("/a"))
	w.take(id, vps.TakeRequest{})
	if now := w.webhook(hook.ID); now.Waiting != 0 || now.LastError != "the receiver answered 410" || len(p.at("/a")) != n {
		t.Errorf("it is told on: %+v", now)
	}
	got, err := w.daemon.Webhooks.TestWebhook(ctx, hook.ID)
	w.must(err)
	if got.Delivered || got.Error != "the receiver answered 410" || w.webhook(hook.ID).DisabledAt == nil {
		t.Errorf("a test of it: %+v", got)
	}
	p.answers(nil)
	got, err = w.daemon.Webhooks.TestWebhook(ctx, hook.ID)
	w.must(err)
	if all := p.at("/a"); !got.Delivered || got.Error != "" || all[len(all)-1].Type != vps.EventWebhookTest {
		t.Errorf("a test of it when it is back: %+v, %+v", got, all)
	}
	w.delete(id)
	w.eventually("it is told again", func() bool { return strings.Contains(told(p.at("/a")), "snapshot.gone") })
}

// A dead receiver is given up after a day; what the journal says of that is told to
// nobody by webhook.
func TestWebhookGivenUp(t *testing.T) {
	w, p := newHooks(t)
	w.setClock(time.Now().Add(time.Hour)) // behind what events are written with
	p.answers(func(_ string, _ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	hook := w.hook(p, "/a", vps.EventOptionActive)
	w.vps("web1", hypervisor.Running)
	w.eventually("it was tried", func() bool { return w.webhook(hook.ID).FailedAt != nil })
	w.eventually("it is given up", func() bool { w.later(2 * time.Hour); return w.waiting() == 0 })
	page, err := w.daemon.Journal.Messages(ctx, vps.MessageQuery{Kind: vps.MessageWarning})
	w.must(err)
	if len(page.Messages) != 1 || page.Messages[0].Phrase != vps.PhraseWebhookGivenUp ||
		!strings.Contains(page.Messages[0].Detail, hook.ID) ||
		strings.Contains(page.Messages[0].Text, hook.ID) {
		t.Errorf("the journal says %+v", page.Messages)
	}
	for _, m := range p.at("/a") {
		if m.id != p.at("/a")[0].id {
			t.Errorf("told besides: %+v", m)
		}
	}
	if strings.Contains(w.log.String(), hook.Secret) {
		t.Error("the log has the secret")
	}
}

func TestWebhooksThatAreRefused(t *testing.T) {
	w, p := newHooks(t)
	for _, url := range []string{"http://127.0.0.1/", "https://127.0.0.2/", "https://jo:pw@panel.example.net/", "panel"} {
		_, err := w.daemon.Webhooks.CreateWebhook(ctx, url, nil, operator)
		w.refuses(vps.CodeInvalid, err)
	}
	for _, kind := range []vps.EventType{vps.EventMessage, vps.EventOperationStep, vps.EventMissed, vps.EventWebhookTest, "disk.full"} {
		_, err := w.daemon.Webhooks.CreateWebhook(ctx, p.serve.URL, []vps.EventType{kind}, operator)
		w.refuses(vps.CodeInvalid, err)
	}
	for i := range 32 {
		w.hook(p, fmt.Sprintf("/%d", i))
	}
	_, err := w.daemon.Webhooks.CreateWebhook(ctx, p.serve.URL, nil, operator)
	w.refuses(vps.CodeInvalid, err)
	_, err = w.daemon.Webhooks.TestWebhook(context.Background(), "wh-404")
	w.refuses(vps.CodeNotFound, err)
	_, err = w.daemon.Webhooks.Webhook(ctx, "wh-404")
	w.refuses(vps.CodeNotFound, err)
}
