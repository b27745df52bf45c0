package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// On is a lab on the libvirtd of a host that runs already, as a container with
// systemd: the guests are those of any lab, but libvirtd is nothing that the lab
// starts, kills or ends. Images and consoles lie in dir, and what Build makes in
// dir/guest. dir has the same path on that host; the users as whom its guests run
// may make their sockets in it.
func On(socket, dir string) (*Lab, error) {
	l := &Lab{dir: dir, foreign: socket, cacheDir: filepath.Join(dir, "guest")}
	if err := errors.Join(l.settlePaths(), l.makeOpenDirs()); err != nil {
		return nil, fmt.Errorf("cannot use %s for guests: %w", dir, err)
	}
	return l, nil
}

func (l *Lab) makeOpenDirs() error {
	sockets := filepath.Join(l.dir, "sock")
	for _, dir := range []string{l.imageDir, l.consoleDir(), sockets} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return os.Chmod(sockets, 0o777) //nolint:gosec // QEMU is another user there
}
