// Package pathname tells files apart: by device and inode, never by the text of a path. One
// file has many names, through links of either kind, bind mounts and detours such as //
// and /x/../, and a VPS was started on the frozen base of its snapshot by another of them
// (FAULTS row 33). It looks at names and changes nothing, and no look hangs for ever.
package pathname

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ID is the file that a name leads to or, where there is none, the place for it: the
// directory and the name in it.
type ID struct {
	device, inode uint64
	missing       string
}

// Of tells what a name leads to now. ok is false when that cannot be told: it is relative,
// its directory is missing, or the file system does not answer.
func Of(path string) (id ID, ok bool) {
	if !filepath.IsAbs(path) {
		return id, false
	}
	st, err := stat(path)
	if err == nil {
		return ID{device: st.Dev, inode: st.Ino}, true
	}
	dir, name := filepath.Split(path)
	if !errors.Is(err, fs.ErrNotExist) || name == "" || name == "." || name == ".." {
		return id, false
	}
	if st, err = stat(dir); err != nil {
		return id, false
	}
	return ID{device: st.Dev, inode: st.Ino, missing: name}, true
}

// Same reports whether two names lead to one file, or to one place where none lies. Where
// that cannot be told, names without detours say it.
func Same(a, b string) bool {
	if a == "" || b == "" {
		return false
	}
	alike := filepath.Clean(a) == filepath.Clean(b)
	if alike && !goesBack(a) && !goesBack(b) {
		return true // and no file system needs to be asked
	}
	one, ok1 := Of(a)
	other, ok2 := Of(b)
	if ok1 && ok2 {
		return one == other
	}
	return ok1 == ok2 && alike
}

// goesBack reports whether a name has an element "..", which leads to the parent of what
// the link before it names, so that nobody can tell by the text where it ends.
func goesBack(path string) bool { return slices.Contains(strings.Split(path, "/"), "..") }

// Plain is another name of the same file, without detours, as it is put on record.
// Symbolic links stay, unless ".." follows one.
func Plain(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%q is not an absolute path", path)
	}
	if !goesBack(path) {
		return filepath.Clean(path), nil
	}
	dir, name := filepath.Split(path)
	if name == "" || name == "." || name == ".." {
		return "", fmt.Errorf("%q does not name a file", path)
	}
	real, err := Look(context.Background(), dir, func() (string, error) { return filepath.EvalSymlinks(dir) })
	return filepath.Join(real, name), err
}

// Real is the name of a file without any symbolic link in it.
func Real(path string) (string, error) {
	return Look(context.Background(), filepath.Dir(path), func() (string, error) { return filepath.EvalSymlinks(path) })
}

// Kind is what lies under a name.
type Kind string

const (
	Regular         Kind = "regular file"
	Directory       Kind = "directory"
	BlockDevice     Kind = "block device"
	CharacterDevice Kind = "character device"
	Pipe            Kind = "named pipe"
	Socket          Kind = "socket"
)

var kinds = map[fs.FileMode]Kind{
	0: Regular, fs.ModeDir: Directory, fs.ModeDevice: BlockDevice, fs.ModeDevice | fs.ModeCharDevice: CharacterDevice,
	fs.ModeNamedPipe: Pipe, fs.ModeSocket: Socket,
}

// KindOfMode is the kind that a file's mode tells.
func KindOfMode(mode fs.FileMode) Kind { return kinds[mode.Type()] }

// KindOf tells what a name leads to, without opening it: a named pipe would keep whoever
// opens it waiting for its other end, and a device may act on being opened.
func KindOf(path string) (Kind, error) {
	info, err := Look(context.Background(), filepath.Dir(path), func() (fs.FileInfo, error) { return os.Stat(path) })
	if err != nil {
		return "", err
	}
	return KindOfMode(info.Mode()), nil
}

// stat follows symbolic links.
func stat(path string) (unix.Stat_t, error) {
	return Look(context.Background(), filepath.Dir(path), func() (st unix.Stat_t, err error) {
		return st, unix.Stat(path, &st)
	})
}
