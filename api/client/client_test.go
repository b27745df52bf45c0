package client_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/api/server"
	"vpssnapd/daemon/daemontest"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve runs a server on a Unix socket until stop is called.
func serve(t *testing.T, socket string, host *daemontest.Host) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	check(t, err)
	group, err := daemontest.OwnGroup()
	check(t, err)
	s := server.New(
		server.Config{
			Services:      daemontest.Services(host.Daemon),
			OperatorGroup: group,
			Logger:        slog.New(slog.NewTextHandler(io.Discard, nil)),
		},
	)
	ended := make(chan error, 1)
	go func() { ended <- s.ServeUnix(l) }()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		check(t, s.Shutdown(ctx))
		check(t, <-ended)
	}
}

func unix(t *testing.T, host *daemontest.Host) *client.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	t.Cleanup(serve(t, socket, host))
	c, err := client.Unix(socket)
	check(t, err)
	return c
}

func TestRefusalBecomesAnError(t *testing.T) {
	c := unix(t, daemontest.New(t))
	_, err := c.Take(t.Context(), "web2", api.TakeRequest{})
	var e *client.Error
	if !errors.As(err, &e) || e.Code != api.CodeOptionRequired || e.Status != 402 || e.Detail == "" || e.Remedy == "" ||
		e.RequestID == "" {
		t.Errorf("%+v", err)
	}
	if client.CodeOf(err) != api.CodeOptionRequired || client.CodeOf(errors.New("x")) != "" {
		t.Errorf("CodeOf says %q", client.CodeOf(err))
	}
}

// A name may hold what means something in a URL.
func TestOddNames(t *testing.T) {
	var got []string
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.URL.Path)
		io.WriteString(w, "{}")
	}))
	defer web.Close()
	c, err := client.HTTP(web.URL, "", nil)
	check(t, err)
	for _, name := range []string{"web 1", "50%", "a?b#c", "é", "<x>&y;", "%2f"} {
		got = nil
		_, err := c.VPS(t.Context(), name)
		if err != nil || len(got) != 1 || got[0] != "/v1/vps/"+name {
			t.Errorf("%q was asked for as %q: %v", name, got, err)
		}
	}
}

func TestAnswersOfOthers(t *testing.T) {
	var reached bool
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer other.Close()
	answers := map[string]http.HandlerFunc{
		"/proxy/": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "<html>Bad Gateway</html>", http.StatusBadGateway)
		},
		"/busy/": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusServiceUnavailable) },
		"/away/": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) },
		"/page/": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>Welcome</html>") },
	}
	mux := http.NewServeMux()
	for path, h := range answers {
		mux.HandleFunc(path, h)
	}
	web := httptest.NewServer(mux)
	defer web.Close()
	for path, code := range map[string]api.Code{
		"/proxy/": api.CodeInternal, "/busy/": api.CodeHypervisorUnavailable, "/away/": api.CodeInternal, "/page/": "",
	} {
		c, err := client.HTTP(web.URL+path, "secret", nil)
		check(t, err)
		_, err = c.ListVPS(t.Context())
		if err == nil || client.CodeOf(err) != code {
			t.Errorf("%s: %v, code %q, want %q", path, err, client.CodeOf(err), code)
		}
	}
	if reached {
		t.Error("a redirect was followed, with the token")
	}
}

func TestUnreachable(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none")
	c, err := client.Unix(socket)
	check(t, err)
	_, err = c.ListVPS(t.Context())
	var u *client.UnreachableError
	if !errors.As(err, &u) || u.Address != socket || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if !strings.Contains(err.Error(), socket) {
		t.Errorf("the error does not name the socket: %v", err)
	}
	for _, server := range []string{"", "host1:8443", "ftp://host1", "http://", "::"} {
		if _, err := client.HTTP(server, "", nil); err == nil {
			t.Errorf("%q was accepted", server)
		}
	}
}

func TestAwaitReportsEveryStep(t *testing.T) {
	host := daemontest.New(t)
	reached, release := host.Hold(daemontest.InTake)
	c := unix(t, host)
	op, err := c.Take(t.Context(), "web1", api.TakeRequest{})
	check(t, err)
	<-reached
	var seen []api.OperationStatus
	op, err = c.Await(t.Context(), op, 100*time.Millisecond, func(o api.Operation) {
		if len(seen) > 0 && seen[len(seen)-1] == o.Status {
			return
		}
		if seen = append(seen, o.Status); o.Status == api.OperationStatusRunning {
			release()
		}
	})
	check(t, err)
	if op.Status != api.OperationStatusSucceeded || len(seen) != 3 || seen[0] != "pending" || seen[1] != "running" {
		t.Errorf("ended as %s, seen %v", op.Status, seen)
	}
}

// The daemon is restarted while somebody waits: the operation goes on, and so does the wait.
func TestAwaitOutlastsARestart(t *testing.T) {
	host := daemontest.New(t)
	reached, _ := host.Hold(daemontest.InDelete)
	socket := filepath.Join(t.TempDir(), "s")
	stop := serve(t, socket, host)
	c, err := client.Unix(socket)
	check(t, err)
	op, err := c.Delete(t.Context(), "web3")
	check(t, err)
	<-reached
	ended := make(chan error, 1)
	go func() {
		op, err := c.Await(t.Context(), op, 100*time.Millisecond, nil)
		if err == nil && op.Status != api.OperationStatusSucceeded {
			err = errors.New("it ended as " + string(op.Status))
		}
		ended <- err
	}()
	stop()
	check(t, host.Restart(nil))
	defer serve(t, socket, host)()
	check(t, <-ended)
}

func TestAwaitStopsWithItsContext(t *testing.T) {
	host := daemontest.New(t)
	host.Hold(daemontest.InTake)
	c := unix(t, host)
	op, err := c.Take(t.Context(), "web1", api.TakeRequest{})
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Await(ctx, op, time.Minute, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
