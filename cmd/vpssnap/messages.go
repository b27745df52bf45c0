package main

import (
	"context"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

// messagesCmd prints the newest first, as the API gives them.
func messagesCmd(a *app) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "messages [VPS]",
		Short: "Read what was done to a VPS, or to all, newest first",
		Long: `Read the journal that customers read, too: when, who asked for what, and how it
ended. Operators see what it was about in detail, in brackets.`,
		Example: `  vpssnap messages web1
  vpssnap messages --limit 200`,
		SuggestFor:        []string{"log", "logs", "journal", "history"},
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeVPS,
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			ref := ""
			if len(args) == 1 {
				ref = args[0]
			}
			list, err := readPages(limit, func(size int, cursor *string) ([]api.Message, string, error) {
				page, err := c.Messages(ctx, ref, api.ListMessagesParams{Limit: &size, Cursor: cursor})
				return page.Messages, page.Next, err
			})
			if err != nil {
				return err
			}
			return a.print(api.MessageList{Messages: list}, func() { a.messageTable(list) })
		}),
	}
	limitFlag(cmd, &limit)
	return cmd
}

func (a *app) messageTable(list []api.Message) {
	t := a.table("time", "vps", "by", "message")
	for _, m := range list {
		what := clean(m.Text)
		if m.Detail != "" {
			what += " [" + clean(m.Detail) + "]"
		}
		t.AppendRow(table.Row{moment(m.At), clean(m.VPSName), clean(m.Actor.Name), what})
	}
	t.Render()
}
