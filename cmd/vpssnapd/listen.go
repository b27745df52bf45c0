package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vpssnapd/systemd"
)

type listeners struct{ unix, tcp net.Listener }

// listen takes the sockets that systemd passes, which no restart closes, and opens
// the others: the Unix socket and, if configured, the TCP port.
func listen(c config) (listeners, error) {
	passed, err := systemd.Listeners()
	// Sockets that systemd holds stay open over a restart: callers wait and see no
	// refusal.
	l := listeners{passed[systemd.SocketUnix], passed[systemd.SocketTCP]}
	if err == nil {
		err = errors.Join(c.agreesUnix(l.unix), c.agreesTCP(l.tcp))
	}
	if err == nil && l.unix == nil {
		l.unix, err = listenUnix(c.Socket)
	}
	if err == nil && l.tcp == nil && c.Listen != "" {
		l.tcp, err = listenTCP(c.Listen)
	}
	if err != nil {
		// All or none: a daemon that listens in one of two places looks healthy.
		return listeners{}, errors.Join(err, l.close())
	}
	return l, nil
}

func (l listeners) close() error {
	var errs []error
	for _, one := range []net.Listener{l.unix, l.tcp} {
		if one != nil {
			errs = append(errs, one.Close())
		}
	}
	return errors.Join(errs...)
}

// agreesUnix refuses a socket of systemd's at another place than everybody is told.
// Clients find the socket by its documented place.
func (c config) agreesUnix(l net.Listener) error {
	if l == nil || l.Addr().String() == c.Socket {
		return nil
	}
	return fmt.Errorf(
		"socket = %q, but systemd listens on %s: make ListenStream= of vpssnapd.socket the same", c.Socket, l.Addr(),
	)
}

// agreesTCP holds systemd's TCP socket to the rules of listen.
func (c config) agreesTCP(l net.Listener) error {
	if l == nil {
		return nil
	}
	if c.Listen != "" {
		return fmt.Errorf(
			"listen = %q, but systemd listens for us on %s: remove one of them, listen or vpssnapd-tcp.socket",
			c.Listen, l.Addr(),
		)
	}
	// As a copy, to hold the real address against the same rule.
	c.Listen = l.Addr().String()
	if err := c.checkListen(); err != nil {
		return fmt.Errorf("vpssnapd-tcp.socket: %w", err)
	}
	return nil
}

// listenTCP names a way out where the unit's sandbox forbids it, the usual cause on a
// packaged host.
func listenTCP(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf(
			"cannot listen on %s: the unit keeps vpssnapd off the network. Enable vpssnapd-tcp.socket instead, or allow it: systemctl edit vpssnapd, [Service], RestrictAddressFamilies=AF_INET AF_INET6",
			address,
		)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", address, err)
	}
	return l, nil
}

// listenUnix opens the socket. One left by a daemon that was killed is removed:
// the lock on the state directory has proved by now that nobody serves it.
func listenUnix(path string) (net.Listener, error) {
	l, err := openUnix(path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	return l, nil
}

func openUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // the socket in it is for all
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil {
		// Never anything else: the path may be misconfigured to a file of somebody.
		if info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("it exists and is no socket")
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// Between here and the chmod nobody but root gets in, by the umask of the unit.
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	// Anybody may connect; who may do what is decided by the caller's uid.
	if err := os.Chmod(path, 0o666); err != nil { //nolint:gosec // as the line above says
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
