// Package daemontest opens the real daemon on a fake host, for tests of what
// stands before it: the API, the command, the process.
package daemontest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/download"
	"vpssnapd/daemon/guest"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/notify"
	"vpssnapd/daemon/snapshot"
	"vpssnapd/daemon/space"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/webhook"
	"vpssnapd/hypervisor/fake"
)

// Epoch is when the clock of every daemon here begins.
var Epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Version is what the daemon says that it is.
const Version = "1.0"

// Host is a host with a daemon, both of which tests can meddle with.
type Host struct {
	*fake.Host
	Daemon *daemon.Daemon

	dir    string
	config func(*daemon.Config)
	log    Buffer

	mu     sync.Mutex
	clock  time.Duration // since Epoch
	at     map[string][]func(context.Context) error
	broken map[string]error
	secret map[string]string // of tokens, by name
}

// New is Open in a directory of the test, with everything closed at its end.
func New(t testing.TB) *Host {
	t.Helper()
	h, err := Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(h.Log())
		}
	})
	return h
}

// Open makes a host with Web1, Web2 and Web3 in dir, and tokens (Secret), and opens
// a daemon on it. config may change how the daemon is opened; nil: nothing.
func Open(dir string, config func(*daemon.Config)) (*Host, error) {
	h := &Host{
		dir:    dir,
		config: config,
		at:     map[string][]func(context.Context) error{},
		broken: map[string]error{},
		secret: map[string]string{},
	}
	for _, d := range []string{h.hostDir(), h.StateDir()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	// The VPSes are there before the daemon: so it need not hear of them first.
	if err := h.defineVPSes(); err != nil {
		return nil, err
	}
	if err := h.open(nil); err != nil {
		return nil, err
	}
	if err := h.furnish(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

func (h *Host) hostDir() string { return filepath.Join(h.dir, "host") }

// StateDir is where the daemon keeps its records.
func (h *Host) StateDir() string { return filepath.Join(h.dir, "state") }

func (h *Host) open(before func(*fake.Host)) (err error) {
	if h.Host, err = fake.Open(h.hostDir()); err != nil {
		return err
	}
	h.SetHook(h.reached)
	h.SetFree(512 << 30)
	if before != nil {
		before(h.Host)
	}
	c := daemon.Config{
		Host: h.Host, StateDir: h.StateDir(), Version: Version,
		Settings: daemon.Settings{
			Offer: vps.Offer{
				ID:         "snapshot",
				Name:       "Snapshot",
				Price:      vps.Price{Amount: 299, Currency: "EUR", Period: vps.PeriodMonth},
				Conditions: []string{"A snapshot is no backup."},
			},
			Notify:   notify.Policy{Grace: 30 * 24 * time.Hour},
			Snapshot: snapshot.Policy{UndoKeep: 24 * time.Hour, AgentWait: time.Second},
			Guest:    guest.Policy{FreezeLimit: 5 * time.Second},
			Merge:    merge.Policy{Limit: 2},
			Download: download.Policy{AtOnce: 3},
			Space:    space.Policy{Headroom: 10 << 30},
		},
		Webhook: webhook.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, AllowHTTP: true},
		Logger:  slog.New(slog.NewTextHandler(&h.log, nil)), Now: h.now,
	}
	if h.config != nil {
		h.config(&c)
	}
	if h.Daemon, err = daemon.Open(context.Background(), c); err != nil {
		return errors.Join(err, h.Host.Close())
	}
	return nil
}

// Close ends the daemon, and its connection to the host.
func (h *Host) Close() error { return errors.Join(h.Daemon.Close(), h.Host.Close()) }

// Restart ends the daemon and opens it again. before may change the new connection
// to the host first; nil: nothing. Daemon is another one then.
func (h *Host) Restart(before func(*fake.Host)) error {
	if err := h.Close(); err != nil {
		return err
	}
	return h.open(before)
}

// now is a millisecond later each time it is asked for: so what is recorded has an
// order, and is from Epoch all the same, to the second.
func (h *Host) now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock += time.Millisecond
	return Epoch.Add(h.clock)
}

// Pass lets time go by for the daemon.
func (h *Host) Pass(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock += d
}

// Log is what the daemon has logged.
func (h *Host) Log() string { return h.log.String() }

// Buffer keeps what is written to it by several at once, such as a log.
type Buffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// String is all that was written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// OwnGroup is the group of the user who runs the test, who is an operator where the
// server is told so.
func OwnGroup() (string, error) {
	g, err := user.LookupGroupId(strconv.Itoa(os.Getegid()))
	if err != nil {
		return "", fmt.Errorf("cannot tell one's own group: %w", err)
	}
	return g.Name, nil
}
