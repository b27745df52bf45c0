package main

import (
	"context"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

func optionHistoryCmd(a *app) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "history VPS",
		Short: "Read every change of the options of a VPS, newest first",
		Long: `Read every change of the options of a VPS, newest first: when, by whom, and from
which state to which. Options that are over are among them.`,
		Example:           "  vpssnap option history web1 --limit 10",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVPS,
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			list, err := readPages(limit, func(size int, cursor *string) ([]api.OptionChange, string, error) {
				page, err := c.OptionHistory(ctx, args[0], api.ListOptionHistoryParams{Limit: &size, Cursor: cursor})
				return page.Changes, page.Next, err
			})
			if err != nil {
				return err
			}
			return a.print(api.OptionHistory{Changes: list}, func() { a.optionHistoryTable(list) })
		}),
	}
	limitFlag(cmd, &limit)
	return cmd
}

func (a *app) optionHistoryTable(list []api.OptionChange) {
	t := a.table("time", "option", "state", "by", "change")
	for _, c := range list {
		t.AppendRow(table.Row{moment(c.At), clean(c.Option), state(c.State), clean(c.Actor.Name), clean(c.Note)})
	}
	t.Render()
}
