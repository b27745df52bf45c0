package main

import (
	"context"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

func operationsCmd(a *app) *cobra.Command {
	cmd := operationsListCmd(a)
	cmd.Use = "operations"
	cmd.Short = "List, show, cancel or resume operations"
	cmd.Long = `List, show, cancel or resume operations: the takes, restores, undos and deletions, each
of which goes on by itself, also when nobody waits for it or the daemon is restarted.
Without a command it lists them.`
	cmd.AddCommand(operationsListCmd(a), operationsShowCmd(a), operationsCancelCmd(a), operationsResumeCmd(a))
	return cmd
}

// operationsListCmd lists also what has ended, as long as it is kept.
func operationsListCmd(a *app) *cobra.Command {
	var (
		limit  int
		ref    string
		status = choice{of: []string{"pending", "running", "succeeded", "failed", "cancelled", "needs_attention"}}
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List operations, newest first",
		Long:  "List operations, newest first, with what each of them is doing or why it failed.",
		Example: `  vpssnap operations list --vps web1
  vpssnap operations list --status needs_attention`,
		Args: cobra.NoArgs,
		RunE: a.action(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := readPages(limit, func(size int, cursor *string) ([]api.Operation, string, error) {
				params := api.ListOperationsParams{Limit: &size, Cursor: cursor}
				if ref != "" {
					params.VPS = &ref
				}
				if status.value != "" {
					params.Status = (*api.OperationStatus)(&status.value)
				}
				page, err := c.Operations(ctx, params)
				return page.Operations, page.Next, err
			})
			if err != nil {
				return err
			}
			return a.print(api.OperationList{Operations: list}, func() { a.operationTable(list) })
		}),
	}
	cmd.Flags().StringVar(&ref, "vps", "", "only those of this VPS")
	completeFlag(cmd, "vps", a.namesOfVPS)
	choose(cmd, cmd.Flags(), &status, "status", "", "only those in this status")
	limitFlag(cmd, &limit)
	return cmd
}

func (a *app) operationTable(list []api.Operation) {
	t := a.table("id", "vps", "kind", "status", "begun", "by", "")
	for _, op := range list {
		note := ""
		switch {
		case op.Error != nil:
			note = clean(op.Error.Detail)
		case !client.Ended(op):
			note = standing(op)
		}
		t.AppendRow(
			table.Row{op.ID, clean(op.VPSName), op.Kind, state(op.Status), moment(op.CreatedAt), clean(op.Actor.Name), note},
		)
	}
	t.Render()
}
