package main

import (
	"context"

	"github.com/spf13/cobra"

	"vpssnapd/api/client"
)

// undoRestoreCmd asks too: it gives up what was written since the restore.
func undoRestoreCmd(a *app) *cobra.Command {
	var yes, noWait bool
	cmd := &cobra.Command{
		Use:   "undo-restore VPS",
		Short: "Put a VPS back to before its last restore",
		Long: `Put a VPS back to before its last restore, while that is kept. What was written
since the restore is given up.`,
		Example:           "  vpssnap undo-restore web1",
		SuggestFor:        []string{"undo"},
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVPS,
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			if err := a.mayAsk(yes); err != nil {
				return err
			}
			if err := a.confirm(ctx, yes, "What was written to "+args[0]+" since the restore will be lost."); err != nil {
				return err
			}
			op, err := c.UndoRestore(ctx, args[0])
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
