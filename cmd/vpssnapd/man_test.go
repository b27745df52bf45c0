package main

import (
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
