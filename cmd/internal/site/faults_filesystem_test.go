package site_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// volume is a small file system of a test's own, to be filled, broken and
// healed. It is unmounted when the test ends.
type volume struct {
	t *testing.T
	// dir is where it is mounted; image is the ext4 in it, "" for a tmpfs.
	dir, image string
	mounted    bool
}

// newVolume mounts a file system of so many MiB on dir: ext4, or tmpfs.
func newVolume(t *testing.T, kind, dir string, mib int) *volume {
	t.Helper()
	v := &volume{t: t, dir: dir}
	t.Cleanup(v.unmount)
	if kind == "tmpfs" {
		v.check(unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=700", mib)))
		v.mounted = true
		return v
	}
	v.image = filepath.Join(t.TempDir(), "volume")
	v.check(os.WriteFile(v.image, nil, 0o600))
	v.check(os.Truncate(v.image, int64(mib)<<20))
	v.tool(
		"mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0",
		v.image,
	)
	v.mount()
	return v
}

func (v *volume) check(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
}

func (v *volume) tool(program string, args ...string) {
	v.t.Helper()
	(&host{t: v.t}).tool(program, args...)
}

// reboot mounts an ext4 that has failed again. From a copy: a lab that started
// meanwhile still has the failed one in its mount namespace.
func (v *volume) reboot() {
	v.t.Helper()
	v.unmount()
	v.tool("cp", "--sparse=always", v.image, v.image+"+")
	v.image += "+"
	v.mount()
}

func (v *volume) mount() {
	v.t.Helper()
	v.tool("mount", "-t", "ext4", "-o", "loop", v.image, v.dir)
	v.mounted = true
}

func (v *volume) unmount() {
	v.t.Helper()
	if !v.mounted {
		return
	}
	v.mounted = false
	if err := unix.Unmount(v.dir, 0); err != nil {
		v.t.Errorf("%s: %v", v.dir, errors.Join(err, unix.Unmount(v.dir, unix.MNT_DETACH)))
	}
}

// free is how many bytes are free.
func (v *volume) free() int64 {
	v.t.Helper()
	var s unix.Statfs_t
	v.check(unix.Statfs(v.dir, &s))
	return int64(s.Bavail) * s.Bsize
}

// fill leaves so many bytes free, with a file of somebody else.
func (v *volume) fill(left int64) {
	v.t.Helper()
	f, err := os.OpenFile(v.filler(), os.O_CREATE|os.O_WRONLY, 0o600)
	v.check(err)
	defer f.Close()
	for page := make([]byte, 4096); v.free() > left; {
		_, err := f.Write(page)
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		v.check(err)
	}
	v.check(f.Sync())
}

// empty takes back what fill did.
func (v *volume) empty() { v.t.Helper(); v.check(os.Remove(v.filler())) }

func (v *volume) filler() string { return filepath.Join(v.dir, "filler") }

// ext4Shutdown is EXT4_IOC_SHUTDOWN, and noLogFlush its way to lose what is not
// yet in the journal.
const (
	ext4Shutdown = 0x8004587d
	noLogFlush   = 2
)

// abort makes an ext4 answer everything with EIO, as when its device is gone.
func (v *volume) abort() {
	v.t.Helper()
	dir, err := os.Open(v.dir)
	v.check(err)
	defer dir.Close()
	v.check(unix.IoctlSetPointerInt(int(dir.Fd()), ext4Shutdown, noLogFlush))
}
