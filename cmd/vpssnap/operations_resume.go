package main

import (
	"context"

	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

// operationsResumeCmd is for operators who have cured the cause.
func operationsResumeCmd(a *app) *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use:   "resume ID",
		Short: "Take up an operation that needed an operator",
		Long: `Take up an operation that was parked because it needed an operator, after its
cause was cured. What was done already is not done again.`,
		Example:    "  vpssnap operations resume op-019a1b2c3d4e5f607182",
		SuggestFor: []string{"continue", "retry"},
		Args:       cobra.ExactArgs(1),
		ValidArgsFunction: a.completeOperation(func(op api.Operation) bool {
			return op.Status == api.OperationStatusNeedsAttention
		}),
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
