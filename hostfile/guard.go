package hostfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Guard is what others than root and the user of this process may do to a file.
type Guard struct {
	// forbidden are the bits of the mode that must not be set.
	forbidden fs.FileMode
	// owned: it must belong to root or to us.
	owned bool
	// way: nobody else may put another file there, so its directories are judged too.
	way bool
}

var (
	// Anyones: whoever can may read and change it.
	Anyones = Guard{}
	// Mine is for secrets of whoever calls a program: only the user and the group of the
	// file may read it.
	Mine = Guard{forbidden: 0o027, owned: true}
	// Trusted is for what a daemon believes: others may read it.
	Trusted = Guard{forbidden: 0o022, owned: true, way: true}
	// Secret is for what a daemon keeps to itself: only its group may read it.
	Secret = Guard{forbidden: 0o027, owned: true, way: true}
)

// Unsafe is a file, or a directory on the way to it, that others can change or read.
type Unsafe struct {
	// Path is what has to be changed.
	Path string
	// Why says what is wrong with it.
	Why string
	// Cure is the command that puts it right.
	Cure []string
}

func (u *Unsafe) Error() string {
	words := make([]string, len(u.Cure))
	for i, word := range u.Cure {
		words[i] = quote(word)
	}
	return fmt.Sprintf("%s is not safe: %s; put it right with: %s", u.Path, u.Why, strings.Join(words, " "))
}

// quote writes a word for a POSIX shell.
func quote(word string) string {
	plain := func(r rune) bool {
		return strings.ContainsRune("_@%+=:,./-", r) || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
	}
	if strings.IndexFunc(word, func(r rune) bool { return !plain(r) }) < 0 {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// judge looks at the file, or at what an open one told of itself, and at the way to it.
func (g Guard) judge(path string, info fs.FileInfo) (err error) {
	if info == nil {
		if info, err = os.Stat(path); err != nil {
			return err
		}
	}
	if !info.Mode().IsRegular() && !info.IsDir() {
		return &fs.PathError{Op: "use", Path: path, Err: fmt.Errorf("it is %s, no regular file", kindOf(info.Mode()))}
	}
	if g.way {
		if err := judgeWay(path); err != nil {
			return err
		}
	}
	if info.IsDir() {
		return judgeDirectory(path, info)
	}
	if err := g.judgeOwner(path, info); err != nil {
		return err
	}
	return judgeMode(path, info.Mode(), g.forbidden)
}

func (g Guard) judgeOwner(path string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	us := os.Geteuid()
	if !g.owned || !ok || stat.Uid == 0 || int(stat.Uid) == us {
		return nil
	}
	return &Unsafe{Path: path, Why: fmt.Sprintf("it belongs to the user %d", stat.Uid),
		Cure: []string{"chown", fmt.Sprint(us), "--", path}}
}

func judgeMode(path string, mode, forbidden fs.FileMode) error {
	wrong := mode.Perm() & forbidden
	if wrong == 0 {
		return nil
	}
	can := "write to it"
	if wrong&0o022 == 0 {
		can = "read it"
	}
	return &Unsafe{Path: path, Why: fmt.Sprintf("others may %s (mode %04o)", can, mode.Perm()),
		Cure: []string{"chmod", takeAway(forbidden), "--", path}}
}

// takeAway is the change of a mode that removes the forbidden bits.
func takeAway(forbidden fs.FileMode) string {
	if forbidden&0o007 == 0o007 {
		return "g-w,o="
	}
	return "go-w"
}

// maxLinks is how many symbolic links the kernel follows on one path.
const maxLinks = 40

// judgeWay judges every directory in which a name of the path lies, of links and of what
// they lead to: whoever can write to one of them can put another file there.
func judgeWay(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	at, todo, links := "/", strings.Split(path, "/"), 0
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		info, err := os.Lstat(at)
		if err == nil {
			err = judgeDirectory(at, info)
		}
		if err != nil {
			return err
		}
		next := filepath.Join(at, name)
		target, err := os.Readlink(next)
		if errors.Is(err, syscall.EINVAL) { // it is no link
			at = next
			continue
		}
		if err != nil {
			return err
		}
		if links++; links > maxLinks {
			return &fs.PathError{Op: "follow", Path: path, Err: syscall.ELOOP}
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return nil
}

// judgeDirectory judges a directory in which somebody could exchange a name. In one with
// the sticky bit, as /tmp, they can exchange their own only; and root's group is root's.
func judgeDirectory(dir string, info fs.FileInfo) error {
	if err := (Guard{owned: true}).judgeOwner(dir, info); err != nil {
		return err
	}
	forbidden := fs.FileMode(0o022)
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Gid == 0 {
		forbidden = 0o002
	}
	if info.Mode()&fs.ModeSticky != 0 {
		return nil
	}
	return judgeMode(dir, info.Mode(), forbidden)
}
