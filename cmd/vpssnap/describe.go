package main

import (
	"context"

	"github.com/spf13/cobra"

	"vpssnapd/api/client"
)

func describeCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "describe VPS TEXT",
		Short:             "Change what the snapshot of a VPS is said to be for",
		Long:              "Change what the snapshot of a VPS is said to be for: one line of at most 500 characters.",
		Example:           "  vpssnap describe web1 \"before the upgrade to 13\"",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeVPS,
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			s, err := c.Describe(ctx, args[0], args[1])
			if err != nil {
				return err
			}
			return a.print(s, func() { a.sheet(snapshotPairs(s)...) })
		}),
	}
}
