package main

import (
	"context"

	"github.com/spf13/cobra"

	"vpssnapd/api/client"
)

func (a *app) operationsResumeCmd() *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use:   "resume ID",
		Short: "Take up an operation that needed an operator",
		Long: `Take up an operation that was parked because it needed an operator, after its
cause was cured. What was done already is not done again.`,
		Args: cobra.ExactArgs(1),
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			op, err := c.ResumeOperation(ctx, args[0])
			if err != nil {
				return err
			}
			return a.follow(ctx, c, op, noWait)
		}),
	}
	noWaitFlag(cmd.Flags(), &noWait)
	return cmd
}
