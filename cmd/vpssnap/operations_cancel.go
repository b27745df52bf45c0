package main

import (
	"context"

	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

// operationsCancelCmd waits for the end: a cancel is a request, and may come too late.
func operationsCancelCmd(a *app) *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use:   "cancel ID",
		Short: "Stop an operation at the next safe point and undo it",
		Long: `Stop an operation at the next safe point and undo what it did. Past the point of
no return it can only be finished.

One that needs an operator is taken back where the step at which it stopped can be
undone; else it is refused with the reason.

It is done (exit code 0) when the operation was cancelled; when it ended in
another way first, the exit code tells which.`,
		Example:    "  vpssnap operations cancel op-019a1b2c3d4e5f607182",
		SuggestFor: []string{"stop", "abort"},
		Args:       cobra.ExactArgs(1),
		ValidArgsFunction: a.completeOperation(func(op api.Operation) bool {
			return op.Cancellable || op.Status == api.OperationStatusNeedsAttention
		}),
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			op, err := c.CancelOperation(ctx, args[0])
			if err != nil {
				return err
			}
			if op, err = a.wait(ctx, c, op, noWait); err != nil {
				return err
			}
			if err := a.print(op, func() { a.sayCancelled(op) }); err != nil {
				return err
			}
			switch op.Status {
			case api.OperationStatusFailed, api.OperationStatusNeedsAttention:
				return &outcomeError{op}
			case api.OperationStatusSucceeded:
				return errTooLate
			}
			return nil
		}),
	}
	noWaitFlag(cmd.Flags(), &noWait)
	return cmd
}

// say prints a line for people.
func (a *app) sayCancelled(op api.Operation) {
	switch {
	case !client.Ended(op):
		a.say("%s will be cancelled at the next safe point", op.ID)
	case op.Status == api.OperationStatusCancelled:
		a.say("%s was cancelled; everything was undone", op.ID)
	}
}
