package main

import (
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vpssnapd/daemon"
)

const shipped = "../../packaging/config.toml"

// examples are keys whose shown value is none that we could choose for everybody.
var examples = map[string]bool{"listen": true, "tls.cert": true, "tls.key": true, "tls.client_ca": true,
	"mail.host": true, "mail.username": true, "mail.password_file": true, "mail.ca": true, "mail.from": true, "mail.reply_to": true, "mail.templates": true}

// TestShippedConfiguration: it names every key there is and no other, with the defaults.
func TestShippedConfiguration(t *testing.T) {
	text, err := os.ReadFile(shipped)
	must(t, err)
	var all []string
	eachKey(reflect.ValueOf(defaults()), "", func(key string, _ any) { all = append(all, key) })
	documented, section := map[string]bool{}, ""
	for line := range strings.Lines(string(text)) {
		if m := regexp.MustCompile(`^\[(\w+)\]$`).FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			section = m[1] + "."
		}
		if m := regexp.MustCompile(`^#(\w+) = `).FindStringSubmatch(line); m != nil {
			documented[section+m[1]] = true
		}
	}
	slices.Sort(all)
	if diff := cmp.Diff(all, slices.Sorted(maps.Keys(documented))); diff != "" {
		t.Errorf("keys of the program (-) and of the shipped file (+):\n%s", diff)
	}
	if c, err := parseConfig(strings.NewReader(string(text))); err != nil || len(differing(defaults(), c)) > 0 {
		t.Errorf("as it is shipped it changes %v: %v", differing(defaults(), c), err)
	}
	uncommented := regexp.MustCompile(`(?m)^#(\w+ = )`).ReplaceAllString(string(text), "$1")
	c, err := parseConfig(strings.NewReader(uncommented))
	if err != nil {
		t.Fatalf("what it shows cannot be used: %v", err)
	}
	for _, key := range differing(defaults(), c) {
		if !examples[key] {
			t.Errorf("the value shown for %s is not the default", key)
		}
	}
}

func TestErrorsNameTheLine(t *testing.T) {
	for text, says := range map[string]string{
		"log_level = 'INFO'\n\n[snapshot]\ngrce = '1h'\n[offr]\nname = 'x'\n": `line 4: unknown key "snapshot.grce"` + "\n" + `line 5: unknown key "offr"`,
		"calls_per_second = 'many'\n":                                         "line 1: ",
		"\n[snapshot]\nundo_keep = 'a while'\n":                               "line 3: ",
		"\n\nlisten = \n":                                                     "line 3: ",
	} {
		if _, err := parseConfig(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestReload: what can count at once does, the rest is named, and a configuration that
// cannot be used changes nothing.
func TestReload(t *testing.T) {
	log := &lockedLog{}
	var got daemon.Settings
	r := &reloader{path: filepath.Join(t.TempDir(), "config.toml"), level: new(slog.LevelVar), running: defaults(),
		log: slog.New(slog.NewTextHandler(log, nil)), apply: func(s daemon.Settings) { got = s }}
	write := func(text string) { must(t, os.WriteFile(r.path, []byte(text), 0o600)) }

	write("log_level = 'DEBUG'\nstate_dir = '/srv/other'\n[snapshot]\nundo_keep = '2h'\n[tls]\ncert = '/c'\nkey = '/k'\n")
	must(t, r.reload(t.Context()))
	if r.level.Level() != slog.LevelDebug || got.Snapshot.UndoKeep != 2*time.Hour {
		t.Errorf("not counted: %v %+v", r.level, got)
	}
	for _, says := range []string{`changed="log_level snapshot.undo_keep"`, `keys="state_dir tls.cert tls.key"`} {
		if !log.says(says)() {
			t.Errorf("the log does not say %s:\n%s", says, log.String())
		}
	}
	for _, broken := range []string{"[snapshot]\nundo_keep = '3h'\nkeep = 1\n", "[snapshot]\nundo_keep = '3h'\nmerge_limit = 0\n"} {
		write(broken)
		if err := r.reload(t.Context()); err == nil || got.Snapshot.UndoKeep != 2*time.Hour {
			t.Errorf("%q: %v, %s", broken, err, got.Snapshot.UndoKeep)
		}
	}
	write("")
	must(t, r.reload(t.Context()))
	if r.level.Level() != slog.LevelInfo || got.Snapshot.UndoKeep != time.Hour {
		t.Errorf("back to the defaults: %v %+v", r.level, got)
	}
}

// TestUnitsAgreeWithTheConfiguration: the shipped sockets are where the defaults say.
func TestUnitsAgreeWithTheConfiguration(t *testing.T) {
	for unit, listens := range map[string]string{"vpssnapd.socket": defaults().Socket, "vpssnapd-tcp.socket": "127.0.0.1:8787"} {
		text, err := os.ReadFile("../../systemd/" + unit)
		must(t, err)
		if !strings.Contains(string(text), "\nListenStream="+listens+"\n") {
			t.Errorf("%s does not listen on %s", unit, listens)
		}
	}
}

// TestSocketsOfSystemd are held to what the configuration says.
func TestSocketsOfSystemd(t *testing.T) {
	unix, tcp := passes(t, "unix", filepath.Join(t.TempDir(), "api.sock")), passes(t, "tcp", "127.0.0.1:0")
	everywhere := passes(t, "tcp", "0.0.0.0:0")
	c := defaults()
	if err := c.agreesUnix(unix); err == nil || !strings.Contains(err.Error(), "ListenStream=") {
		t.Errorf("another path: %v", err)
	}
	c.Socket = unix.Addr().String()
	must(t, c.agreesUnix(unix))
	must(t, c.agreesTCP(tcp))
	if err := c.agreesTCP(everywhere); err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("tokens in the clear for everybody: %v", err)
	}
	c.Listen = "127.0.0.1:1"
	if err := c.agreesTCP(tcp); err == nil {
		t.Error("two TCP addresses")
	}
}
