package main

import (
	"context"

	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

// takeCmd waits for the end unless told otherwise, so that scripts can go on with a
// snapshot.
func takeCmd(a *app) *cobra.Command {
	var (
		request api.TakeRequest
		noWait  bool
		quiesce = choice{value: "prefer", of: []string{"prefer", "require", "never"}}
	)
	cmd := &cobra.Command{
		Use:   "take VPS",
		Short: "Take the snapshot of a VPS",
		Long: `Take the snapshot of a VPS. It keeps running. Needs an active snapshot option.

A snapshot is no backup: it lies on the same storage as the VPS and is lost with
it. Use it as a quick way back before a risky change, and delete it afterwards.`,
		Example: `  vpssnap take web1 --description "before the upgrade"
  vpssnap take web1 --quiesce require     # fail if the guest cannot be frozen
  vpssnap take web1 --replace             # the new one instead of the present one`,
		SuggestFor:        []string{"create", "snapshot", "snap"},
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVPS,
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			request.Quiesce = api.TakeRequestQuiesce(quiesce.value)
			op, err := c.Take(ctx, args[0], request)
			if err != nil {
				return err
			}
			return a.follow(ctx, c, op, noWait)
		}),
	}
	flags := cmd.Flags()
	flags.StringVarP(&request.Description, "description", "d", "", "say what it is for")
	choose(
		cmd, flags, &quiesce, "quiesce", "",
		"freeze the guest's file systems: prefer (if its agent answers),\nrequire (else fail) or never",
	)
	flags.BoolVar(&request.Replace, "replace", false, "replace the present snapshot, without a moment that has none")
	noWaitFlag(flags, &noWait)
	return cmd
}
