package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

// vouchCmd shows what differs before it asks; for scripts too, whose log then has it.
func vouchCmd(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "vouch VPS",
		Short: "Vouch for the files of a snapshot that are not as recorded",
		Long: `Vouch for the files of a snapshot. For operators: after storage was moved by
copying (cp -a), or a base was touched or made sparse (fallocate -d), the files are
not those that were recorded, and the snapshot is broken, though they hold the same
data. No program can know that; you can.

It shows what differs from the record, what is proven (headers, sizes, the chain, sums
that downloads have left) and what is not, and asks. The record then takes the files
as they are, the journal says who vouched, and the snapshot can be restored and
deleted again. Nothing of the VPS and its files is changed.

What is missing, cut short, of another size or of another snapshot cannot be vouched
for. If the files hold something else, a restore brings that back.`,
		Example: `  vpssnap vouch web1
  vpssnap vouch web1 --yes     # for scripts`,
		SuggestFor:        []string{"trust", "accept"},
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVPS,
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			if !yes && !isTerminal(a.stdin) {
				return usagef("there is no terminal to ask on; give --yes if you vouch for it")
			}
			s, err := c.Snapshot(ctx, args[0])
			if err != nil {
				return err
			}
			same, err := c.Vouch(ctx, args[0], api.VouchRequest{})
			if err == nil {
				return a.print(same, func() { a.say("%s: the files of the snapshot are as recorded", clean(args[0])) })
			}
			var told *client.Error
			if !errors.As(err, &told) || told.Code != api.CodeConfirmationRequired {
				return err
			}
			for _, part := range strings.Split(told.Detail, ". ") {
				fmt.Fprintf(a.stderr, "%s.\n", clean(part))
			}
			if err := a.confirm(ctx, yes, "Do the files of the snapshot of "+args[0]+" hold what they held?"); err != nil {
				return err
			}
			done, err := c.Vouch(ctx, args[0], api.VouchRequest{Confirm: s.ID})
			if err != nil {
				return err
			}
			return a.print(done, func() { a.say("%s: the snapshot is %s", clean(args[0]), clean(string(done.State))) })
		}),
	}
	yesFlag(cmd.Flags(), &yes)
	return cmd
}
