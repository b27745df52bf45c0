// Package rights gives a file that is made beside a disk's image the rights of that image:
// whoever may use the one may use the other, and nobody else may (FAULTS.md row 36). Where
// libvirt does not change owners (dynamic_ownership = 0), QEMU opens what it is given with
// the rights that the file has. What everybody may do with an image is never passed on:
// libvirt's own overlays were readable by all (CVE-2025-13193).
package rights

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	aclName   = "system.posix_acl_access"
	labelName = "security.selinux"
)

// Rights are who may use a file.
type Rights struct {
	UID, GID uint32
	// Mode is the permission bits, without those of everybody.
	Mode fs.FileMode
	// ACL names users and groups beside owner and group, as setfacl --set reads it; ""
	// when there is none.
	ACL string

	acl   []byte
	label []byte // SELinux's
}

// Of reads the rights of a file.
func Of(path string) (Rights, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Rights{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	r := Rights{UID: st.Uid, GID: st.Gid, Mode: fs.FileMode(st.Mode) & 0o770}
	acl, err := attribute(path, aclName)
	if err != nil {
		return r, err
	}
	if r.label, err = attribute(path, labelName); err != nil || acl == nil {
		return r, err
	}
	r.acl, r.ACL, err = withoutOthers(acl)
	if err != nil {
		return r, fmt.Errorf("the access control list of %s: %w", path, err)
	}
	return r, nil
}

// Give gives a file that was made just now these rights, in an order in which nobody has
// a right for a moment who shall have none: a new file may come with entries of its
// directory's default list, which a mode would bring to life.
func (r Rights) Give(file *os.File) error {
	fd := int(file.Fd())
	if err := unix.Fremovexattr(fd, aclName); err != nil && !absent(err) {
		return r.failed(file, err)
	}
	if err := file.Chmod(0o600); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return r.failed(file, err)
	}
	if st.Uid != r.UID || st.Gid != r.GID {
		if err := file.Chown(int(r.UID), int(r.GID)); err != nil {
			return err
		}
	}
	if err := r.giveLabel(file); err != nil {
		return err
	}
	if err := file.Chmod(r.Mode); err != nil { // the umask may have taken bits away
		return err
	}
	if r.acl == nil {
		return nil
	}
	if err := unix.Fsetxattr(fd, aclName, r.acl, 0); err != nil {
		return r.failed(file, err)
	}
	return nil
}

// giveLabel does so where the image has a label that a new file of its directory does not
// get by itself.
func (r Rights) giveLabel(file *os.File) error {
	have, err := attribute(file.Name(), labelName)
	if err != nil || r.label == nil || bytes.Equal(have, r.label) {
		return err
	}
	if err := unix.Fsetxattr(int(file.Fd()), labelName, r.label, 0); err != nil {
		return r.failed(file, err)
	}
	return nil
}

func (r Rights) failed(file *os.File, err error) error {
	return &fs.PathError{Op: "give rights to", Path: file.Name(), Err: err}
}

// Same reports whether two files may be used by the same.
func (r Rights) Same(other Rights) bool {
	return r.UID == other.UID && r.GID == other.GID && r.Mode == other.Mode && r.ACL == other.ACL &&
		bytes.Equal(r.label, other.label)
}

// absent reports that a file has no such attribute, or its file system none at all.
func absent(err error) bool { return errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) }

// attribute reads an extended attribute; nil when there is none.
func attribute(path, name string) ([]byte, error) {
	const most = 64 << 10 // Linux's own bound
	value := make([]byte, most)
	n, err := unix.Getxattr(path, name, value)
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "getxattr " + name, Path: path, Err: err}
	}
	return value[:n], nil
}

// Linux, include/uapi/linux/posix_acl_xattr.h: a version, then entries of tag,
// permissions and id.
const (
	aclVersion = 2
	aclHeader  = 4
	aclEntry   = 8
	aclOther   = 0x20
)

// aclTags are the entries as setfacl names them.
var aclTags = map[uint16]string{1: "u:", 2: "u", 4: "g:", 8: "g", 0x10: "m:", aclOther: "o:"}

// withoutOthers returns a list in which everybody else may do nothing, also as text.
func withoutOthers(acl []byte) (list []byte, text string, err error) {
	if len(acl) < aclHeader || binary.LittleEndian.Uint32(acl) != aclVersion || (len(acl)-aclHeader)%aclEntry != 0 {
		return nil, "", errors.New("it is of an unknown form")
	}
	list = bytes.Clone(acl)
	var entries []string
	for e := list[aclHeader:]; len(e) > 0; e = e[aclEntry:] {
		tag := binary.LittleEndian.Uint16(e)
		if tag == aclOther {
			binary.LittleEndian.PutUint16(e[2:], 0)
		}
		name, known := aclTags[tag]
		if !known {
			return nil, "", fmt.Errorf("it has an entry of the unknown kind %#x", tag)
		}
		if tag == 2 || tag == 8 {
			name += fmt.Sprintf(":%d", binary.LittleEndian.Uint32(e[4:]))
		}
		entries = append(entries, name+":"+permissions(binary.LittleEndian.Uint16(e[2:])))
	}
	return list, strings.Join(entries, ","), nil
}

func permissions(bits uint16) string {
	text := []byte("rwx")
	for i := range text {
		if bits&(4>>i) == 0 {
			text[i] = '-'
		}
	}
	return string(text)
}
