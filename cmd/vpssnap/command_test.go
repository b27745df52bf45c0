package main

import (
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Every command says what it is for, at length and by example, and offers the words
// for its arguments.
func TestEveryCommandExplainsItself(t *testing.T) {
	a := &app{stdin: os.Stdin, stdout: io.Discard, stderr: io.Discard}
	var look func(cmd *cobra.Command)
	look = func(cmd *cobra.Command) {
		if cmd.Hidden {
			return
		}
		for _, sub := range cmd.Commands() {
			look(sub)
		}
		long, exits, _ := strings.Cut(cmd.Long, "\n\n"+exitHelp)
		if cmd.Short == "" || long == "" || long == cmd.Short+"." || exits != "" {
			t.Errorf("%s has no text of its own: %q", cmd.CommandPath(), long)
		}
		if strings.HasSuffix(cmd.Short, ".") || len(cmd.Short) > 72 {
			t.Errorf("%s: %q is no line of a list", cmd.CommandPath(), cmd.Short)
		}
		for line := range strings.Lines(long) {
			if len(line) > 90 {
				t.Errorf("%s: a long line: %s", cmd.CommandPath(), line)
			}
		}
		for line := range strings.Lines(cmd.Example) {
			if !strings.HasPrefix(line, "  vpssnap ") {
				t.Errorf("%s: an example: %q", cmd.CommandPath(), line)
			}
		}
		if cmd.HasAvailableSubCommands() {
			return
		}
		if !strings.Contains(cmd.Example, cmd.CommandPath()) {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
		if regexp.MustCompile(`\b(VPS|ID)\b`).MatchString(cmd.Use) && cmd.ValidArgsFunction == nil {
			t.Errorf("%s offers no words", cmd.CommandPath())
		}
	}
	look(a.root())
}
