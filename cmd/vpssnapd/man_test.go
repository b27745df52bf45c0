package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
	for _, m := range regexp.MustCompile(`flags\.\w+\(\s*"(\w+)"`).FindAllStringSubmatch(string(program), -1) {
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
	var text bytes.Buffer
	before := stdout
	stdout = &output{to: &text}
	defer func() { stdout = before }()
	work, code := command([]string{"-help"})
	must(t, work())
	if code != 0 {
		t.Errorf("to ask for help ends with %d", code)
	}
	_, codes, found := strings.Cut(text.String(), "Exit codes:")
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

// Whatever vpssnapd does not know is a mistake, never half of a command: FAULTS row 48.
func TestEveryMistakeIsAUsageError(t *testing.T) {
	for _, args := range [][]string{
		{"-frobnicate"}, {"-config"}, {"-hook=perhaps"}, {"-version=perhaps"},
		{"frobnicate"}, {"-config", "f", "more"}, {"-version", "more"}, {"-hook", "-version"},
		{"rebuild", "more"}, {"rebuild", "-frobnicate"}, {"rebuild", "-hook"}, {"rebuild", "-version"},
		{"-config", "f", "rebuild"},
		{"config"}, {"config", "frobnicate"}, {"config", "check", "f", "more"}, {"config", "check", "-frobnicate"},
		{"config", "check", "-config", "f", "another"}, {"config", "check", "-hook"}, {"config", "check", "-version"},
		{"config", "check", "-hook", "f"}, {"-config", "f", "config", "check"},
	} {
		if work, code := command(args); work != nil || code != exitUsage {
			t.Errorf("vpssnapd %q: exit code %d, work: %v", args, code, work != nil)
		}
	}
	for _, args := range [][]string{
		{}, {"-config", "f"}, {"-version"}, {"-help"}, {"rebuild", "-h"}, {"-hook", "--", "-version", "prepare", "begin", "-"}, {"-hook", "web1", "prepare", "begin", "-"}, {"-config", "f", "-hook", "web1", "start"},
		{"rebuild"}, {"rebuild", "-config", "f"}, {"config", "check"}, {"config", "check", "f"}, {"config", "check", "-config", "f"},
	} {
		if work, code := command(args); work == nil || code != 0 {
			t.Errorf("vpssnapd %q: exit code %d", args, code)
		}
	}
}

// TestAFullDeviceIsNoSuccess: what was asked for and could not be printed is a failure.
func TestAFullDeviceIsNoSuccess(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	must(t, err)
	defer full.Close()
	before := stdout
	defer func() { stdout = before }()
	whole := filepath.Join(t.TempDir(), "whole.toml")
	must(t, os.WriteFile(whole, nil, 0o600))
	for _, args := range [][]string{{"-version"}, {"-help"}, {"rebuild", "-h"}, {"config", "check", whole}} {
		for to, fails := range map[io.Writer]bool{full: true, io.Discard: false} {
			stdout = &output{to: to}
			work, _ := command(args)
			must(t, work())
			if err := stdout.failed(); (err != nil) != fails {
				t.Errorf("vpssnapd %q on a device that is full (%t): %v", args, fails, err)
			}
		}
	}
}
