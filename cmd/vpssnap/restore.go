package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

// restoreCmd confirms with the id of the snapshot that it showed: one that was replaced
// meanwhile is not restored.
func restoreCmd(a *app) *cobra.Command {
	var (
		yes, noWait bool
		power       = choice{value: "previous", of: []string{"previous", "running", "off"}}
	)
	cmd := &cobra.Command{
		Use:   "restore VPS",
		Short: "Put a VPS back to its snapshot",
		Long: `Put a VPS back to its snapshot. It is powered off, and started again if it was
running. Everything written since the snapshot is lost, unless the restore is
undone in time (vpssnap undo-restore). The snapshot stays.`,
		Example: `  vpssnap restore web1
  vpssnap restore web1 --yes --power-after off`,
		SuggestFor:        []string{"revert", "rollback"},
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVPS,
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			if err := a.mayAsk(yes); err != nil {
				return err
			}
			request := api.RestoreRequest{PowerAfter: api.RestoreRequestPowerAfter(power.value)}
			s, err := c.Snapshot(ctx, args[0])
			if err != nil {
				return err
			}
			if !yes {
				if err := a.confirmRestore(ctx, c, args[0], s, request); err != nil {
					return err
				}
			}
			request.Confirm = s.ID
			op, err := c.Restore(ctx, args[0], request)
			if err != nil {
				return err
			}
			return a.follow(ctx, c, op, noWait)
		}),
	}
	flags := cmd.Flags()
	choose(cmd, flags, &power, "power-after", "", "what the VPS shall do afterwards: previous, running or off")
	yesFlag(flags, &yes)
	noWaitFlag(flags, &noWait)
	return cmd
}

// confirmRestore shows what would be lost. The daemon knows best: asked without
// a confirmation it does nothing but say so, or why a restore is not possible.
func (a *app) confirmRestore(ctx context.Context, c *client.Client, ref string, s api.Snapshot, r api.RestoreRequest) error {
	_, err := c.Restore(ctx, ref, r)
	var told *client.Error
	if !errors.As(err, &told) || told.Code != api.CodeConfirmationRequired {
		return err
	}
	fmt.Fprintf(a.stderr, "The snapshot was taken %s (%s).\nWhat a restore does: %s.\n",
		humanize.Time(s.CreatedAt), moment(s.CreatedAt), clean(told.Detail))
	return a.confirm(ctx, false, "Restore "+ref+"?")
}
