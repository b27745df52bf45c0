package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

type pkg struct {
	ImportPath string
	Name       string
	Doc        string
	Imports    []string
	CgoFiles   []string
	Deps       []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Name,Doc,Imports,CgoFiles,Deps", "vpssnapd/...")
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, problems.String())
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// ours says what a package and those below it may import of ours. A package
// that is not named here, nor below one that is, fails the test.
var ours = []struct {
	in      string
	may     []string
	because string
}{
	{
		"vpssnapd/hypervisor/libvirt",
		[]string{
			"vpssnapd/hypervisor", "vpssnapd/hypervisor/durable", "vpssnapd/hypervisor/feed", "vpssnapd/hypervisor/pathname",
		},
		"an implementation knows the interface, not its user",
	},
	{
		"vpssnapd/hypervisor/qemuimg",
		[]string{
			"vpssnapd/hypervisor", "vpssnapd/hypervisor/durable", "vpssnapd/hypervisor/pathname", "vpssnapd/hypervisor/qcow2",
			"vpssnapd/hypervisor/rights",
		},
		"an implementation knows the interface, not its user",
	},
	{"vpssnapd/hypervisor/durable", nil, "a sync knows nobody's files"},
	{"vpssnapd/hypervisor/pathname", nil, "a name means a file, whoever asks"},
	{"vpssnapd/hypervisor/feed", []string{"vpssnapd/hypervisor"}, "it carries the interface's events"},
	{"vpssnapd/hypervisor/qcow2", nil, "a file format knows nobody's use of it"},
	{"vpssnapd/hypervisor/rights", nil, "the rights of a file know nobody's use of it"},
	{
		"vpssnapd/hypervisor/fake",
		[]string{
			"vpssnapd/hypervisor", "vpssnapd/hypervisor/durable", "vpssnapd/hypervisor/feed", "vpssnapd/hypervisor/pathname",
			"vpssnapd/hypervisor/rights",
		},
		"an implementation knows the interface, not its user",
	},
	{"vpssnapd/hypervisor/hypervisortest", []string{"vpssnapd/hypervisor"}, "the contract is about the interface"},
	{"vpssnapd/hypervisor/lab", nil, "the lab must be able to test everything"},
	{
		"vpssnapd/hypervisor", []string{"vpssnapd/hypervisor/pathname"},
		"the interface has its own types, and one meaning of a path",
	},
	{"vpssnapd/api/client", []string{"vpssnapd/api"}, "a client links neither SQLite nor libvirt"},
	{
		"vpssnapd/api/server",
		[]string{"vpssnapd/api", "vpssnapd/api/server/...", "vpssnapd/daemon/vps"},
		"the API asks the daemon, never the host or the database",
	},
	{"vpssnapd/api", nil, "the contract is the wire's alone"},
	{"vpssnapd/systemd", []string{"vpssnapd/daemon/vps"}, "D-Bus serves the same daemon as REST"},
	{"vpssnapd/cmd/vpssnapd", []string{"vpssnapd/..."}, "main wires"},
	{
		"vpssnapd/cmd/vpssnap", []string{"vpssnapd/api", "vpssnapd/api/client", "vpssnapd/hostfile"},
		"the CLI talks REST only",
	},
	{"vpssnapd/hostfile", nil, "a file that is opened tells nothing of its use"},
	{"vpssnapd/cmd", []string{"vpssnapd/..."}, "programs and what tests them"},
}

// foreign says which packages alone may import something that is not ours.
var foreign = map[string]struct {
	only    string
	because string
}{
	"libvirt.org/go/libvirt":                  {"vpssnapd/hypervisor/libvirt", "cgo stays in one package"},
	"libvirt.org/go/libvirtxml":               {"vpssnapd/hypervisor/libvirt", "domain XML stays in one package"},
	"modernc.org/sqlite":                      {"vpssnapd/daemon/store", "one package owns the database"},
	"database/sql":                            {"vpssnapd/daemon", "no row leaves the daemon"},
	"github.com/labstack/echo/v4":             {"vpssnapd/api/server", "one package serves HTTP"},
	"github.com/spf13/cobra":                  {"vpssnapd/cmd/vpssnap", "one program has commands"},
	"github.com/wneessen/go-mail":             {"vpssnapd/daemon/mail", "one package sends mail"},
	"github.com/godbus/dbus/v5":               {"vpssnapd/systemd", "one package speaks D-Bus"},
	"github.com/coreos/go-systemd/v22/daemon": {"vpssnapd/systemd", "one package speaks to systemd"},
}

func below(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

func TestImportsPointDownwards(t *testing.T) {
	for _, p := range packages(t) {
		if below(p.ImportPath, house) {
			continue // TestRoomsImportDownwards
		}
		rule := -1
		for i, r := range ours {
			if below(p.ImportPath, r.in) && (rule < 0 || len(r.in) > len(ours[rule].in)) {
				rule = i
			}
		}
		if rule < 0 {
			t.Errorf("%s has no rule here", p.ImportPath)
			continue
		}
		for _, imported := range p.Imports {
			if below(imported, "vpssnapd") && imported != p.ImportPath && !allowed(imported, ours[rule].may) {
				t.Errorf("%s imports %s: %s", p.ImportPath, imported, ours[rule].because)
			}
		}
	}
}

func allowed(path string, may []string) bool {
	for _, m := range may {
		if root, tree := strings.CutSuffix(m, "/..."); path == m || tree && below(path, root) {
			return true
		}
	}
	return false
}

func TestForeignImportsStayInTheirPackage(t *testing.T) {
	for _, p := range packages(t) {
		for _, imported := range p.Imports {
			if f, ok := foreign[imported]; ok && !below(p.ImportPath, f.only) {
				t.Errorf("%s imports %s: %s", p.ImportPath, imported, f.because)
			}
		}
		if len(p.CgoFiles) > 0 && p.ImportPath != "vpssnapd/hypervisor/libvirt" {
			t.Errorf("%s uses cgo", p.ImportPath)
		}
	}
}

// TestCommandLineStaysLight looks at everything that the CLI is linked from.
func TestCommandLineStaysLight(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != "vpssnapd/cmd/vpssnap" {
			continue
		}
		for _, dep := range p.Deps {
			if dep == "modernc.org/sqlite" || below(dep, "libvirt.org/go") || below(dep, "vpssnapd/daemon") {
				t.Errorf("vpssnap is linked from %s", dep)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}
