package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
)

// vpssnapd(8) is written by hand; it must not lag behind the program.
func TestManPageKnowsTheProgram(t *testing.T) {
	program, err := os.ReadFile("main.go")
	must(t, err)
	text, err := os.ReadFile("../../packaging/man/vpssnapd.8.md")
	must(t, err)
	page := strings.ReplaceAll(string(text), "*", "")
	var named []string
	for _, m := range regexp.MustCompile(`flag\.\w+\("(\w+)"`).FindAllStringSubmatch(string(program), -1) {
		named = append(named, "-"+m[1])
	}
	for _, m := range regexp.MustCompile(`(?m)^(?:usage:|.*Print\(os\.Stderr, .usage:|      ) (vpssnapd [a-z ]+)`).FindAllStringSubmatch(string(program), -1) {
		named = append(named, strings.TrimSpace(m[1]))
	}
	if len(named) < 4 {
		t.Fatalf("the program has only %q", named)
	}
	for _, what := range named {
		if !strings.Contains(page, what) {
			t.Errorf("vpssnapd(8) does not know %s", what)
		}
	}
}

// FAULTS row 48: the usage knew only the codes 0 to 2.
func TestUsageAndManPageNameEveryExitCode(t *testing.T) {
	read, write, err := os.Pipe()
	must(t, err)
	stderr := os.Stderr
	os.Stderr = write
	usage()
	os.Stderr = stderr
	must(t, write.Close())
	text, err := io.ReadAll(read)
	must(t, err)
	_, codes, found := strings.Cut(string(text), "Exit codes:")
	if !found {
		t.Fatal("the usage says nothing of exit codes")
	}
	page, err := os.ReadFile("../../packaging/man/vpssnapd.8.md")
	must(t, err)
	for code := range exitUnusable + 1 {
		if !strings.Contains(codes, fmt.Sprintf("\n  %d  ", code)) {
			t.Errorf("the usage does not know exit code %d", code)
		}
		if !strings.Contains(string(page), fmt.Sprintf("\n%d\n: ", code)) {
			t.Errorf("vpssnapd(8) does not know exit code %d", code)
		}
	}
}
