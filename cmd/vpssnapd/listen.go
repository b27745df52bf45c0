package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

type listeners struct{ unix, tcp net.Listener }

// listen opens the Unix socket and, if configured, the TCP port.
func listen(c config) (listeners, error) {
	var l listeners
	var err error
	if l.unix, err = listenUnix(c.Socket); err != nil {
		return l, fmt.Errorf("cannot listen on %s: %w", c.Socket, err)
	}
	if c.Listen == "" {
		return l, nil
	}
	if l.tcp, err = net.Listen("tcp", c.Listen); err != nil {
		return l, errors.Join(fmt.Errorf("cannot listen on %s: %w", c.Listen, err), l.unix.Close())
	}
	return l, nil
}

// listenUnix opens the socket. One left by a daemon that was killed is removed:
// the lock on the state directory has proved by now that nobody serves it.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // the socket in it is for all
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("it exists and is no socket")
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
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
