package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"vpssnapd/api/client"
)

// deleteCmd shows which snapshot will go before it asks.
func deleteCmd(a *app) *cobra.Command {
	var yes, noWait bool
	cmd := &cobra.Command{
		Use:   "delete VPS",
		Short: "Delete the snapshot of a VPS",
		Long: `Delete the snapshot of a VPS. The VPS keeps running, with all that it has
written; it can no longer be put back to the snapshot. What the VPS has written is
merged into its disks, which may take a while.`,
		Example: `  vpssnap delete web1
  vpssnap delete web1 --yes --no-wait     # for scripts`,
		SuggestFor:        []string{"remove", "rm", "drop"},
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVPS,
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			if err := a.mayAsk(yes); err != nil {
				return err
			}
			s, err := c.Snapshot(ctx, args[0])
			if err != nil {
				return err
			}
			question := fmt.Sprintf(
				"The snapshot of %s from %s will be gone for good; the VPS stays as it is.", args[0],
				moment(s.CreatedAt),
			)
			if s.UndoUntil != nil {
				question += " The last restore can then no longer be undone."
			}
			if err := a.confirm(ctx, yes, question); err != nil {
				return err
			}
			op, err := c.Delete(ctx, args[0])
			if err != nil {
				return err
			}
			return a.follow(ctx, c, op, noWait)
		}),
	}
	yesFlag(cmd.Flags(), &yes)
	noWaitFlag(cmd.Flags(), &noWait)
	return cmd
}
