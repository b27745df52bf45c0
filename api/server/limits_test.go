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
	if got := s.call("read", "GET", "/v1/vps", ""); got.StatusCode != 429 || got.Header.Get("Retry-After") == "" {
		t.Errorf("the next guess: %s", got.Status)
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
