package vps

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// source calls see for every node of what makes refusals: this package, the daemon's
// others and the API.
func source(t *testing.T, see func(path string, n ast.Node)) {
	t.Helper()
	for _, dir := range []string{"..", "../../api/server"} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			other := !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") ||
				strings.HasSuffix(path, ".gen.go") ||
				strings.Contains(path, "daemontest")
			if err != nil || other {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err == nil {
				ast.Inspect(file, func(n ast.Node) bool { see(path, n); return true })
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func literal(n ast.Node) string {
	if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
		if text, err := strconv.Unquote(l.Value); err == nil {
			return text
		}
	}
	return ""
}

var verb = regexp.MustCompile(`%(\[(\d)\])?[sdq]`)

// verbs gives an argument for each that a format takes.
func verbs(format string) []any {
	var args []any
	for _, v := range verb.FindAllStringSubmatch(format, -1) {
		at := len(args)
		if v[2] != "" {
			at, _ = strconv.Atoi(v[2])
			at--
		}
		for len(args) <= at {
			args = append(args, "")
		}
		if args[at] = "x"; strings.HasSuffix(v[0], "d") {
			args[at] = 7
		}
	}
	return args
}

// Every sentence is one that is said, and can be said in every language.
func TestSentences(t *testing.T) {
	said := map[string]bool{}
	source(t, func(path string, n ast.Node) {
		if filepath.Base(path) != "words.go" {
			said[literal(n)] = true
		}
	})
	for format, in := range sentences {
		if !said[format] {
			t.Errorf("nobody says %q", format)
		}
		w := Say(format, verbs(format)...)
		french, ok := w.In(French)
		english, _ := w.In(English)
		if !ok || in[French] == "" || strings.Contains(french+english, "%!") {
			t.Errorf("%q is %q and %q", format, english, french)
		}
	}
}

// forOperators are the files whose refusals nobody else gets: of calls that need the
// scope admin, and of libvirt's hook.
var forOperators = regexp.MustCompile(`/(webhook|hook|runner)\.go$|/(webhook|vouch)/`)

// What a caller can do something about is said in words for customers, and not by its
// code only.
func TestRefusalsHaveSentences(t *testing.T) {
	ours := regexp.MustCompile(
		`^Code(Unauthenticated|Forbidden|NotFound|OptionRequired|SnapshotExists|OperationInProgress|ConfirmationRequired|PreconditionFailed|Invalid|RateLimited)$`,
	)
	seen := 0
	source(t, func(path string, n ast.Node) {
		call, ok := n.(*ast.CallExpr)
		if !ok || forOperators.MatchString(path) {
			return
		}
		name := ""
		switch f := call.Fun.(type) {
		case *ast.Ident:
			name = f.Name
		case *ast.SelectorExpr:
			name = f.Sel.Name
		}
		format := ""
		for _, arg := range call.Args {
			if format = literal(arg); format != "" {
				break
			}
		}
		switch name {
		case "invalid", "invalidStatus":
		case "Errorf", "no":
			code := ""
			switch c := call.Args[0].(type) {
			case *ast.Ident:
				code = c.Name
			case *ast.SelectorExpr:
				code = c.Sel.Name
			}
			if !ours.MatchString(code) {
				return
			}
		default:
			return
		}
		if seen++; format != "" && sentences[format] == nil && format != "no such token" {
			t.Errorf("%s: customers are not told: %q", path, format)
		}
	})
	if seen < 60 {
		t.Errorf("only %d refusals were found", seen)
	}
}

func TestWordsIn(t *testing.T) {
	for _, c := range []struct {
		w       Words
		english string
		french  string
	}{
		{Say("%s has a snapshot already, from %s", "web1", "2026-11-22T08:30:01Z"), "web1 has a snapshot already, from 2026-11-22T08:30:01Z",
			"web1 a déjà un snapshot, du 22/11/2026 à 08:30 UTC"},
		{Say("cannot take a snapshot of %s: %s", "web1", Say("disk %s: %s", "vda", Say("the disk is encrypted"))),
			"cannot take a snapshot of web1: disk vda: the disk is encrypted", "impossible de créer un snapshot de web1 : disque vda : le disque est chiffré"},
		{Say("cannot take a snapshot of %s: %s", "web1", Say("look at %s", "/srv")), CodeVPSChanged.In(English), CodeVPSChanged.In(French)},
		{Say("look at it with virsh"), CodeVPSChanged.In(English), CodeVPSChanged.In(French)},
		{Words{}, CodeVPSChanged.In(English), CodeVPSChanged.In(French)},
	} {
		for l, want := range map[Language]string{English: c.english, French: c.french} {
			if got := c.w.InOr(l, CodeVPSChanged); got != want {
				t.Errorf("%s is told in %s: %s", c.w, l, got)
			}
		}
	}
}

// Which file of the host a broken snapshot lacks, and why an operation of it failed
// there, is for operators.
func TestSnapshotIn(t *testing.T) {
	for _, l := range []Language{English, French} {
		s := Snapshot{State: SnapshotBroken, Reason: "disk vda: its overlay is missing"}.In(l)
		e := SnapshotEvent{State: SnapshotBroken, Reason: "disk vda: its overlay is missing"}.In(l)
		if s.Reason == "" || strings.Contains(s.Reason, "overlay") || e.Reason != s.Reason {
			t.Errorf("a customer is told in %s: %s, %s", l, s.Reason, e.Reason)
		}
		if s := (Snapshot{State: SnapshotAvailable}).In(l); s.Reason != "" {
			t.Errorf("of a whole one: %s", s.Reason)
		}
		o := OperationEvent{Status: StatusFailed, Code: CodeInternal, Detail: "look into /var/log", Remedy: "virsh"}.In(l)
		if o.Detail != CodeInternal.In(l) || o.Remedy != support[l] {
			t.Errorf("of an operation: %s; %s", o.Detail, o.Remedy)
		}
	}
}
