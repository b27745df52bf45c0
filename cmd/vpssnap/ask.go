package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// yesFlag adds --yes to a command that destroys data.
func yesFlag(flags *pflag.FlagSet, yes *bool) {
	flags.BoolVarP(yes, "yes", "y", false, "do not ask, for scripts")
}

// mayAsk refuses early when a question would have nobody to answer it.
func (a *app) mayAsk(yes bool) error {
	if yes || isTerminal(a.stdin) {
		return nil
	}
	return usagef("this destroys data and there is no terminal to ask on; give --yes if it is meant")
}

// confirm asks on the terminal. Only a typed yes is one.
func (a *app) confirm(ctx context.Context, yes bool, question string) error {
	if yes {
		return nil
	}
	fmt.Fprintf(a.stderr, "%s Type yes to go on: ", clean(question))
	// Reading cannot be interrupted; so that Ctrl-C works, it is not waited for.
	answer := make(chan string, 1)
	go func() {
		// Without an answer the line is empty, which is not yes.
		line, _ := bufio.NewReader(a.stdin).ReadString('\n')
		answer <- line
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(a.stderr)
		return ctx.Err()
	case line := <-answer:
		if !strings.EqualFold(strings.TrimSpace(line), "yes") {
			return errNotConfirmed
		}
		return nil
	}
}
