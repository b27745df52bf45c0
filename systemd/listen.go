package systemd

import (
	"errors"
	"fmt"
	"net"

	"github.com/coreos/go-systemd/v22/activation"
)

// The names of the sockets that systemd may pass (FileDescriptorName= in *.socket).
const (
	SocketUnix = "unix"
	SocketTCP  = "tcp"
)

// Listeners returns the sockets that systemd has opened for us, by name. It hands
// them out once.
func Listeners() (map[string]net.Listener, error) {
	passed := map[string]net.Listener{}
	var errs []error
	// true: children (qemu-img) must not inherit the hint to take sockets.
	for _, file := range activation.Files(true) {
		name := file.Name()
		// It duplicates the descriptor, so ours is closed.
		l, err := net.FileListener(file)
		file.Close()
		switch {
		case err != nil:
			err = fmt.Errorf("cannot use the socket %q that systemd passes: %w", name, err)
		case name != SocketUnix && name != SocketTCP:
			err = errors.Join(
				fmt.Errorf("systemd passes a socket %q: FileDescriptorName= must be %s or %s", name, SocketUnix, SocketTCP),
				l.Close(),
			)
		case passed[name] != nil:
			err = errors.Join(fmt.Errorf("systemd passes two sockets %q: one is enough", name), l.Close())
		default:
			passed[name] = l
		}
		errs = append(errs, err)
	}
	return passed, errors.Join(errs...)
}
