package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

func operationsShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show an operation",
		Long: `Show an operation: who asked for it, what it is doing, how far it is, and whether it
can be cancelled; or how it ended, and what to do if it failed.`,
		Example:           "  vpssnap operations show op-019a1b2c3d4e5f607182",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeOperation(func(api.Operation) bool { return true }),
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			op, err := c.Operation(ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(op, func() { a.showOperation(op) })
		}),
	}
}

func (a *app) showOperation(op api.Operation) {
	pairs := [][2]string{
		{"Operation", clean(op.ID)},
		{"VPS", clean(op.VPSName) + " (" + clean(op.VPS) + ")"},
		{"Kind", string(op.Kind)},
		{"Status", state(op.Status)},
		{"Asked for by", clean(op.Actor.Name) + " (" + string(op.Actor.Way) + ")"},
		{"Asked for at", moment(op.CreatedAt)},
		{"Begun", momentOr(op.StartedAt, "")},
		{"Ended", momentOr(op.EndedAt, "")},
		{"Result", clean(op.Result)},
	}
	if op.LongestPauseMS > 0 {
		pairs = append(pairs, [2]string{"Longest pause", fmt.Sprintf("%d ms", op.LongestPauseMS)})
	}
	if !client.Ended(op) {
		pairs = append(pairs,
			[2]string{"Progress", standing(op)},
			[2]string{"Can be cancelled", yesNo(op.Cancellable)},
			[2]string{"Cancel requested", yesNo(op.CancelRequested)})
	}
	if e := op.Error; e != nil {
		pairs = append(pairs,
			[2]string{"Error", string(e.Code) + ": " + clean(e.Detail)},
			[2]string{"Remedy", clean(e.Remedy)})
	}
	a.sheet(pairs...)
}
