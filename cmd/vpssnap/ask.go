package main

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

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
func (a *app) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	fmt.Fprintf(a.stderr, "%s Type yes to go on: ", clean(question))
	answer, err := bufio.NewReader(a.stdin).ReadString('\n')
	if err != nil || !strings.EqualFold(strings.TrimSpace(answer), "yes") {
		return errNotConfirmed
	}
	return nil
}
