package main

import (
	"bytes"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// mistakes are the ways to use a command wrongly that follow from its form.
func mistakes(cmd *cobra.Command) [][]string {
	path := strings.Fields(cmd.CommandPath())[1:]
	with := func(more ...string) []string { return slices.Concat(path, more) }
	var required, optional []string
	for _, word := range strings.Fields(cmd.Use)[1:] {
		if strings.HasPrefix(word, "[") {
			optional = append(optional, "x")
		} else {
			required = append(required, "x")
		}
	}
	if cmd.Name() == "help" {
		required, optional = nil, []string{"take"}
	}
	all := slices.Concat(required, optional)
	wrong := [][]string{with(append(required, "--frobnicate")...), with(append(all, "more")...), with(append(all, "")...)}
	for i, word := range strings.Fields(cmd.Use)[1:] {
		empty := slices.Clone(all)
		if empty[i] = ""; word != "TEXT" {
			wrong = append(wrong, with(empty...))
		}
	}
	if len(required) > 0 {
		wrong = append(wrong, with(required[1:]...))
	}
	if cmd.HasSubCommands() && cmd.Name() != "operations" { // which lists them
		wrong = append(wrong, path)
	}
	flags := func(f *pflag.Flag) {
		switch f.Value.Type() {
		case "string", "stringSlice":
			wrong = append(wrong, with(append(required, "--"+f.Name)...))
		default:
			wrong = append(wrong, with(append(required, "--"+f.Name+"=neither")...), with(append(required, "--"+f.Name+"=")...))
		}
	}
	cmd.NonInheritedFlags().VisitAll(flags)
	cmd.InheritedFlags().VisitAll(flags)
	return wrong
}

// TestEveryMistakeIsAUsageError: a script that tells a mistake of its own from a state of
// the host by the exit code must be able to, for every command (FAULTS row 48).
func TestEveryMistakeIsAUsageError(t *testing.T) {
	t.Setenv("VPSSNAP_SOCKET", t.TempDir()+"/nobody") // whoever gets there was not refused
	t.Setenv("VPSSNAP_TOKEN", "secret")
	tried := [][]string{
		{"list", "--server", "ftp://host"},
		{"list", "--server", "http://a b"},
		{"list", "--server", "http://host", "--socket", "s"},
		{"list", "--token-file", "f"},
		{"list", "--server", "https://host", "--cert", "c"},
		{"list", "--server", "http://host", "--ca", "c"},
		{"operations", "--limit", "0"},
		{"operations", "list", "--limit", "-1"},
		{"messages", "--limit", "0"},
		{"option", "history", "web1", "--limit", "0"},
		{"events", "--since", "yesterday"},
		{"events", "--since", "-1"},
		{"token", "create", "panel"},
		{"token", "create", "panel", "--scope", "all"},
		{"token", "create", "panel", "--scope", "read", "--expires-in", "0s"},
		{"webhook", "create", "https://host/", "--type", "rain"},
		{"option", "order", "web1", "--ends-at", "tomorrow"},
		{"option", "activate", "web1", "--ends-at", "tomorrow"},
		{"restore", "web1"}, // without a terminal to ask on
		{"--version", "x"},
	}
	count := 0
	var look func(cmd *cobra.Command)
	look = func(cmd *cobra.Command) {
		count++
		tried = append(tried, mistakes(cmd)...)
		for _, sub := range cmd.Commands() {
			look(sub)
		}
	}
	look((&app{stdin: os.Stdin, stdout: io.Discard, stderr: io.Discard}).root())
	if count < 40 {
		t.Fatalf("there are only %d commands", count)
	}
	nobody, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	for _, args := range tried {
		var out, said bytes.Buffer
		if code := run(args, nobody, &out, &said); code != exitUsage {
			t.Errorf("vpssnap %q: exit code %d, said %q", args, code, said.String())
		} else if out.Len() != 0 || !strings.HasPrefix(said.String(), "vpssnap: ") {
			t.Errorf("vpssnap %q printed %q and said %q", args, out.String(), said.String())
		}
	}
}
