package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// usageError is a mistake on the command line.
type usageError struct {
	text   string
	remedy []string
}

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return &usageError{text: fmt.Sprintf(format, args...)}
}

// needsCommand is what a command does that only holds others.
func needsCommand(cmd *cobra.Command, _ []string) error {
	return &usageError{"say what to do", []string{seeHelp(cmd)}}
}

func seeHelp(cmd *cobra.Command) string { return "see:  " + cmd.CommandPath() + " --help" }

// explainUsage lets cmd and all below it say what to do about a mistake.
func explainUsage(cmd *cobra.Command) {
	accepts := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if accepts == nil || accepts(cmd, args) == nil {
			return nil
		}
		if cmd.HasAvailableSubCommands() && len(args) > 0 {
			return unknownCommand(cmd, args[0])
		}
		form, _, _ := strings.Cut(cmd.UseLine(), " [flags]")
		return &usageError{"wrong number of arguments; it is:  " + form, []string{seeHelp(cmd)}}
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{err.Error(), []string{seeHelp(cmd)}}
	})
	// How many letters may be wrong.
	cmd.SuggestionsMinimumDistance = 2
	for _, sub := range cmd.Commands() {
		explainUsage(sub)
	}
}

func unknownCommand(cmd *cobra.Command, typed string) error {
	e := &usageError{text: fmt.Sprintf("unknown command %q for %q", typed, cmd.CommandPath())}
	for _, name := range cmd.SuggestionsFor(typed) {
		e.remedy = append(e.remedy, "did you mean:  "+cmd.CommandPath()+" "+name)
	}
	if e.remedy == nil {
		e.remedy = []string{seeHelp(cmd)}
	}
	return e
}
