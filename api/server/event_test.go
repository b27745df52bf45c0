package server_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/server"
	"vpssnapd/api/server/servertest"
	"vpssnapd/daemon/vps"
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

func message(id, name, text string) vps.Event {
	return vps.Event{Type: vps.EventMessage, VPS: id, VPSName: name, EventData: vps.EventData{Message: &vps.MessageEvent{ID: 1, Kind: vps.MessageWarning, Text: text}}}
}

func space(level vps.SpaceLevel) vps.Event {
	return vps.Event{Type: vps.EventType("space." + level), EventData: vps.EventData{Space: &vps.SpaceEvent{Level: level, Path: "/srv/images", FreeBytes: 1}}}
}

func TestListenersSeeWhatTheyMay(t *testing.T) {
	s := newSite(t)
	bound, byID, reader, admin := s.listen("bound", ""), s.listen("bound-to-3", ""), s.listen("read", ""), s.listen("admin", "")
	typed, single := s.listen("read", "?type=space.warning,space.ok"), s.listen("read", "?vps=web3")
	for _, l := range []*listener{bound, byID, reader, admin, typed, single} {
		l.frame() // it listens now
	}
	s.service.Tell(message(servertest.Web2, "web2", "two"))
	s.service.Tell(space(vps.SpaceWarning))
	s.service.Tell(message(servertest.Web1, "web1", "one"))
	s.service.Tell(message(servertest.Web3, "web3", "three"))
	if e := bound.next(); e.Message.Text != "one" || e.ID != "3" {
		t.Errorf("the token bound to web1 got %+v first", e)
	}
	if e := byID.next(); e.Message.Text != "three" {
		t.Errorf("the token bound to web3 got %+v first", e)
	}
	if e := single.next(); e.Message.Text != "three" {
		t.Errorf("who listens to web3 got %+v first", e)
	}
	reader.next()
	if e := reader.next(); e.Space == nil || e.Space.Path != "" {
		t.Errorf("a reader got %+v", e.Space)
	}
	admin.next()
	if e := admin.next(); e.Space == nil || e.Space.Path != "/srv/images" {
		t.Errorf("an operator got %+v", e.Space)
	}
	if e := typed.next(); e.Type != api.EventTypeSpaceWarning {
		t.Errorf("who listens to space got %s first", e.Type)
	}
}

func TestListenerGoesOnWhereItWas(t *testing.T) {
	s := newSite(t)
	for i := range 250 {
		s.service.Tell(message(servertest.Web1, "web1", strconv.Itoa(i+1)))
	}
	l := s.listen("read", "?after=7", "Last-Event-ID", "100")
	for want := 101; want <= 250; want++ {
		if e := l.next(); e.ID != strconv.Itoa(want) || e.Message.Text != e.ID {
			t.Fatalf("event %s %q instead of %d", e.ID, e.Message.Text, want)
		}
	}
	if e := s.listen("read", "?after=7").next(); e.ID != "8" {
		t.Errorf("after 7 came %s", e.ID)
	}
	// The id comes before the first event, so that nothing is missed by who is cut off before it.
	fresh := s.listen("read", "")
	fresh.frame()
	if fresh.last != "250" {
		t.Errorf("a new stream begins behind %q", fresh.last)
	}
	missed := s.listen("bound", "", "Last-Event-ID", "9000")
	if e := missed.next(); e.Type != api.EventTypeEventsMissed || e.ID != "250" {
		t.Errorf("who asks for unknown events got %+v", e)
	}
	s.service.Tell(message(servertest.Web1, "web1", "new"))
	if e := missed.next(); e.Message == nil || e.Message.Text != "new" {
		t.Errorf("and then %+v", e)
	}
}

// A listener who may see little moves on all the same.
func TestHeartbeatMovesTheListenerOn(t *testing.T) {
	s := newSite(t)
	s.server.SetPace(20*time.Millisecond, 10*time.Second)
	l := s.listen("bound", "")
	s.service.Tell(message(servertest.Web2, "web2", "not for web1"))
	for l.last != "1" {
		if _, _, data, ok := l.frame(); !ok || data != "" {
			t.Fatalf("got %q, ended: %v", data, !ok)
		}
	}
}

func TestEventsInTheListenersLanguage(t *testing.T) {
	s := newSite(t)
	s.service.Tell(vps.Event{Type: vps.EventMessage, VPS: servertest.Web1, EventData: vps.EventData{Message: &vps.MessageEvent{
		Kind: vps.MessageOperationSucceeded, Text: "The snapshot was taken: the VPS was off.", Phrase: vps.PhraseTakeDone, Params: map[string]string{"result": "the VPS was off"}}}})
	if e := s.listen("read", "?after=0", "Accept-Language", "fr-CA, en;q=0.5").next(); e.Message.Text != "Le snapshot a été créé : le VPS était éteint." {
		t.Errorf("in French: %s", e.Message.Text)
	}
	if e := s.listen("read", "?after=0", "Accept-Language", "de").next(); e.Message.Text != "The snapshot was taken: the VPS was off." {
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
		"/v1/events?vps=" + servertest.Web2:     404,
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
	if _, _, _, ok := l.frame(); ok || time.Since(began) > 5*time.Second {
		t.Errorf("the stream goes on (%v), after %s", ok, time.Since(began))
	}
}

// A listener that takes nothing holds no memory: it is cut off.
func TestSlowListenerIsCutOff(t *testing.T) {
	s := newSite(t)
	s.server.SetPace(time.Minute, 200*time.Millisecond)
	conn, err := net.Dial("tcp", s.tcp)
	check(t, err)
	defer conn.Close()
	check(t, conn.(*net.TCPConn).SetReadBuffer(4096))
	fmt.Fprintf(conn, "GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer read\r\n\r\n")
	_, err = conn.Read(make([]byte, 1))
	check(t, err)
	long := strings.Repeat("x", 100_000)
	for range 100 {
		s.service.Tell(message(servertest.Web1, "web1", long))
	}
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
	r.Header.Set("Authorization", "Bearer read")
	resp, err := web.Client().Do(r)
	check(t, err)
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 {
		t.Fatalf("the protocol is %s", resp.Proto)
	}
	l := &listener{t: t, lines: bufio.NewScanner(resp.Body), resp: resp}
	l.frame()
	<-time.After(300 * time.Millisecond) // three times what a reader may take nothing for
	s.service.Tell(message(servertest.Web1, "web1", "after the silence"))
	if e := l.next(); e.Message.Text != "after the silence" {
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
	service := servertest.New()
	s := server.New(server.Config{Service: service, PerSecond: noLimit, Logger: slog.New(slog.DiscardHandler), Version: "1.0"})
	var seen, ended sync.WaitGroup
	ctx := b.Context()
	for range listeners {
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/v1/events?after=0", http.NoBody)
		r.Header.Set("Authorization", "Bearer read")
		ended.Go(func() { s.Handler().ServeHTTP(discard{httptest.NewRecorder(), &seen}, r) })
	}
	for b.Loop() {
		seen.Add(listeners)
		service.Tell(message(servertest.Web1, "web1", "something has happened"))
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
	s.service.Revoke("bound")
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
