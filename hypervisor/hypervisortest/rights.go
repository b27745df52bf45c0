package hypervisortest

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Entries of an access control list (Linux, posix_acl_xattr.h): tag and permissions; a
// named user's id.
type aclEntry struct {
	tag, perm uint16
	id        uint32
}

const nobodyNamed = ^uint32(0)

// acl is a list that lets the user 4713 do what named says, and everybody what others says.
func acl(owner, named, mask, others uint16) []byte {
	list := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []aclEntry{
		{1, owner, nobodyNamed}, {2, named, 4713}, {4, 0, nobodyNamed}, {0x10, mask, nobodyNamed}, {0x20, others, nobodyNamed},
	} {
		list = binary.LittleEndian.AppendUint16(list, e.tag)
		list = binary.LittleEndian.AppendUint16(list, e.perm)
		list = binary.LittleEndian.AppendUint32(list, e.id)
	}
	return list
}

// sameRights (FAULTS.md row 36): who may use a base may use what is made beside it, nobody
// else may, and a directory adds nothing.
func sameRights(s *suite) {
	g := s.written("qcow2")
	image, err := os.ReadFile(g.disk("vda").Path)
	s.must(err)
	for n, c := range []struct {
		name     string
		base     os.FileMode
		list     []byte // of the base
		inherits []byte // from the directory
		mode     os.FileMode
		acl      string
	}{
		{"one's own", 0o600, nil, nil, 0o600, ""},
		{"a group that reads", 0o640, nil, nil, 0o640, ""},
		{"a group", 0o660, nil, nil, 0o660, ""},
		{"everybody reads", 0o644, nil, nil, 0o640, ""},
		{"everybody", 0o666, nil, nil, 0o660, ""},
		{"everything", 0o777, nil, nil, 0o770, ""},
		{"only everybody", 0o606, nil, nil, 0o600, ""},
		{"a named user", 0o600, acl(6, 6, 6, 0), nil, 0o660, "u::rw-,u:4713:rw-,g::---,m::rw-,o::---"},
		{"a named user who reads", 0o600, acl(6, 4, 4, 0), nil, 0o640, "u::rw-,u:4713:r--,g::---,m::r--,o::---"},
		{"a named user and everybody", 0o600, acl(6, 6, 6, 6), nil, 0o660, "u::rw-,u:4713:rw-,g::---,m::rw-,o::---"},
		{"a generous directory", 0o600, nil, acl(7, 7, 7, 7), 0o600, ""},
		{"a generous directory and a group", 0o660, nil, acl(7, 7, 7, 7), 0o660, ""},
		{"two lists", 0o600, acl(6, 4, 4, 0), acl(7, 7, 7, 7), 0o640, "u::rw-,u:4713:r--,g::---,m::r--,o::---"},
	} {
		dir := g.path(fmt.Sprintf("rights%d", n))
		s.must(os.Mkdir(dir, 0o755))
		base := filepath.Join(dir, "base")
		s.must(os.WriteFile(base, image, 0o600))
		s.must(os.Chmod(base, c.base))
		if os.Getuid() == 0 {
			s.must(os.Chown(base, 4711, 4712))
		}
		if c.list != nil {
			s.must(unix.Setxattr(base, "system.posix_acl_access", c.list, 0))
		}
		if c.inherits != nil {
			s.must(unix.Setxattr(dir, "system.posix_acl_default", c.inherits, 0))
		}
		s.overlay(filepath.Join(dir, "overlay"), base, "qcow2", diskSize)
		_, err := s.host().Copy(s.ctx, base, filepath.Join(dir, "copy"))
		s.must(err)
		want, err := s.host().Stat(s.ctx, base)
		s.must(err)
		for _, made := range []string{"overlay", "copy"} {
			info, err := os.Stat(filepath.Join(dir, made))
			s.must(err)
			file, err := s.host().Stat(s.ctx, filepath.Join(dir, made))
			s.must(err)
			owner, _ := info.Sys().(*syscall.Stat_t)
			if info.Mode() != c.mode || file.Mode != c.mode || file.ACL != c.acl || file.UID != want.UID || file.GID != want.GID ||
				owner.Uid != want.UID || owner.Gid != want.GID {
				s.Errorf("%s: the %s has mode %v, owner %d:%d and the list %q", c.name, made, info.Mode(), owner.Uid, owner.Gid,
					file.ACL)
			}
		}
	}
}

// tryExchange (FAULTS.md row 34) is asked of a disk in use, and must not be noticed by it.
func tryExchange(s *suite) {
	g := s.written("qcow2")
	g.start()
	path := g.take("snap")["vda"].overlay
	inode := s.inode(path)
	before, err := os.ReadDir(filepath.Dir(path))
	s.must(err)
	for range 2 {
		s.must(s.host().TryExchange(s.ctx, path))
	}
	after, err := os.ReadDir(filepath.Dir(path))
	s.must(err)
	if s.inode(path) != inode || len(after) != len(before) {
		s.Errorf("the directory had %d entries and has %d; inode %d became %d", len(before), len(after), inode, s.inode(path))
	}
	g.write("vda", mib, 0x61, mib)
	g.check()
	if err := s.host().TryExchange(s.ctx, g.path("gone")); err == nil {
		s.Error("what is not there could be exchanged")
	}
}
