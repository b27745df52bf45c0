package hostfile

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestWhatIsNoFile: whatever a configured path leads to, it is read or refused, and the
// reason names it.
func TestWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, syscall.Mkfifo(at("fifo"), 0o600))
	must(t, os.Mkdir(at("directory"), 0o700))
	must(t, os.Symlink("loop", at("loop")))
	must(t, os.Symlink("there", at("here")))
	must(t, os.Symlink("here", at("there")))
	must(t, os.Symlink("fifo", at("linked fifo")))
	must(t, os.Symlink("none", at("dangling")))
	socket, err := net.Listen("unix", at("socket"))
	must(t, err)
	defer socket.Close()
	must(t, os.WriteFile(at("long"), nil, 0o600))
	must(t, os.Truncate(at("long"), 4<<30))
	must(t, os.WriteFile(at("file"), []byte("text"), 0o600))
	must(t, os.Symlink(at("file"), at("linked file")))
	for name, says := range map[string]string{
		at("fifo"): "a FIFO", at("linked fifo"): "a FIFO", at("directory"): "a directory", at("socket"): "a socket",
		"/dev/zero": "a device", "/dev/null": "a device", at("loop"): "too many levels", at("here"): "too many levels",
		at("long"): "longer than 4 MiB", at("dangling"): "no such file", at("file") + "/x": "not a directory",
		"": "no such file",
	} {
		text, err := Read(t.Context(), name, Anyones)
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %d bytes, %v", name, len(text), err)
		}
	}
	for _, name := range []string{"file", "linked file"} {
		if text, err := Read(t.Context(), at(name), Secret); err != nil || string(text) != "text" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
}

// TestWhoMayChangeIt: the file itself and each directory by which it is reached, and the
// command that the error tells puts it right.
func TestWhoMayChangeIt(t *testing.T) {
	const nobody = 65534
	type place struct{ dir, link, file string }
	for name, c := range map[string]struct {
		do    func(place) error
		guard Guard
		says  string // "": it is let through
	}{
		"everybody writes":         {func(p place) error { return os.Chmod(p.file, 0o666) }, Trusted, "chmod go-w -- "},
		"the group writes":         {func(p place) error { return os.Chmod(p.file, 0o620) }, Trusted, "chmod go-w -- "},
		"everybody reads":          {func(p place) error { return os.Chmod(p.file, 0o644) }, Trusted, ""},
		"everybody reads a secret": {func(p place) error { return os.Chmod(p.file, 0o604) }, Secret, "chmod g-w,o= -- "},
		"the group reads a secret": {func(p place) error { return os.Chmod(p.file, 0o640) }, Secret, ""},
		"everybody runs a secret":  {func(p place) error { return os.Chmod(p.file, 0o601) }, Secret, "chmod g-w,o= -- "},
		"my secret":                {func(p place) error { return os.Chmod(p.file, 0o644) }, Mine, "chmod g-w,o= -- "},
		"nobody's":                 {func(p place) error { return os.Chown(p.file, nobody, 0) }, Trusted, "chown 0 -- "},
		"nobody's secret":          {func(p place) error { return os.Chown(p.file, nobody, 0) }, Mine, "chown 0 -- "},
		"anyone's":                 {func(p place) error { return os.Chown(p.file, nobody, 0) }, Anyones, ""},
		"directory":                {func(p place) error { return os.Chmod(p.dir, 0o777) }, Trusted, "chmod go-w -- "},
		"sticky directory":         {func(p place) error { return os.Chmod(p.dir, 0o777|fs.ModeSticky) }, Trusted, ""},
		"directory of a group": {func(p place) error {
			return errors.Join(os.Chown(p.dir, 0, 100), os.Chmod(p.dir, 0o775))
		}, Trusted, "chmod go-w -- "},
		"directory of root's group":     {func(p place) error { return os.Chmod(p.dir, 0o775) }, Trusted, ""},
		"nobody's directory":            {func(p place) error { return os.Chown(p.dir, nobody, 0) }, Trusted, "chown 0 -- "},
		"directory of the link":         {func(p place) error { return os.Chmod(filepath.Dir(p.link), 0o777) }, Trusted, "chmod go-w -- "},
		"not our business in the CLI's": {func(p place) error { return os.Chmod(p.dir, 0o777) }, Mine, ""},
	} {
		top := t.TempDir()
		p := place{dir: filepath.Join(top, "it's one", "two"), link: filepath.Join(top, "links", "file")}
		p.file = filepath.Join(p.dir, "file")
		must(t, errors.Join(os.MkdirAll(p.dir, 0o755), os.Mkdir(filepath.Join(top, "links"), 0o755)))
		must(t, os.WriteFile(p.file, nil, 0o600))
		must(t, os.Symlink("../it's one/./two//../two/file", p.link))
		must(t, c.do(p))
		for what, judge := range map[string]func() error{
			"judged": func() error { return Judge(t.Context(), p.link, c.guard) },
			"read":   func() error { _, err := Read(t.Context(), p.link, c.guard); return err },
		} {
			err := judge()
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
		unsafe, ok := errors.AsType[*Unsafe](Judge(t.Context(), p.link, c.guard))
		if !ok {
			continue
		}
		_, command, _ := strings.Cut(unsafe.Error(), "put it right with: ")
		must(t, exec.CommandContext(t.Context(), "sh", "-c", command).Run())
		if err := Judge(t.Context(), p.link, c.guard); err != nil {
			t.Errorf("%s, after %s: %v", name, command, err)
		}
	}
}

// TestNothingIsWaitedFor: a file that never tells anything costs Within once, however often
// it is asked for, and nothing when the caller gives up.
func TestNothingIsWaitedFor(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	asked, hangs := 0, make(chan struct{})
	defer close(hangs)
	ask := func() (int, error) { asked++; <-hangs; return 0, nil }
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if _, err := within(stopped, path, "read", Anyones, ask); !errors.Is(err, context.Canceled) {
		t.Errorf("a stop waits: %v", err)
	}
	for range 2 {
		if _, err := within(t.Context(), path, "read", Anyones, ask); !errors.Is(err, ErrSilent) ||
			!strings.Contains(err.Error(), path) {
			t.Errorf("%v", err)
		}
	}
	if asked != 1 {
		t.Errorf("%d calls hang", asked)
	}
}
