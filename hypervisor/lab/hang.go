package lab

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// HangDirectory mounts a file system on dir that never answers, as an NFS mount whose
// server is gone: it is served through FUSE, by nobody. answer takes it away again. The
// calls that hang in it then fail, and what was in dir before is seen again.
func HangDirectory(dir string) (answer func() error, err error) {
	server, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot make %s hang: %w", dir, err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server.Fd())
	if err := unix.Mount("hung", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make %s hang: %w", dir, err), server.Close())
	}
	return func() error {
		return errors.Join(unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH), server.Close())
	}, nil
}
