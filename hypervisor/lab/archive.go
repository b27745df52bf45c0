package lab

import (
	"bytes"
	"fmt"
	"io/fs"
	"syscall"
)

// archive is an initramfs being written, in cpio's "newc" format.
type archive struct {
	bytes.Buffer
	inode int
}

func (a *archive) dir(name string) {
	a.add(name, syscall.S_IFDIR|0o755, nil, 0, 0)
}

func (a *archive) file(name string, mode fs.FileMode, data []byte) {
	a.add(name, syscall.S_IFREG|uint32(mode.Perm()), data, 0, 0)
}

func (a *archive) charDevice(name string, major, minor int) {
	a.add(name, syscall.S_IFCHR|0o600, nil, major, minor)
}

// end returns the finished archive.
func (a *archive) end() []byte {
	a.add("TRAILER!!!", 0, nil, 0, 0)
	return a.Bytes()
}

func (a *archive) add(name string, mode uint32, data []byte, major, minor int) {
	a.inode++
	// inode mode uid gid links mtime size device(2) special-device(2) name-length checksum
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
	a.WriteString(name)
	a.WriteByte(0)
	a.align()
	a.Write(data)
	a.align()
}

func (a *archive) align() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}
