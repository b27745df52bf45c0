package server_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/server"
	"vpssnapd/daemon/daemontest"
)

// pipeline sends a request n times over one connection, and counts the answers by status.
func (s *site) pipeline(request string, n int) (map[int]int, error) {
	conn, err := net.Dial("tcp", s.tcp)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(conn, strings.Repeat(request, n))
		sent <- err
	}()
	count := map[int]int{}
	in := bufio.NewReader(conn)
	for range n {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return count, err
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return count, err
		}
		resp.Body.Close()
		count[resp.StatusCode]++
	}
	return count, <-sent
}

func TestHundredThousandGuesses(t *testing.T) {
	s := newSite(t)
	s.stopClock()
	count, err := s.pipeline(
		"GET /v1/vps HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer vpssnap_000000000000_AAAAAAAAAAAAAAAAAAAAAAAAAA\r\n\r\n",
		100_000,
	)
	check(t, err)
	if count[401] != 20 || count[401]+count[429] != 100_000 {
		t.Errorf("%v: not 20 were looked at", count)
	}
	if got := s.call("guess", "GET", "/v1/vps", ""); got.StatusCode != 429 || got.Header.Get("Retry-After") == "" {
		t.Errorf("the next guess: %s", got.Status)
	}
	if got := s.call("read", "GET", "/v1/vps", ""); got.StatusCode != 200 {
		t.Errorf("a valid token of the guesser's address: %s", got.Status)
	}
}

// retryAfter wants a 429 that says when to come back, and returns that.
func retryAfter(t *testing.T, a answer) time.Duration {
	t.Helper()
	seconds, err := strconv.Atoi(a.Header.Get("Retry-After"))
	if a.StatusCode != 429 || err != nil || seconds < 1 || a.problem(t).Code != api.CodeRateLimited {
		t.Fatalf("%s, Retry-After %q: %s", a.Status, a.Header.Get("Retry-After"), a.body)
	}
	return time.Duration(seconds) * time.Second
}

// A user on the Unix socket has the budget of an address; root has none.
func TestCallsPerSecondOfAUser(t *testing.T) {
	s := newSiteWith(t, server.Config{OperatorGroup: outsiders(t), PerSecond: 2})
	s.stopClock()
	refused := 0
	for range 40 {
		got := s.stranger("GET", "/v1/offers", "")
		if got.StatusCode == 429 {
			retryAfter(t, got)
			refused++
		}
	}
	if refused != 32 {
		t.Errorf("of 40 calls of one user at once %d were refused, and not 32", refused)
	}
	for range 40 {
		if got := s.operator("GET", "/v1/offers", ""); os.Geteuid() == 0 && got.StatusCode != 200 {
			t.Fatalf("root got %s", got.Status)
		}
	}
}

// A token may make 2 calls per second and 4 at once, its address twice as many.
func TestCallsPerSecond(t *testing.T) {
	s := newSiteWith(t, server.Config{OperatorGroup: ownGroup(t), PerSecond: 2})
	s.stopClock()
	until := func(role string) (n int, limited answer) {
		for n = range 20 {
			if limited = s.call(role, "GET", "/v1/offers", ""); limited.StatusCode == 429 {
				break
			}
		}
		return n, limited
	}
	n, limited := until("read")
	if n != 4 || !strings.Contains(limited.body, "token") {
		t.Fatalf("%d calls of a token, then %s", n, limited.body)
	}
	if got := s.call("admin", "GET", "/v1/offers", ""); got.StatusCode != 200 {
		t.Errorf("another token has no calls left: %s", got.Status)
	}
	wait := retryAfter(t, limited)
	if _, limited := until("admin"); !strings.Contains(limited.body, "address") {
		t.Errorf("many tokens from one address: %s", limited.body)
	}
	if got := s.with("bound", "GET", "/v1/offers", "", "X-Forwarded-For", "192.0.2.7"); got.StatusCode != 429 {
		t.Errorf("with X-Forwarded-For: %s", got.Status)
	}
	if got := s.call("", "GET", "/healthz", ""); got.StatusCode != 429 {
		t.Errorf("an open page from that address: %s", got.Status)
	}
	if got := s.operator("GET", "/v1/offers", ""); got.StatusCode != 200 {
		t.Errorf("the operator on the socket: %s", got.Status)
	}
	s.passTime(wait)
	if got := s.call("read", "GET", "/v1/offers", ""); got.StatusCode != 200 {
		t.Errorf("after Retry-After (%s): %s", wait, got.Status)
	}
}

// Behind a proxy it is for whom the proxy asks that counts, as far as the proxy says so.
func TestProxy(t *testing.T) {
	s := newSiteWith(
		t,
		server.Config{
			OperatorGroup: ownGroup(t),
			PerSecond:     1,
			Proxies:       []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		},
	)
	s.stopClock()
	from := func(forwarded string) answer {
		return s.with("", "GET", "/healthz", "", "X-Forwarded-For", forwarded)
	}
	for range 20 {
		from("192.0.2.7")
	}
	// What the client has put before the proxy's own word means nothing.
	for _, forwarded := range []string{"192.0.2.7", "198.51.100.1, 192.0.2.7"} {
		if got := from(forwarded); got.StatusCode != 429 {
			t.Errorf("%s: %s", forwarded, got.Status)
		}
	}
	if got := from("192.0.2.8"); got.StatusCode != 200 {
		t.Errorf("another client: %s", got.Status)
	}
}

// Nobody can take all connections: one address gets so many, and a user of the
// host so many on the socket.
func TestConnections(t *testing.T) {
	const most = 256
	s := newSite(t)
	hold := func(network, address string) (closed int) {
		for i := range most + 10 {
			conn, err := net.Dial(network, address)
			check(t, err)
			t.Cleanup(func() { conn.Close() })
			if i < most {
				continue
			}
			check(t, conn.SetReadDeadline(time.Now().Add(4*time.Second)))
			if _, err := conn.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				closed++
			}
		}
		return closed
	}
	if closed := hold("tcp", s.tcp); closed != 10 {
		t.Errorf("%d of 10 connections too many were closed", closed)
	}
	if got := s.operator("GET", "/v1/offers", ""); got.StatusCode != 200 {
		t.Errorf("the operator meanwhile: %s", got.Status)
	}
	if os.Geteuid() == 0 {
		for range most + 10 {
			conn, err := dialAs(nobody, s.socket)
			check(t, err)
			defer conn.Close()
		}
		if got := s.operator("GET", "/v1/offers", ""); got.StatusCode != 200 {
			t.Errorf("the operator while nobody holds connections: %s", got.Status)
		}
	}
	// Silent connections are given up, and then there is room again.
	deadline := time.Now().Add(20 * time.Second)
	for {
		resp, err := http.Get("http://" + s.tcp + "/healthz")
		if err == nil {
			resp.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no room within 20 s: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestLargeHeader(t *testing.T) {
	s := newSite(t)
	conn, err := net.Dial("tcp", s.tcp)
	check(t, err)
	defer conn.Close()
	check(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	go fmt.Fprintf(conn, "GET /v1/vps HTTP/1.1\r\nHost: x\r\nX-Large: %s\r\n\r\n", strings.Repeat("a", 1<<20))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	check(t, err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("1 MiB of header: %s", resp.Status)
	}
}

// What somebody without a token does at an address does not use up what tokens have there:
// whatever he calls, half of the address's calls are left.
func TestStrangersLeaveCallsForTokens(t *testing.T) {
	for what, of := range map[string]struct{ role, path string }{
		"open pages":    {"", "/healthz"},
		"unknown paths": {"", "/nothing/here"},
		"no token":      {"", "/v1/vps"},
		"wrong tokens":  {"guess", "/v1/vps"},
		"links":         {"", "/v1/downloads/dl-000000000000.AAAA"},
		"a token there": {"guess", "/healthz"},
	} {
		t.Run(what, func(t *testing.T) {
			s := newSiteWith(t, server.Config{OperatorGroup: ownGroup(t), PerSecond: 2})
			s.stopClock()
			for range 50 {
				s.call(of.role, "GET", of.path, "")
			}
			if got := s.call(of.role, "GET", of.path, ""); got.StatusCode != 429 {
				t.Errorf("50 calls more: %s", got.Status)
			}
			for range 4 {
				if got := s.call("read", "GET", "/v1/offers", ""); got.StatusCode != 200 {
					t.Fatalf("a valid token: %s %s", got.Status, got.body)
				}
			}
		})
	}
}

// hold opens n connections from an address and calls an open page on each, so that it is
// one that stays.
func (s *site) hold(n int, local string, to string) (held []net.Conn, refused int) {
	s.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	for range n {
		conn, err := d.Dial("tcp", to)
		check(s.t, err)
		s.t.Cleanup(func() { conn.Close() })
		fmt.Fprint(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			refused++
			continue
		}
		_, err = io.Copy(io.Discard, resp.Body)
		check(s.t, err)
		held = append(held, conn)
	}
	return held, refused
}

// All loopback addresses are one owner's: whatever of them a user of the host calls from, he
// takes no more than one address may have, and who has a token finds a place.
func TestLoopbackIsOneOwner(t *testing.T) {
	s := newSite(t)
	for i := 2; i <= 10; i++ {
		s.hold(256, fmt.Sprintf("127.0.0.%d", i), s.tcp)
	}
	if n := s.server.Connections(); n > 256 {
		t.Errorf("one user has %d connections by nine addresses", n)
	}
	if got := s.call("read", "GET", "/v1/vps", ""); got.StatusCode != 200 {
		t.Errorf("who has a token meanwhile: %s", got.Status)
	}
}

// A connection on which a valid token was shown is never given up for another.
func TestProvenConnectionsStay(t *testing.T) {
	s := newSite(t)
	conn, err := net.Dial("tcp", s.tcp)
	check(t, err)
	defer conn.Close()
	in := bufio.NewReader(conn)
	ask := func() {
		t.Helper()
		fmt.Fprintf(conn, "GET /v1/vps HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", s.secret("read"))
		resp, err := http.ReadResponse(in, nil)
		check(t, err)
		_, err = io.Copy(io.Discard, resp.Body)
		check(t, err)
		if resp.StatusCode != 200 {
			t.Fatalf("on the connection of a token: %s", resp.Status)
		}
	}
	ask()
	s.hold(600, "127.0.0.1", s.tcp)
	ask()
}

// Root is let in on the Unix socket, however many connections other users hold.
func TestRootIsNeverKeptOut(t *testing.T) {
	s := newSite(t)
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for uid := range 9 { // more of them than have all places
		for range 256 {
			conn, err := dialAs(20_000+uid, s.socket)
			check(t, err)
			held = append(held, conn)
		}
	}
	if got := s.operator("GET", "/v1/vps", ""); got.StatusCode != 200 {
		t.Errorf("root: %s", got.Status)
	}
}

// Trusted proxies have the addresses of everybody on their hosts: they cannot take all
// places either.
func TestProxiesLeavePlaces(t *testing.T) {
	s := newSiteWith(t, server.Config{
		OperatorGroup: ownGroup(t), PerSecond: noLimit, Proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
	})
	for range 2048 {
		conn, err := net.Dial("tcp", s.tcp)
		check(t, err)
		defer conn.Close()
	}
	if held, refused := s.hold(1, "127.0.0.2", s.tcp); len(held) != 1 || refused != 0 {
		t.Error("the trusted proxies keep everybody else out")
	}
}

// awaitLasting returns when so many calls stay open, of which nothing tells.
func (s *site) awaitLasting(n int) {
	s.t.Helper()
	for until := time.Now().Add(time.Minute); s.server.Lasting() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			s.t.Fatalf("%d calls stay open", s.server.Lasting())
		}
	}
}

// A token cannot take all places of its address by calls that stay open.
func TestLastingCallsOfOneToken(t *testing.T) {
	s := newSite(t)
	reached, _ := s.host.Hold(daemontest.InTake)
	s.ended(s.call("admin", http.MethodDelete, "/v1/vps/web3/snapshot", ""))
	op := decode[api.Operation](t, s.call("panel", http.MethodPost, "/v1/vps/web3/snapshot", ""))
	<-reached
	for i := range 192 {
		if i%2 == 0 {
			s.listen("read", "").frame()
			continue
		}
		conn, err := net.Dial("tcp", s.tcp)
		check(t, err)
		t.Cleanup(func() { conn.Close() })
		fmt.Fprintf(conn, "GET /v1/operations/%s?wait=4m HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n",
			op.ID, s.secret("read"))
	}
	s.awaitLasting(192)
	for _, path := range []string{"/v1/events", "/v1/operations/" + op.ID + "?wait=1m"} {
		retryAfter(t, s.call("read", http.MethodGet, path, ""))
		if got := s.call("panel", http.MethodGet, "/v1/events", ""); got.StatusCode != 200 {
			t.Errorf("another token of that address: %s %s", got.Status, got.body)
		}
	}
	if got := s.call("read", http.MethodGet, "/v1/vps", ""); got.StatusCode != 200 {
		t.Errorf("a call that ends: %s", got.Status)
	}
}

// What the daemon asks by itself for a stream costs its token no calls, and a token without
// calls left, or an address of which wrong ones came, keeps its stream.
func TestAStreamCostsNoCalls(t *testing.T) {
	s := newSiteWith(t, server.Config{OperatorGroup: ownGroup(t), PerSecond: 2})
	s.stopClock()
	s.server.SetPace(5*time.Millisecond, 10*time.Second)
	l := s.listen("read", "")
	for range 20 {
		if _, _, _, ok := l.frame(); !ok {
			t.Fatal("the stream has ended by itself")
		}
	}
	for range 3 { // of 4 at once the stream was one
		if got := s.call("read", "GET", "/v1/offers", ""); got.StatusCode != 200 {
			t.Fatalf("the stream used up the calls: %s", got.Status)
		}
	}
	for range 40 {
		s.call("guess", "GET", "/v1/offers", "")
		s.call("read", "GET", "/v1/offers", "")
	}
	for range 20 {
		if _, _, _, ok := l.frame(); !ok {
			t.Fatal("the calls of others ended the stream")
		}
	}
}

// A VPS can be changed only so often by tokens, however its name is written, with whatever
// tokens and by whatever call: the others, and the operator on the host, are not held up.
func TestChangesOfOneVPS(t *testing.T) {
	s := newSite(t)
	s.stopClock()
	id := strings.ReplaceAll(strings.ToUpper(daemontest.Web3), "-", "")
	refs := []string{"web3", daemontest.Web3, strings.ToUpper(daemontest.Web3), id, "%77eb3"}
	describe := func(role, ref string, i int) answer {
		return s.call(role, "PATCH", "/v1/vps/"+ref+"/snapshot", fmt.Sprintf(`{"description":"%d"}`, i))
	}
	for i := range 119 {
		role := []string{"panel", "bound-to-3", "admin"}[i%3]
		if got := describe(role, refs[i%len(refs)], i); got.StatusCode != 200 {
			t.Fatalf("change %d: %s %s", i, got.Status, got.body)
		}
	}
	key := []string{"Idempotency-Key", "last"}
	last := s.with("panel", "PATCH", "/v1/vps/web3/snapshot", `{"description":"last"}`, key...)
	if last.StatusCode != 200 {
		t.Fatalf("the last change: %s", last.Status)
	}
	for _, ref := range refs {
		wait := retryAfter(t, describe("panel", ref, 0))
		if wait > 11*time.Second {
			t.Errorf("Retry-After is %s", wait)
		}
	}
	retryAfter(t, s.call("panel", "POST", "/v1/vps/web3/snapshot/download", ""))
	retryAfter(t, s.call("bound-to-3", "PUT", "/v1/vps/web3/option", `{"state":"active"}`))
	if again := s.with("panel", "PATCH", "/v1/vps/web3/snapshot", `{"description":"last"}`, key...); again.body != last.body {
		t.Errorf("the last change, sent again: %s %s", again.Status, again.body)
	}
	if got := s.call("admin", "PUT", "/v1/vps/web2/option", `{"state":"active"}`); got.StatusCode != 200 {
		t.Errorf("another VPS: %s %s", got.Status, got.body)
	}
	if got := s.call("panel", "GET", "/v1/vps/web3", ""); got.StatusCode != 200 {
		t.Errorf("reading it: %s", got.Status)
	}
	if got := s.operator("PATCH", "/v1/vps/web3/snapshot", `{"description":"operator"}`); got.StatusCode != 200 {
		t.Errorf("the operator: %s %s", got.Status, got.body)
	}
	s.passTime(11 * time.Second)
	if got := describe("panel", "web3", 1); got.StatusCode != 200 {
		t.Errorf("later: %s", got.Status)
	}
	retryAfter(t, describe("panel", "web3", 2))
}
