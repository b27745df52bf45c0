package server_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/server"
	"vpssnapd/daemon/daemontest"
	"vpssnapd/daemon/vps"
)

// site is a running server, with the real daemon behind it and a token for every role.
type site struct {
	t      testing.TB
	host   *daemontest.Host
	server *server.Server
	tcp    string
	socket string
	log    *daemontest.Buffer

	mu    sync.Mutex
	clock time.Time // of stopClock
}

// noLimit is more calls per second than a test makes.
const noLimit = 1_000_000

func newSite(t testing.TB) *site {
	t.Helper()
	return newSiteWith(t, server.Config{OperatorGroup: ownGroup(t), PerSecond: noLimit})
}

// newSiteWith serves a host of its own, as the configuration says.
func newSiteWith(t testing.TB, c server.Config) *site {
	t.Helper()
	host := daemontest.New(t)
	c.Services = daemontest.Services(host.Daemon)
	return serveHost(t, host, c)
}

// newSiteAround serves the daemon as around changes it.
func newSiteAround(t testing.TB, around func(*server.Services)) *site {
	t.Helper()
	host := daemontest.New(t)
	services := daemontest.Services(host.Daemon)
	around(&services)
	return serveHost(t, host, server.Config{Services: services, OperatorGroup: ownGroup(t), PerSecond: noLimit})
}

func serveHost(t testing.TB, host *daemontest.Host, c server.Config) *site {
	t.Helper()
	s := serveSite(t, c)
	s.host = host
	return s
}

// stopClock lets the budgets of callers fill up only when the test passes time.
func (s *site) stopClock() {
	s.clock = time.Now()
	s.server.SetClock(func() time.Time {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.clock
	})
}

func (s *site) passTime(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = s.clock.Add(d)
}

// secret is that of the token that is called as role, else role itself.
func (s *site) secret(role string) string {
	if s.host == nil {
		return role
	}
	return s.host.Secret(role)
}

// lastEvent is the id of the newest event.
func (s *site) lastEvent() int64 {
	s.t.Helper()
	id, err := s.host.LastEvent()
	check(s.t, err)
	return id
}

// snapshot is the one of web3.
func (s *site) snapshot() vps.Snapshot {
	s.t.Helper()
	snap, err := s.host.Snapshot("web3")
	check(s.t, err)
	return snap
}

// ended waits for the end of the operation that a call has begun.
func (s *site) ended(a answer) vps.Operation {
	s.t.Helper()
	if a.StatusCode != http.StatusAccepted {
		s.t.Fatalf("not accepted: %s %s", a.Status, a.body)
	}
	op, err := s.host.Ended(decode[api.Operation](s.t, a).ID)
	check(s.t, err)
	return op
}

// serveSite serves what the configuration says on both kinds of socket.
func serveSite(t testing.TB, c server.Config) *site {
	t.Helper()
	// Not t.TempDir: the stranger must be able to enter it.
	dir, err := os.MkdirTemp("", "vpssnapd")
	check(t, err)
	check(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &site{t: t, socket: filepath.Join(dir, "api.sock"), log: &daemontest.Buffer{}}
	c.Logger, c.Version = slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})), "1.0"
	s.server = server.New(c)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	s.tcp = tcp.Addr().String()
	unix, err := net.Listen("unix", s.socket)
	check(t, err)
	check(t, os.Chmod(s.socket, 0o666))
	ended := make(chan error, 2)
	go func() { ended <- s.server.ServeTCP(tcp, nil) }()
	go func() { ended <- s.server.ServeUnix(unix) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		check(t, s.server.Shutdown(ctx))
		check(t, <-ended)
		check(t, <-ended)
	})
	return s
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ownGroup(t testing.TB) string {
	t.Helper()
	group, err := daemontest.OwnGroup()
	check(t, err)
	return group
}

// answer is a response that was read.
type answer struct {
	*http.Response
	body string
}

func (a answer) problem(t testing.TB) api.Problem {
	t.Helper()
	if kind := a.Header.Get("Content-Type"); kind != "application/problem+json" {
		t.Fatalf("%s answered with %q: %s", a.Status, kind, a.body)
	}
	return decode[api.Problem](t, a)
}

func decode[T any](t testing.TB, a answer) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		t.Fatalf("cannot read %q: %v", a.body, err)
	}
	return v
}

// request builds a call over TCP with the token that is called as role; "" sends none.
func (s *site) request(role, method, path, body string) *http.Request {
	s.t.Helper()
	r, err := http.NewRequest(method, "http://"+s.tcp+path, strings.NewReader(body))
	check(s.t, err)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if role != "" {
		r.Header.Set("Authorization", "Bearer "+s.secret(role))
	}
	return r
}

func (s *site) do(r *http.Request) answer {
	s.t.Helper()
	return s.via(r, new(net.Dialer).DialContext)
}

func (s *site) call(role, method, path, body string) answer {
	s.t.Helper()
	return s.do(s.request(role, method, path, body))
}

type dial func(ctx context.Context, network, addr string) (net.Conn, error)

func (s *site) via(r *http.Request, d dial) answer {
	s.t.Helper()
	transport := &http.Transport{DialContext: d}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(r)
	check(s.t, err)
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") == "text/event-stream" {
		return answer{resp, ""} // which has no end
	}
	body, err := io.ReadAll(resp.Body)
	check(s.t, err)
	return answer{resp, string(body)}
}

// operator calls over the Unix socket as the user who runs the test.
func (s *site) operator(method, path, body string) answer {
	s.t.Helper()
	return s.via(s.request("", method, path, body), func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.socket)
	})
}

// outsiders is a group of operators that the stranger is not in.
func outsiders(t *testing.T) string {
	if os.Geteuid() != 0 {
		return "root"
	}
	return ownGroup(t)
}

// stranger calls over the Unix socket as nobody. When the test does not run as
// root it cannot become nobody; then the server must have been made for a group
// that the test's user is not in.
func (s *site) stranger(method, path, body string) answer {
	s.t.Helper()
	return s.strangerAs("", method, path, body)
}

func (s *site) strangerAs(role, method, path, body string) answer {
	s.t.Helper()
	return s.via(s.request(role, method, path, body), func(context.Context, string, string) (net.Conn, error) {
		if os.Geteuid() != 0 {
			return net.Dial("unix", s.socket)
		}
		return dialAs(nobody, s.socket)
	})
}

const nobody = 65534

// dialAs connects from a thread that has another uid and gid. The thread ends
// with its goroutine, since it is never unlocked.
func dialAs(id int, socket string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		for _, call := range []uintptr{syscall.SYS_SETRESGID, syscall.SYS_SETRESUID} {
			if _, _, errno := syscall.RawSyscall(call, uintptr(id), uintptr(id), uintptr(id)); errno != 0 {
				done <- result{err: errno}
				return
			}
		}
		conn, err := net.Dial("unix", socket)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}
