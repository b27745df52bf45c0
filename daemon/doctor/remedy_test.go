package doctor

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"

	"vpssnapd/daemon/vps"
)

// TestEveryRemedyHasAKindOfItsOwn: the tests that run what doctor prints go by the kinds. So
// every remedy is made by remedy, no two places make the same kind, and none is without one.
func TestEveryRemedyHasAKindOfItsOwn(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	made, set := map[string]string{}, token.NewFileSet()
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CompositeLit:
				if kind, ok := n.Type.(*ast.SelectorExpr); ok && kind.Sel.Name == "Remedy" && len(n.Elts) != 3 {
					t.Errorf("%s: a remedy that is not made by remedy()", set.Position(n.Pos()))
				}
			case *ast.CallExpr:
				if f, ok := n.Fun.(*ast.Ident); !ok || f.Name != "remedy" {
					return true
				}
				at := set.Position(n.Pos()).String()
				kind, ok := n.Args[0].(*ast.SelectorExpr)
				switch {
				case !ok:
					t.Errorf("%s: a remedy without one of the kinds of package vps", at)
				case kind.Sel.Name == "RemedyRead":
					if len(n.Args) != 2 {
						t.Errorf("%s: %s has commands", at, vps.RemedyRead)
					}
				case made[kind.Sel.Name] != "":
					t.Errorf("%s: %s is made at %s too", at, kind.Sel.Name, made[kind.Sel.Name])
				default:
					made[kind.Sel.Name] = at
				}
			}
			return true
		})
	}
	if len(made) < 30 {
		t.Errorf("only %v were found", made)
	}
}
