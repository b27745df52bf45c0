package main

import (
	"context"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

// listCmd needs no libvirt: it shows what was known last.
func listCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the VPS of this host and their snapshots",
		Long: `List the VPS of this host: state, option, snapshot, how much was written since,
and the operation that is not finished.`,
		Example: `  vpssnap list
  vpssnap list -o json`,
		SuggestFor: []string{"status", "ps"},
		Args:       cobra.NoArgs,
		RunE: a.action(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.ListVPS(ctx)
			if err != nil {
				return err
			}
			return a.print(api.VPSList{VPS: list}, func() { a.listTable(list) })
		}),
	}
}

func (a *app) listTable(list []api.VPS) {
	t := a.table("name", "state", "option", "snapshot", "taken", "written since", "operation")
	for _, v := range list {
		option, snapshot, taken, delta, operation := "-", "-", "-", "-", "-"
		if v.Option != nil {
			option = state(v.Option.State)
		}
		if s := v.Snapshot; s != nil {
			snapshot, taken, delta = state(s.State), moment(s.CreatedAt), size(s.DeltaBytes)
		}
		if op := v.Operation; op != nil {
			operation = string(op.Kind) + " " + state(op.Status)
		}
		t.AppendRow(table.Row{clean(v.Name), state(v.State), option, snapshot, taken, delta, operation})
	}
	t.Render()
}
