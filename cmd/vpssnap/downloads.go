package main

import (
	"context"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

func downloadsCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "downloads",
		Short: "List and revoke the links that a snapshot can be downloaded by",
		Long: `List and revoke the links that a snapshot can be downloaded by. Whoever has one can
read the disk without a token, for 24 hours or until it is revoked.`,
		Args: cobra.NoArgs,
		RunE: needsCommand,
	}
	cmd.AddCommand(downloadsListCmd(a), downloadsRevokeCmd(a))
	return cmd
}

func downloadsListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list VPS",
		Aliases: []string{"ls"},
		Short:   "List the links to the snapshot of a VPS",
		Long: `List the links to the snapshot of a VPS that are valid: which disk each is for and when
it expires. What makes a link work was told to who made it, and is not shown.`,
		Example:           "  vpssnap downloads list web1",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVPS,
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			list, err := c.Downloads(ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(api.DownloadList{Downloads: list}, func() { a.downloadTable(list) })
		}),
	}
}

func (a *app) downloadTable(list []api.DownloadLink) {
	t := a.table("id", "disk", "format", "size", "made", "expires")
	for _, d := range list {
		t.AppendRow(
			table.Row{clean(d.ID), clean(d.Disk), d.Format, size(d.SizeBytes), moment(d.CreatedAt), moment(d.ExpiresAt)},
		)
	}
	t.Render()
}

func downloadsRevokeCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:        "revoke VPS ID",
		Short:      "Revoke a link, and cut off who downloads with it",
		Long:       "Revoke a link to the snapshot of a VPS. Who downloads with it is cut off at once.",
		Example:    "  vpssnap downloads revoke web1 dl-9f2c61d07ab4",
		SuggestFor: []string{"delete", "remove", "rm"},
		Args:       cobra.ExactArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return a.linksOf(args[0])(cmd, args, typed)
			}
			return a.completeVPS(cmd, args, typed)
		},
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			return c.RevokeDownload(ctx, args[0], args[1])
		}),
	}
}
