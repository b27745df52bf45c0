package systemd

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// exposureAtMost is in tenths, as systemd-analyze security --threshold= wants it. One tenth of
// it is that the daemon sees which QEMUs run (FAULTS.md row 44).
const exposureAtMost = "21"

// TestSandbox holds the unit to its exposure, and to a reason for all that is left open.
func TestSandbox(t *testing.T) {
	analyze := func(args ...string) []byte {
		cmd := exec.CommandContext(
			t.Context(),
			"systemd-analyze",
			append([]string{"security", "--offline=true", "--no-pager"}, args...)...)
		var said bytes.Buffer
		cmd.Stderr = &said
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("%v\n%s%s", err, out, said.String())
		}
		if said.Len() > 0 {
			t.Errorf("systemd does not understand the unit: %s", said.String())
		}
		return out
	}
	analyze("--threshold="+exposureAtMost, "vpssnapd.service")
	var directives []struct{ Name, Exposure string }
	if err := json.Unmarshal(analyze("--json=short", "vpssnapd.service"), &directives); err != nil {
		t.Fatal(err)
	}
	reasons := comments(t, "vpssnapd.service")
	open := 0
	for _, d := range directives {
		if d.Exposure == "" {
			continue
		}
		open++
		if !explained(reasons, d.Name) {
			t.Errorf("%s is left open, and no comment says why", d.Name)
		}
	}
	if len(directives) < 50 || open < 5 {
		t.Errorf("only %d directives, %d of them open: is the output of systemd-analyze another one?", len(directives), open)
	}
}

func comments(t *testing.T, unit string) string {
	t.Helper()
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			all = append(all, line)
		}
	}
	return strings.Join(all, "")
}

// explained reports whether the comments name a directive, or of a list what in it is open:
// CAP_FOWNER for CapabilityBoundingSet=~CAP_(DAC_*|FOWNER|IPC_OWNER).
func explained(reasons, name string) bool {
	directive, list, _ := strings.Cut(name, "~")
	if list == "" {
		first, _, _ := strings.Cut(directive, "/") // User=/DynamicUser=
		return strings.Contains(reasons, first)
	}
	for _, word := range regexp.MustCompile(`@?[A-Za-z_]{4,}`).FindAllString(strings.TrimPrefix(list, "CAP_"), -1) {
		if strings.Contains(reasons, word) {
			return true
		}
	}
	return false
}

// TestUnitsCanBeUsed lets systemd read the units as on a host.
func TestUnitsCanBeUsed(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"usr/sbin", "usr/bin", "etc/systemd/system", "usr/lib/systemd/system"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, program := range []string{"usr/sbin/vpssnapd", "usr/bin/systemctl"} {
		if err := os.WriteFile(filepath.Join(root, program), nil, 0o755); err != nil { //nolint:gosec // a program is executable
			t.Fatal(err)
		}
	}
	units := []string{"vpssnapd.service", "vpssnapd.socket", "vpssnapd-tcp.socket"}
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "usr/lib/systemd/system", unit), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := append([]string{"verify", "--man=no", "--recursive-errors=no", "--root=" + root}, units...)
	if out, err := exec.CommandContext(t.Context(), "systemd-analyze", args...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestCatalogue: every event that has an id is explained in both languages, and only
// with fields that there are; systemd accepts what is written.
func TestCatalogue(t *testing.T) {
	entry := regexp.MustCompile(`(?m)^-- ([0-9a-f]{32})$`)
	fields := regexp.MustCompile(`@([A-Z_]+)@`)
	var used [2][]string
	for i, file := range []string{"vpssnapd.catalog", "vpssnapd.fr.catalog"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]int{}
		for _, m := range entry.FindAllSubmatch(text, -1) {
			found[string(m[1])]++
		}
		for event, id := range messageIDs {
			if found[id] != 1 {
				t.Errorf("%s has %d entries for %s (%s)", file, found[id], event, id)
			}
			delete(found, id)
		}
		if len(found) > 0 {
			t.Errorf("%s explains what is never said: %v", file, found)
		}
		used[i] = fields.FindAllString(string(text), -1)
	}
	if len(used[0]) != len(used[1]) {
		t.Errorf("the English entries have %d fields, the French %d", len(used[0]), len(used[1]))
	}
	root := t.TempDir()
	dir := filepath.Join(root, "usr/lib/systemd/catalog")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"vpssnapd.catalog", "vpssnapd.fr.catalog"} {
		text, _ := os.ReadFile(file)
		if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	journalctl := func(args ...string) string {
		out, err := exec.CommandContext(t.Context(), "journalctl", append([]string{"--root=" + root}, args...)...).
			CombinedOutput()
		if err != nil {
			t.Errorf("journalctl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if said := journalctl("--update-catalog"); said != "" {
		t.Errorf("the catalogue is not understood: %s", said)
	}
	list := journalctl("--list-catalog")
	for event, id := range messageIDs {
		if !strings.Contains(list, id+" vpssnapd: ") {
			t.Errorf("journalctl has no entry for %s", event)
		}
	}
}
