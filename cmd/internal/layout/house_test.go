package layout

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const house = "vpssnapd/daemon"

// rows are the rooms of the daemon, the highest first: a package is a capability, and
// imports only what lies in a row below its own, never a sibling. The root wires.
var rows = [][]string{
	{""},
	{"overview", "option", "access", "hook"},
	{"doctor", "notify"},
	{"vouch"},
	{"adoption", "webhook"},
	{"snapshot"},
	{"merge", "download"},
	{"integrity"},
	{"guest", "metadata"},
	{"operation", "space", "verdict"},
	{"journal", "image"},
	{"inventory"},
	{"fault", "startlock"},
	{"store"},
	{"mail", "failpoint"},
	{"vps", "work", "store/checksum"},
}

// outside is what the rooms may import of ours beside each other.
var outside = []string{
	"vpssnapd/hypervisor", "vpssnapd/hypervisor/qcow2", "vpssnapd/hypervisor/durable", "vpssnapd/hypervisor/pathname",
	"vpssnapd/hostfile",
}

// testing are packages for tests of others, which may use all of the daemon.
var forTests = []string{"daemontest", "mail/mailtest", "store/storetest"}

func rowOf(path string) int {
	room := strings.TrimPrefix(strings.TrimPrefix(path, house), "/")
	for i, row := range rows {
		if slices.Contains(row, room) {
			return i
		}
	}
	return -1
}

func isForTests(path string) bool {
	for _, room := range forTests {
		if path == house+"/"+room {
			return true
		}
	}
	return false
}

func TestRoomsImportDownwards(t *testing.T) {
	for _, p := range packages(t) {
		if !below(p.ImportPath, house) || isForTests(p.ImportPath) {
			continue
		}
		row := rowOf(p.ImportPath)
		if row < 0 {
			t.Errorf("%s has no row here", p.ImportPath)
			continue
		}
		for _, imported := range p.Imports {
			switch {
			case !below(imported, "vpssnapd") || allowed(imported, outside):
			case !below(imported, house):
				t.Errorf("%s imports %s: the product speaks to a host through the interface only", p.ImportPath, imported)
			case rowOf(imported) == row:
				t.Errorf("%s imports its sibling %s", p.ImportPath, imported)
			case rowOf(imported) < row:
				t.Errorf("%s imports upwards: %s", p.ImportPath, imported)
			}
		}
	}
}

// The root holds wiring only: it is small, and no other type of it does anything.
const longestRoot = 600

func TestRootWiresOnly(t *testing.T) {
	lines := 0
	for file, parsed := range sources(t, "../../../daemon") {
		lines += linesOf(t, file)
		for _, decl := range parsed.Decls {
			if f, is := decl.(*ast.FuncDecl); is && f.Recv != nil && receiver(f) != "Daemon" {
				t.Errorf("%s: %s has methods: give it a package of its own", file, receiver(f))
			}
		}
	}
	if lines > longestRoot {
		t.Errorf("the root has %d lines, %d are enough to wire", lines, longestRoot)
	}
}

const (
	longestRoom = 3000
	mostMethods = 60
)

// TestRoomsAreSmall: nobody finds anything in a hall, or on a type that does everything.
func TestRoomsAreSmall(t *testing.T) {
	err := filepath.WalkDir("../../..", func(dir string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		if strings.HasPrefix(entry.Name(), ".") && entry.Name() != ".." && entry.Name() != "../../.." {
			return fs.SkipDir
		}
		lines, methods := 0, map[string]int{}
		for file, parsed := range sources(t, dir) {
			lines += linesOf(t, file)
			for _, decl := range parsed.Decls {
				if f, is := decl.(*ast.FuncDecl); is && f.Recv != nil {
					methods[receiver(f)]++
				}
			}
		}
		if strings.Contains(dir, "/daemon") && lines > longestRoom {
			t.Errorf("%s has %d lines, at most %d are easy to find one's way in", dir, lines, longestRoom)
		}
		if strings.HasSuffix(dir, "hypervisor/fake") || strings.HasSuffix(dir, "hypervisor/lab") {
			return nil // a whole host each
		}
		for name, n := range methods {
			if n > mostMethods {
				t.Errorf("%s: %s has %d methods, at most %d belong to one thing", dir, name, n, mostMethods)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sources parses the files of a directory that are neither tests nor generated.
func sources(t *testing.T, dir string) map[string]*ast.File {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*ast.File{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") || strings.HasSuffix(file, ".gen.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		all[file] = parsed
	}
	return all
}

func linesOf(t *testing.T, file string) int {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), "\n")
}

// receiver names the type whose method a function is.
func receiver(f *ast.FuncDecl) string {
	kind := f.Recv.List[0].Type
	if star, is := kind.(*ast.StarExpr); is {
		kind = star.X
	}
	if generic, is := kind.(*ast.IndexExpr); is {
		kind = generic.X
	}
	if name, is := kind.(*ast.Ident); is {
		return name.Name
	}
	return "?"
}
