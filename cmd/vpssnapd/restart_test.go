package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"vpssnapd/api/server"
	"vpssnapd/daemon/daemontest"
)

// passed is a socket as systemd holds it: each daemon gets a file of its own for it.
type passed interface {
	net.Listener
	File() (*os.File, error)
}

func passes(t *testing.T, network, address string) passed {
	t.Helper()
	l, err := net.Listen(network, address)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l.(passed)
}

func handOver(t *testing.T, l passed) net.Listener {
	t.Helper()
	file, err := l.File()
	must(t, err)
	defer file.Close()
	handed, err := net.FileListener(file)
	must(t, err)
	return handed
}

// TestNoRequestIsLostOverARestart: callers over both sockets, each call on a
// connection of its own, all get their answer while one daemon follows the other.
func TestNoRequestIsLostOverARestart(t *testing.T) {
	unix, tcp := passes(t, "unix", filepath.Join(t.TempDir(), "api.sock")), passes(t, "tcp", "127.0.0.1:0")
	stop := make(chan struct{})
	var callers sync.WaitGroup
	answered := make([]int, 8)
	for i := range answered {
		l := net.Listener(unix)
		if i%2 == 1 {
			l = tcp
		}
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := call(l.Addr()); err != nil {
					t.Errorf("over %s, after %d answers: %v", l.Addr().Network(), answered[i], err)
					return
				}
				answered[i]++
			}
		})
	}
	host := daemontest.New(t)
	for range 20 {
		s := server.New(
			server.Config{
				Services:  daemontest.Services(host.Daemon),
				Logger:    slog.New(slog.DiscardHandler),
				PerSecond: 1_000_000,
			},
		)
		r := &reloader{log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithCancel(t.Context())
		handed := listeners{handOver(t, unix), handOver(t, tcp)}
		ended := make(chan error, 1)
		go func() { ended <- serve(ctx, s, handed, r) }()
		must(t, call(unix.Addr()))
		must(t, call(tcp.Addr()))
		cancel()
		must(t, <-ended)
		must(t, host.Restart(nil))
	}
	s := server.New(
		server.Config{
			Services:  daemontest.Services(host.Daemon),
			Logger:    slog.New(slog.DiscardHandler),
			PerSecond: 1_000_000,
		},
	)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- serve(ctx, s, listeners{handOver(t, unix), handOver(t, tcp)}, &reloader{log: slog.New(slog.DiscardHandler)})
	}()
	close(stop)
	callers.Wait()
	cancel()
	must(t, <-ended)
	t.Log("answers", answered)
}

// call makes one call on a connection of its own.
func call(to net.Addr) error {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, to.Network(), to.String())
		},
	}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequest(http.MethodGet, "http://vpssnapd/healthz", nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", resp.Status)
	}
	return nil
}
