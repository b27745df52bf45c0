// Command vpssnap-mutants shows that the campaigns would notice: it breaks the
// product on purpose, one safety rule at a time, and lets the campaign run that
// has to find it. The tree is not touched: the broken sources are handed to the
// compiler as an overlay. See make mutants.
//
// Exit codes: 0 every broken build was caught, 1 one was not, or something could
// not be done, 2 usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"
)

func main() {
	only := flag.String("run", ".", "try the mutants whose name matches this `expression`")
	seed := flag.Uint64("seed", 1, "the random `seed` of the power cuts")
	flag.Parse()
	wanted, err := regexp.Compile(*only)
	if err != nil || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, wanted, *seed); err != nil {
		fmt.Fprintln(os.Stderr, "vpssnap-mutants:", err)
		os.Exit(1)
	}
}

// run tries one mutant after the other and prints what came of each.
func run(ctx context.Context, wanted *regexp.Regexp, seed uint64) (err error) {
	work, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	var survived []string
	for _, m := range mutants {
		if !wanted.MatchString(m.name) {
			continue
		}
		began := time.Now()
		sign, err := m.try(ctx, work, seed)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		verdict := "caught: " + sign
		if sign == "" {
			verdict, survived = "SURVIVED", append(survived, m.name)
		}
		fmt.Printf("%s (%s)\n    %s, %s: %s\n", m.name, m.rule, m.campaign, time.Since(began).Round(time.Second), verdict)
	}
	if len(survived) > 0 {
		return fmt.Errorf("not caught: %s", strings.Join(survived, ", "))
	}
	return nil
}
