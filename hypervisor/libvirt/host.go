// Package libvirt makes the real host out of libvirtd, with somebody else's
// hypervisor.Images for the files. It is the only package that uses cgo, so
// that all others build and test without libvirt's headers.
//
// The connection is kept in the background: after a loss everything is thrown
// away and rebuilt, and an event tells. Domain XML is read and edited as a
// tree, so that what this program does not know survives an edit.
package libvirt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/feed"
)

const (
	// firstAnswer bounds how long Open waits for the first connection.
	firstAnswer = 5 * time.Second
	// closeWithin bounds how long Close waits for calls that libvirtd holds.
	closeWithin = 5 * time.Second
)

// Config says which libvirtd to use.
type Config struct {
	// URI is libvirt's connection URI, as in qemu:///system.
	URI string
	// ConfigDir is where that libvirtd keeps the persistent definitions, as in
	// /etc/libvirt/qemu. libvirt does not sync this directory; we do.
	ConfigDir string
	// Images does the work on files.
	Images hypervisor.Images
	Logger *slog.Logger
}

// Host is a hypervisor.Host. Its methods may be called from any goroutine.
type Host struct {
	hypervisor.Images
	uri       string
	configDir string
	profiles  string // AppArmor's
	log       *slog.Logger

	events *feed.Feed
	stop   context.CancelFunc
	ended  sync.WaitGroup // of what runs in the background

	mu      sync.Mutex
	session *session // nil while not connected
	closed  bool
}

var _ hypervisor.Host = (*Host)(nil)

// Open begins to connect and returns when that has succeeded, or has failed for
// the first time: a libvirtd that is down is no error, and is tried again until
// Close. It fails only for a configuration that can never work.
func Open(ctx context.Context, c Config) (*Host, error) {
	if c.URI == "" || !filepath.IsAbs(c.ConfigDir) || c.Images == nil || c.Logger == nil {
		return nil, errors.New("cannot use libvirt: URI, ConfigDir (absolute), Images and Logger are required")
	}
	if err := startLoop(); err != nil {
		return nil, fmt.Errorf("cannot use libvirt: %w", err)
	}
	// It outlives the context of Open, which is about the first attempt only.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	h := &Host{
		Images: c.Images, uri: c.URI, configDir: c.ConfigDir, profiles: profileDir, log: c.Logger,
		events: feed.New(), stop: stop,
	}
	tried := make(chan struct{})
	h.ended.Go(func() { h.events.Deliver(background) })
	h.ended.Go(func() { h.keepConnected(background, tried) })
	late := time.NewTimer(firstAnswer)
	defer late.Stop()
	select {
	case <-tried:
	case <-late.C:
	case <-ctx.Done():
	}
	return h, nil
}

// Close gives up the connection and ends Events. Guests and jobs are left alone.
func (h *Host) Close() error {
	h.mu.Lock()
	// First, so that no call enters while those under way are waited for.
	h.closed = true
	h.mu.Unlock()
	h.stop()
	ended := make(chan struct{})
	go func() {
		h.ended.Wait()
		close(ended)
	}()
	late := time.NewTimer(closeWithin)
	defer late.Stop()
	select {
	case <-ended:
	case <-late.C:
		h.log.Warn("libvirt still holds a call; its connection is given up when that returns")
	}
	return nil
}

// Events delivers what happens on the host, until Close.
func (h *Host) Events() <-chan hypervisor.Event { return h.events.Events() }

// Info tells versions.
func (h *Host) Info(ctx context.Context) (hypervisor.Info, error) {
	info, err := call(ctx, h, reading, "", func(c *libvirt.Connect) (hypervisor.Info, error) {
		name, err := c.GetHostname()
		if err != nil {
			return hypervisor.Info{}, err
		}
		daemon, err := c.GetLibVersion()
		if err != nil {
			return hypervisor.Info{}, err
		}
		qemu, err := c.GetVersion()
		if err != nil {
			return hypervisor.Info{}, err
		}
		return hypervisor.Info{Hostname: name, LibvirtVersion: version(daemon), HypervisorVersion: version(qemu)}, nil
	})
	if err != nil {
		return hypervisor.Info{}, fmt.Errorf("cannot read libvirt's version: %w", err)
	}
	return info, nil
}

// version writes libvirt's way of numbering versions in the usual way.
func version(v uint32) string {
	return fmt.Sprintf("%d.%d.%d", v/1_000_000, v/1_000%1_000, v%1_000)
}
