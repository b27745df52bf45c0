package daemontest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"testing"

	"vpssnapd/daemon/vps"
)

// RemediesOnFake are the remedies whose situations a real libvirt cannot be brought into:
// they need a fault at one moment, or a damaged record. TestRemediesOnFake runs them; all
// others are run on real hosts (cmd/internal/site).
func RemediesOnFake() []vps.RemedyKind {
	return []vps.RemedyKind{
		vps.RemedyRepair, vps.RemedyThaw, vps.RemedyResumeOperation, vps.RemedyCancelOperation, vps.RemedyGiveUp,
		vps.RemedyFinishDeletion, vps.RemedyDeleteOldLayer, vps.RemedyOrderOption, vps.RemedyRevokeToken,
	}
}

// RemediesOfStrikes are those for a libvirtd that was killed at one moment: the tests that kill
// it there, TestLibvirtdDies of cmd/internal/site, run them.
func RemediesOfStrikes() []vps.RemedyKind {
	return []vps.RemedyKind{vps.RemedyNoteAside, vps.RemedyCompleteNote}
}

// Remedies are all kinds that have commands, from the source: none can be forgotten.
func Remedies(t *testing.T) (kinds []vps.RemedyKind) {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	source := filepath.Join(filepath.Dir(here), "..", "vps", "check.go")
	file, err := parser.ParseFile(token.NewFileSet(), source, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); !ok || kind.Name != "RemedyKind" {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, vps.RemedyKind(text))
		return true
	})
	if len(kinds) < 30 {
		t.Fatalf("only %v were found", kinds)
	}
	return slices.DeleteFunc(kinds, func(k vps.RemedyKind) bool { return k == vps.RemedyRead })
}
