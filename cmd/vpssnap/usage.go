package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// usageError is a mistake on the command line.
type usageError struct {
	text   string
	remedy []string
}

func (e *usageError) Error() string { return e.text }

// usagef is a mistake on the command line, exit code 2.
func usagef(format string, args ...any) error {
	return &usageError{text: fmt.Sprintf(format, args...)}
}

// needsCommand is what a command does that only holds others.
func needsCommand(cmd *cobra.Command, _ []string) error {
	return &usageError{"say what to do", []string{seeHelp(cmd)}}
}

func seeHelp(cmd *cobra.Command) string { return "see:  " + cmd.CommandPath() + " --help" }

// addHelp adds the command help, which by itself answers an unknown command with all of
// the help, and success.
func addHelp(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	i := slices.IndexFunc(root.Commands(), func(cmd *cobra.Command) bool { return cmd.Name() == "help" })
	help := root.Commands()[i]
	help.Example = "  vpssnap help take\n  vpssnap help option order"
	help.Args = func(_ *cobra.Command, args []string) error {
		cmd, left, err := root.Find(args)
		if err == nil && len(left) > 0 {
			err = unknownCommand(cmd, left[0])
		}
		return err
	}
}

// emptyWord is what the first argument stands for that is empty, as a script's variable that
// was never set; "" for none. It must not count as "all of them". A text may be empty.
func emptyWord(cmd *cobra.Command, args []string) string {
	words := strings.Fields(cmd.Use)[1:]
	for i, arg := range args {
		if arg == "" && i < len(words) && words[i] != "TEXT" {
			return strings.Trim(words[i], "[]")
		}
	}
	return ""
}

// explainUsage lets cmd and all below it say what to do about a mistake.
func explainUsage(cmd *cobra.Command) {
	accepts := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if word := emptyWord(cmd, args); word != "" {
			return &usageError{word + " is empty", []string{seeHelp(cmd)}}
		}
		if accepts == nil {
			return nil
		}
		err := accepts(cmd, args)
		if _, explained := errors.AsType[*usageError](err); err == nil || explained {
			return err
		}
		if cmd.HasAvailableSubCommands() && len(args) > 0 {
			return unknownCommand(cmd, args[0])
		}
		form, _, _ := strings.Cut(cmd.UseLine(), " [flags]")
		return &usageError{"wrong number of arguments; it is:  " + form, []string{seeHelp(cmd)}}
	}
	if !cmd.Runnable() {
		cmd.RunE = needsCommand
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

// unknownCommand suggests what was probably meant.
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
