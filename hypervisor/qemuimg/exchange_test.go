package qemuimg

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor"
)

// Flags of lsattr (Linux, fs.h).
const (
	fsImmutable = 0x10
	fsAppend    = 0x20
)

// answer lets the system call answer as on another file system, and does nothing.
func answer(t *testing.T, err error) {
	t.Helper()
	real := renameat2
	t.Cleanup(func() { renameat2 = real })
	renameat2 = func(int, string, int, string, uint) error { return err }
}

// attributes sets what lsattr shows of a file, until the test is over.
func attributes(t *testing.T, path string, flags int) {
	t.Helper()
	turn := func(on bool) {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		have, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil {
			t.Fatal(err)
		}
		if have &^= flags; on {
			have |= flags
		}
		if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, have); err != nil {
			t.Fatal(err)
		}
	}
	turn(true)
	t.Cleanup(func() { turn(false) })
}

// TestTryExchange (FAULTS.md row 34): what an exchange would meet is found without one, and
// nothing is left behind.
func TestTryExchange(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, dir, path string)
		want  error
	}{
		{"as it should be", func(*testing.T, string, string) {}, nil},
		{"NFS", func(t *testing.T, _, _ string) { answer(t, unix.EINVAL) }, hypervisor.ErrUnsupported},
		{"an old kernel", func(t *testing.T, _, _ string) { answer(t, unix.ENOSYS) }, hypervisor.ErrUnsupported},
		{"FUSE", func(t *testing.T, _, _ string) { answer(t, unix.EOPNOTSUPP) }, hypervisor.ErrUnsupported},
		{"one that says yes and does nothing", func(t *testing.T, _, _ string) { answer(t, nil) }, hypervisor.ErrUnsupported},
		{"the file of another in a sticky directory", func(t *testing.T, _, _ string) { answer(t, unix.EPERM) }, hypervisor.ErrDenied},
		{"over quota", func(t *testing.T, _, _ string) { answer(t, unix.EDQUOT) }, hypervisor.ErrNoSpace},
		{"read-only", func(t *testing.T, dir, _ string) {
			t.Cleanup(func() {
				if err := unix.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			})
			if err := errors.Join(unix.Mount(dir, dir, "", unix.MS_BIND, ""),
				unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")); err != nil {
				t.Fatal(err)
			}
		}, syscall.EROFS},
		{"an immutable directory", func(t *testing.T, dir, _ string) { attributes(t, dir, fsImmutable) }, hypervisor.ErrDenied},
		{"an immutable file", func(t *testing.T, _, path string) { attributes(t, path, fsImmutable) }, hypervisor.ErrDenied},
		{"a file to append to", func(t *testing.T, _, path string) { attributes(t, path, fsAppend) }, hypervisor.ErrDenied},
		{"gone", func(t *testing.T, _, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, os.ErrNotExist},
		{"what an earlier try has left", func(t *testing.T, dir, _ string) {
			// The name of the file "overlay", by its hash.
			for _, left := range []string{".0", ".1"} {
				if err := os.WriteFile(filepath.Join(dir, ".vpssnap-probe-b4b33d244164"+left), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			images, dir := open(t), t.TempDir()
			path := filepath.Join(dir, "overlay")
			writeBase(t, path, 1, 'a')
			c.spoil(t, dir, path)
			before := list(t, dir)
			if c.name == "what an earlier try has left" {
				before = []string{"overlay"}
			}
			err := images.TryExchange(t.Context(), path)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if after := list(t, dir); len(after) != len(before) {
				t.Errorf("the directory held %v and holds %v", before, after)
			}
			if c.want == hypervisor.ErrUnsupported {
				if err := images.Exchange(t.Context(), path, path); c.name != "one that says yes and does nothing" &&
					!errors.Is(err, c.want) {
					t.Errorf("the exchange itself: %v", err)
				}
			}
		})
	}
}
