package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"vpssnapd/daemon"
	"vpssnapd/hypervisor/lab"
)

// configured is a configuration with every file that one can name.
type configured struct {
	t    *testing.T
	dir  string
	path string
	config
}

func newConfigured(t *testing.T) *configured {
	t.Helper()
	ca, dir := newAuthority(t), t.TempDir()
	at := func(names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
	c := &configured{t: t, dir: dir, path: at("etc", "config.toml"), config: defaults()}
	for _, name := range []string{"etc", "tls", "mail", "templates", "state", "run"} {
		must(t, os.Mkdir(at(name), 0o755))
	}
	c.StateDir, c.Socket = at("state"), at("run", "api.sock")
	c.TLS = tlsFiles{Cert: at("tls", "tls.crt"), Key: at("tls", "tls.key"), ClientCA: at("tls", "clients.crt")}
	ca.write("server", c.TLS.Cert, c.TLS.Key)
	must(t, os.WriteFile(c.TLS.ClientCA, ca.pem, 0o600))
	c.Mail.Host, c.Mail.From, c.Mail.CA = "mail.example.org", "a@example.org", at("mail", "ca.crt")
	must(t, os.WriteFile(c.Mail.CA, ca.pem, 0o600))
	c.Mail.Username, c.Mail.PasswordFile, c.Mail.Templates = "u", at("mail", "password"), at("templates")
	must(t, os.WriteFile(c.Mail.PasswordFile, []byte("secret\n"), 0o600))
	must(t, os.WriteFile(at("templates", "option_activated.en.tmpl"),
		[]byte(`{{define "subject"}}yours{{end}}{{define "text"}}{{end}}{{define "html"}}{{end}}`), 0o600))
	for _, suffix := range []string{"", "-wal", "-shm"} {
		must(t, os.WriteFile(at("state", "vpssnapd.db")+suffix, []byte("x"), 0o600))
	}
	written, err := toml.Marshal(c.config)
	must(t, err)
	must(t, os.WriteFile(c.path, written, 0o600))
	return c
}

// files are all of them, with what each is for.
func (c *configured) named() map[string]string {
	return map[string]string{
		"configuration": c.path, "certificate": c.TLS.Cert, "key": c.TLS.Key, "CA of the clients": c.TLS.ClientCA,
		"CA of the mail server": c.Mail.CA, "password": c.Mail.PasswordFile,
		"template": filepath.Join(c.Mail.Templates, "option_activated.en.tmpl"),
		"database": filepath.Join(c.StateDir, "vpssnapd.db"), "log of the database": filepath.Join(c.StateDir, "vpssnapd.db-wal"),
		"index of the database": filepath.Join(c.StateDir, "vpssnapd.db-shm"),
	}
}

// ways are all by which the files are read: the check, a start, and a reload.
func (c *configured) ways(ctx context.Context) map[string]error {
	r := &reloader{path: c.path, level: new(slog.LevelVar), running: c.config, log: slog.New(slog.DiscardHandler),
		apply: func(daemon.Settings) { c.t.Error("a configuration that cannot be used counts") }, certificates: &certificates{}}
	_, read := readConfig(ctx, c.path)
	return map[string]error{
		"check": checkConfig(c.path), "start": errors.Join(read, r.readFiles(ctx)), "reload": r.reload(ctx),
	}
}

// TestFilesThatAreNone: whatever lies in the place of a configured file is refused by name,
// at the check, a start and a reload, and nothing waits for it.
func TestFilesThatAreNone(t *testing.T) {
	for how, put := range map[string]func(path string) error{
		"a FIFO":       func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a device":     func(path string) error { return os.Symlink("/dev/zero", path) },
		"a directory":  func(path string) error { return os.Mkdir(path, 0o755) },
		"a loop":       func(path string) error { return os.Symlink(filepath.Base(path), path) },
		"a socket":     func(path string) error { return socketAt(path) },
		"longer than":  func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 4<<30)) },
		"others may":   func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o666)) },
		"the user 650": func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, 650, 0)) },
	} {
		for what := range newConfigured(t).named() {
			c := newConfigured(t)
			path := c.named()[what]
			if strings.Contains(what, "database") && (how == "a directory" || how == "longer than") {
				continue // as long as it likes; and SQLite says what it thinks of a directory
			}
			must(t, os.Remove(path))
			must(t, put(path))
			for way, err := range c.ways(t.Context()) {
				says := strings.Replace(how, "a loop", "too many levels", 1)
				if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), path) {
					t.Errorf("%s in the place of the %s, %s: %v", how, what, way, err)
				}
			}
		}
	}
}

// socketAt makes a socket although its path may be longer than an address.
func socketAt(path string) error {
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s")})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return errors.Join(l.Close(), os.Rename(filepath.Join(dir, "s"), path))
}

// TestDirectoriesOfOthers: who can write to a directory can put another file there.
func TestDirectoriesOfOthers(t *testing.T) {
	for _, dir := range []string{"etc", "tls", "mail", "templates", "state", "run", "."} {
		for how, spoil := range map[string]struct {
			do   func(path string) error
			says string
		}{
			"0777":     {func(path string) error { return os.Chmod(path, 0o777) }, "chmod go-w -- "},
			"nobody's": {func(path string) error { return os.Chown(path, 65534, 65534) }, "chown 0 -- "},
			"sticky":   {func(path string) error { return os.Chmod(path, 0o777|fs.ModeSticky) }, ""},
		} {
			c := newConfigured(t)
			path := filepath.Join(c.dir, dir)
			must(t, spoil.do(path))
			if spoil.says == "" {
				must(t, checkConfig(c.path))
				continue
			}
			for way, err := range c.ways(t.Context()) {
				if err == nil || !strings.Contains(err.Error(), spoil.says+path) || strings.Count(err.Error(), spoil.says) > 2 {
					t.Errorf("%s: %s, %s: %v", dir, how, way, err)
				}
			}
		}
	}
}

// TestEveryFileOfTheConfigurationIsJudged: also that of a key which comes later.
func TestEveryFileOfTheConfigurationIsJudged(t *testing.T) {
	c := newConfigured(t)
	judged := c.files(c.path)
	notOurs := map[string]bool{"libvirt.config_dir": true, "socket": true} // libvirt's; its directory is
	eachKey(reflect.ValueOf(c.config), "", func(key string, value any) {
		path, is := value.(string)
		if _, ok := judged[path]; is && filepath.IsAbs(path) && !ok && !notOurs[key] {
			t.Errorf("%s = %q is not judged", key, path)
		}
	})
}

// TestFilesOnADeadMount: each is refused by name, and a stop does not wait.
func TestFilesOnADeadMount(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{"etc", "tls", "mail", "templates", "state", "run"} {
		t.Run(dir, func(t *testing.T) {
			t.Parallel()
			c := newConfigured(t)
			hung := filepath.Join(c.dir, dir)
			answer, err := lab.HangDirectory(hung)
			must(t, err)
			t.Cleanup(func() { must(t, answer()) })
			for way, err := range c.ways(t.Context()) {
				if err == nil || !strings.Contains(err.Error(), "does not answer") || !strings.Contains(err.Error(), hung) {
					t.Errorf("%s: %v", way, err)
				}
			}
			stopped, stop := context.WithCancel(t.Context())
			stop()
			r := &reloader{path: c.path, running: c.config}
			if err := r.readFiles(stopped); err == nil || strings.Contains(err.Error(), "does not answer") {
				t.Errorf("a stop waits: %v", fmt.Sprint(err))
			}
		})
	}
}
