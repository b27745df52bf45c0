package main

import (
	"context"

	"github.com/spf13/cobra"

	"vpssnapd/api/client"
)

// optionCancelCmd asks before --now, which deletes the snapshot without a grace.
func optionCancelCmd(a *app) *cobra.Command {
	var now, yes bool
	cmd := &cobra.Command{
		Use:   "cancel VPS",
		Short: "Cancel the option of a VPS",
		Long: `Cancel the option of a VPS. It goes into grace: no more snapshots can be taken,
but restore and delete still work until the grace ends. Then the snapshot is
deleted. With --now that happens at once.`,
		Example: `  vpssnap option cancel web1
  vpssnap option cancel web1 --now`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVPS,
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			if now {
				if err := a.mayAsk(yes); err != nil {
					return err
				}
				if err := a.confirm(ctx, yes, "The option of "+args[0]+" ends now, and its snapshot will be gone for good."); err != nil {
					return err
				}
			}
			o, err := c.CancelOption(ctx, args[0], now)
			if err != nil {
				return err
			}
			return a.print(o, func() { a.showOption(o) })
		}),
	}
	cmd.Flags().BoolVar(&now, "now", false, "delete the snapshot and release the option at once")
	yesFlag(cmd.Flags(), &yes)
	return cmd
}
