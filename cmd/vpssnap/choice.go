package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// choice is a flag that takes one of a few words.
type choice struct {
	value string
	of    []string
}

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return "WORD" }

// A wrong word is refused with all that are right.
func (c *choice) Set(s string) error {
	if !slices.Contains(c.of, s) {
		return fmt.Errorf("must be one of: %s", strings.Join(c.of, ", "))
	}
	c.value = s
	return nil
}

// choose adds a choice to the flags of cmd, and teaches the shell its words.
func choose(cmd *cobra.Command, flags *pflag.FlagSet, c *choice, name, short, usage string) {
	flags.VarP(c, name, short, usage)
	completeFlag(cmd, name, cobra.FixedCompletions(c.of, cobra.ShellCompDirectiveNoFileComp))
}
