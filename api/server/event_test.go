package server_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/server"
	"vpssnapd/daemon/daemontest"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor/fake"
)

// listener reads one stream of events.
type listener struct {
	t     testing.TB
	lines *bufio.Scanner
	resp  *http.Response
	last  string
}

func (s *site) listen(role, query string, headers ...string) *listener {
	s.t.Helper()
	r := s.request(role, http.MethodGet, "/v1/events"+query, "")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	transport := &http.Transport{ResponseHeaderTimeout: 10 * time.Second}
	resp, err := transport.RoundTrip(r)
	check(s.t, err)
	s.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		s.t.Fatalf("the stream is %s, %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	return &listener{t: s.t, lines: bufio.NewScanner(resp.Body), resp: resp}
}

// frame reads up to the next empty line; false at the end of the stream.
func (l *listener) frame() (id, kind, data string, ok bool) {
	for l.lines.Scan() {
		field, text, _ := strings.Cut(l.lines.Text(), ":")
		text = strings.TrimPrefix(text, " ")
		switch {
		case l.lines.Text() == "":
			if id != "" {
				l.last = id
			}
			return id, kind, data, true
		case field == "id":
			id = text
		case field == "event":
			kind = text
		case field == "data":
			data = text
		}
	}
	return "", "", "", false
}

// next returns the next event, and passes over signs of life.
func (l *listener) next() api.Event {
	l.t.Helper()
	for {
		id, kind, data, ok := l.frame()
		if !ok {
			l.t.Fatalf("the stream has ended: %v", l.lines.Err())
		}
		if data == "" {
			continue
		}
		var e api.Event
		check(l.t, json.Unmarshal([]byte(data), &e))
		if e.ID != id || string(e.Type) != kind {
			l.t.Fatalf("the event %s says of itself: %s %s", data, id, kind)
		}
		return e
	}
}

// order makes an event of an option and then one of a message.
func (s *site) order(ref, orderRef string) {
	s.t.Helper()
	check(s.t, s.host.Order(ref, orderRef))
}

func TestListenersSeeWhatTheyMay(t *testing.T) {
	host := daemontest.New(t)
	before, err := host.LastEvent()
	check(t, err)
	check(t, host.Order("web2", "two"))
	check(t, host.Restart(func(h *fake.Host) { h.SetFree(15 << 30) })) // space.warning, and its message
	check(
		t,
		daemontest.Eventually(
			"the space is told of", func() bool { return strings.Contains(host.Log(), "event=space.warning") },
		),
	)
	s := serveHost(
		t, host,
		server.Config{Services: daemontest.Services(host.Daemon), OperatorGroup: ownGroup(t), PerSecond: noLimit},
	)
	after := fmt.Sprintf("?after=%d", before)
	bound, byID, reader, admin := s.listen(
		"bound", after,
	), s.listen(
		"bound-to-3",
		after,
	), s.listen(
		"read", after,
	), s.listen(
		"admin",
		after,
	)
	typed, single := s.listen("read", after+"&type=space.warning,space.ok"), s.listen("read", after+"&vps=web3")
	for _, l := range []*listener{bound, byID, reader, admin, typed, single} {
		l.frame() // it listens now
	}
	s.order("web1", "one")
	s.order("web3", "three")
	if e := bound.next(); e.Option == nil || e.Option.OrderRef != "one" || e.ID != strconv.FormatInt(s.lastEvent()-3, 10) {
		t.Errorf("the token bound to web1 got %+v first", e)
	}
	if e := byID.next(); e.Option == nil || e.Option.OrderRef != "three" {
		t.Errorf("the token bound to web3 got %+v first", e)
	}
	if e := single.next(); e.Option == nil || e.Option.OrderRef != "three" {
		t.Errorf("who listens to web3 got %+v first", e)
	}
	for _, l := range []*listener{reader, admin} {
		if o, m := l.next(), l.next(); o.VPSName != "web2" || o.Option == nil || m.VPSName != "web2" || m.Message == nil {
			t.Errorf("who sees all got %+v and %+v first", o, m)
		}
	}
	if e := reader.next(); e.Space == nil || e.Space.Path != "" {
		t.Errorf("a reader got %+v", e.Space)
	}
	if e := admin.next(); e.Space == nil || e.Space.Path != host.ImageDir() {
		t.Errorf("an operator got %+v", e.Space)
	}
	if e := typed.next(); e.Type != api.EventTypeSpaceWarning {
		t.Errorf("who listens to space got %s first", e.Type)
	}
}

func TestListenerGoesOnWhereItWas(t *testing.T) {
	s := newSite(t)
	before := s.lastEvent()
	id := func(nth int64) string { return strconv.FormatInt(before+nth, 10) }
	for i := range 125 {
		s.order("web1", strconv.Itoa(2*i+1))
	}
	l := s.listen("read", "?after="+id(7), "Last-Event-ID", id(100))
	for want := int64(101); want <= 250; want++ {
		e := l.next()
		if right := want%2 == 0 && e.Message != nil || want%2 == 1 && e.Option != nil && e.Option.OrderRef == strconv.FormatInt(want, 10); e.ID != id(
			want,
		) ||
			!right {
			t.Fatalf("event %+v instead of %d", e, want)
		}
	}
	if e := s.listen("read", "?after="+id(7)).next(); e.ID != id(8) {
		t.Errorf("after 7 came %s", e.ID)
	}
	// The id comes before the first event, so that nothing is missed by who is cut off before it.
	fresh := s.listen("read", "")
	fresh.frame()
	if fresh.last != id(250) {
		t.Errorf("a new stream begins behind %q", fresh.last)
	}
	missed := s.listen("bound", "", "Last-Event-ID", id(9000))
	if e := missed.next(); e.Type != api.EventTypeEventsMissed || e.ID != id(250) {
		t.Errorf("who asks for unknown events got %+v", e)
	}
	s.order("web1", "new")
	if e := missed.next(); e.Option == nil || e.Option.OrderRef != "new" {
		t.Errorf("and then %+v", e)
	}
}

// A listener who may see little moves on all the same.
func TestHeartbeatMovesTheListenerOn(t *testing.T) {
	s := newSite(t)
	s.server.SetPace(20*time.Millisecond, 10*time.Second)
	l := s.listen("bound", "")
	s.order("web2", "not for web1")
	for newest := strconv.FormatInt(s.lastEvent(), 10); l.last != newest; {
		if _, _, data, ok := l.frame(); !ok || data != "" {
			t.Fatalf("got %q, ended: %v", data, !ok)
		}
	}
}

func TestEventsInTheListenersLanguage(t *testing.T) {
	s := newSite(t)
	check(t, s.host.KillGuest(daemontest.Web1))
	s.ended(s.call("panel", http.MethodPost, "/v1/vps/web1/snapshot", ""))
	last := fmt.Sprintf("?type=message&after=%d", s.lastEvent()-1)
	if e := s.listen("read", last, "Accept-Language", "fr-CA, en;q=0.5").next(); e.Message.Text != "Le snapshot a été créé : le VPS était éteint." {
		t.Errorf("in French: %s", e.Message.Text)
	}
	if e := s.listen("read", last, "Accept-Language", "de").next(); e.Message.Text != "The snapshot was taken: the VPS was off." {
		t.Errorf("in German: %s", e.Message.Text)
	}
}

func TestBadListeners(t *testing.T) {
	s := newSite(t)
	for path, want := range map[string]int{
		"/v1/events?type=nonsense":              400,
		"/v1/events?type=":                      400,
		"/v1/events?after=-1":                   400,
		"/v1/events?after=9999999999999999999":  400,
		"/v1/events?vps=nosuch":                 404,
		"/v1/events?vps=" + daemontest.Web2:     404,
		"/v1/events?vps=web2":                   404,
		"/v1/events?what=else":                  400,
		"/v1/events?vps=%2e%2e%2fetc":           400,
		"/v1/events?type=message&type=space.ok": 400,
	} {
		if got := s.call("bound", http.MethodGet, path, ""); got.StatusCode != want {
			t.Errorf("%s: %s, want %d", path, got.Status, want)
		}
	}
	for _, last := range []string{"", "nonsense", "-1", "+1", "1.5", "0x10", "9999999999999999999", "1; DROP TABLE event", "١", strings.Repeat("1", 300)} {
		got := s.with("bound", http.MethodGet, "/v1/events", "", "Last-Event-ID", last)
		if got.StatusCode != 400 || got.problem(t).Code != api.CodeInvalid {
			t.Errorf("Last-Event-ID %q: %s %s", last, got.Status, got.body)
		}
	}
}

// A shutdown does not wait for listeners; they come back by themselves.
func TestListenersDoNotHoldAShutdown(t *testing.T) {
	s := newSite(t)
	l := s.listen("read", "")
	l.frame()
	began := time.Now()
	check(t, s.server.Shutdown(t.Context()))
	if _, _, _, ok := l.frame(); ok || time.Since(began) > time.Minute {
		t.Errorf("the stream goes on (%v), after %s", ok, time.Since(began))
	}
}

// flood has more events at once than the buffers of a connection hold.
type flood struct{ server.Journal }

func (flood) Events(context.Context, int64) (vps.EventPage, error) {
	long := &vps.MessageEvent{ID: 1, Kind: vps.MessageWarning, Text: strings.Repeat("x", 100_000)}
	page := vps.EventPage{Changed: make(chan struct{})}
	for id := range int64(100) {
		page.Events = append(
			page.Events,
			vps.Event{ID: id + 1, Type: vps.EventMessage, VPS: daemontest.Web1, EventData: vps.EventData{Message: long}},
		)
	}
	return page, nil
}

// A listener that takes nothing holds no memory: it is cut off.
func TestSlowListenerIsCutOff(t *testing.T) {
	s := newSiteAround(t, func(d *server.Services) { d.Journal = flood{d.Journal} })
	s.server.SetPace(time.Minute, 200*time.Millisecond)
	conn, err := net.Dial("tcp", s.tcp)
	check(t, err)
	defer conn.Close()
	check(t, conn.(*net.TCPConn).SetReadBuffer(4096))
	fmt.Fprintf(conn, "GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", s.secret("read"))
	_, err = conn.Read(make([]byte, 1))
	check(t, err)
	for end := time.Now().Add(30 * time.Second); !strings.Contains(s.log.String(), "too slow and was cut off"); {
		if time.Now().After(end) {
			t.Fatal("the listener was not cut off")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Over HTTP/2 a deadline that passes would end the stream, also a silent one.
func TestSilentListenerOverHTTP2(t *testing.T) {
	s := newSite(t)
	s.server.SetPace(time.Minute, 100*time.Millisecond)
	web := httptest.NewUnstartedServer(s.server.Handler())
	web.EnableHTTP2 = true
	web.StartTLS()
	defer web.Close()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, web.URL+"/v1/events", http.NoBody)
	check(t, err)
	r.Header.Set("Authorization", "Bearer "+s.secret("read"))
	resp, err := web.Client().Do(r)
	check(t, err)
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 {
		t.Fatalf("the protocol is %s", resp.Proto)
	}
	l := &listener{t: t, lines: bufio.NewScanner(resp.Body), resp: resp}
	l.frame()
	<-time.After(300 * time.Millisecond) // three times what a reader may take nothing for
	s.order("web1", "after the silence")
	if e := l.next(); e.Option == nil || e.Option.OrderRef != "after the silence" {
		t.Errorf("got %+v", e)
	}
}

// discard is a connection that takes everything, and counts events.
type discard struct {
	*httptest.ResponseRecorder
	seen *sync.WaitGroup
}

func (d discard) SetWriteDeadline(time.Time) error { return nil }
func (d discard) Flush()                           {}
func (d discard) FlushError() error                { return nil }
func (d discard) Write(p []byte) (int, error) {
	d.seen.Add(-strings.Count(string(p), "\nevent: "))
	return len(p), nil
}

// BenchmarkListeners tells what one event costs with 100 listeners.
func BenchmarkListeners(b *testing.B) {
	const listeners = 100
	host := daemontest.New(b)
	after, err := host.LastEvent()
	check(b, err)
	s := server.New(
		server.Config{
			Services:  daemontest.Services(host.Daemon),
			PerSecond: noLimit,
			Logger:    slog.New(slog.DiscardHandler),
			Version:   "1.0",
		},
	)
	var seen, ended sync.WaitGroup
	ctx := b.Context()
	for range listeners {
		r := httptest.NewRequestWithContext(
			ctx, http.MethodGet, fmt.Sprintf("/v1/events?after=%d&type=message", after), http.NoBody,
		)
		r.Header.Set("Authorization", "Bearer "+host.Secret("read"))
		ended.Go(func() { s.Handler().ServeHTTP(discard{httptest.NewRecorder(), &seen}, r) })
	}
	for order := 0; b.Loop(); order++ {
		seen.Add(listeners)
		check(b, host.Order("web1", strconv.Itoa(order)))
		seen.Wait()
	}
	check(b, s.Shutdown(b.Context()))
	ended.Wait()
}

// A token that is revoked, or over, ends the streams that were begun with it.
func TestRevokedTokenEndsTheStream(t *testing.T) {
	s := newSite(t)
	s.server.SetPace(20*time.Millisecond, 10*time.Second)
	l := s.listen("bound", "")
	l.frame()
	tokens := decode[api.TokenList](t, s.call("admin", http.MethodGet, "/v1/tokens", "")).Tokens
	id := tokens[slices.IndexFunc(tokens, func(k api.Token) bool { return k.Name == "bound" })].ID
	if got := s.call("admin", http.MethodDelete, "/v1/tokens/"+id, ""); got.StatusCode != 204 {
		t.Fatalf("not revoked: %s %s", got.Status, got.body)
	}
	ended := make(chan bool)
	go func() {
		for {
			if _, _, _, ok := l.frame(); !ok {
				close(ended)
				return
			}
		}
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the stream of a revoked token goes on")
	}
}
