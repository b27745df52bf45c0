package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

func webhookCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "webhook",
		Short: "Have panels told of events over HTTPS",
		Long: `Have panels told of events over HTTPS: the daemon sends each a signed message, and
tries again while it does not arrive.`,
		Args: cobra.NoArgs,
		RunE: needsCommand,
	}
	cmd.AddCommand(webhookCreateCmd(a), webhookListCmd(a), webhookDeleteCmd(a), webhookTestCmd(a))
	return cmd
}

// webhookCreateCmd checks the types itself, to name the wrong one.
func webhookCreateCmd(a *app) *cobra.Command {
	var types []string
	cmd := &cobra.Command{
		Use:   "create URL",
		Short: "Have a URL told of events",
		Long: `Have a URL told of what happens to operations, options, snapshots and the space
on the host, and print the secret that its messages are signed with (Standard
Webhooks), which is shown now and never again.

URL must be https and lead to a public address, unless [webhook] in the
configuration permits others.`,
		Example: `  vpssnap webhook create https://panel.example.net/hooks/vpssnap
  vpssnap webhook create https://pager.example.net/ --type operation.needs_attention,space.critical`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().
		StringSliceVar(&types, "type", nil, "tell it only of this, as operation.succeeded or option.active; several with commas")
	cmd.RunE = a.action(func(ctx context.Context, c *client.Client, args []string) error {
		r := api.WebhookRequest{URL: args[0]}
		for _, name := range types {
			t := api.WebhookEventType(name)
			if !t.Valid() {
				return usagef("--type: webhooks are not told of %q; see WebhookEventType in the API's /docs", name)
			}
			r.Types = append(r.Types, t)
		}
		made, err := c.CreateWebhook(ctx, r)
		if err != nil {
			return err
		}
		return a.print(made, func() { a.showNewWebhook(made) })
	})
	return cmd
}

// showNewWebhook prints the secret alone to the standard output, for scripts.
func (a *app) showNewWebhook(made api.NewWebhook) {
	a.say("%s", clean(made.Secret))
	fmt.Fprintf(a.stderr, "%s was made. The secret above cannot be shown again.\n", clean(made.Webhook.ID))
}

func webhookListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the webhooks, what waits for them and why",
		Long: `List the webhooks: what each is told of, how many messages wait for it, when one was
delivered last, and why the last one was not.`,
		Example: "  vpssnap webhook list",
		Args:    cobra.NoArgs,
		RunE: a.action(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.Webhooks(ctx)
			if err != nil {
				return err
			}
			return a.print(api.WebhookList{Webhooks: list}, func() { a.webhookTable(list) })
		}),
	}
}

func (a *app) webhookTable(list []api.Webhook) {
	t := a.table("id", "url", "types", "waiting", "delivered", "failed", "last error")
	for _, w := range list {
		why := clean(w.LastError)
		if w.Disabled {
			why = "disabled: " + why
		}
		t.AppendRow(
			table.Row{
				clean(w.ID),
				clean(w.URL),
				typesOf(w),
				w.Waiting,
				momentOr(w.DeliveredAt, "-"),
				momentOr(w.FailedAt, "-"),
				why,
			},
		)
	}
	t.Render()
}

// typesOf is what a webhook is told of.
func typesOf(w api.Webhook) string {
	if len(w.Types) == 0 {
		return "all"
	}
	var names []string
	for _, t := range w.Types {
		names = append(names, string(t))
	}
	return clean(strings.Join(names, ","))
}

func webhookDeleteCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "delete ID",
		Short:             "Delete a webhook; what waits for it is not sent",
		Long:              "Delete a webhook. It is told of nothing more, and what waits for it is not sent.",
		Example:           "  vpssnap webhook delete wh-5b21e0c9d4f7",
		SuggestFor:        []string{"remove", "rm", "revoke"},
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeWebhook,
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			return c.DeleteWebhook(ctx, args[0])
		}),
	}
}

// webhookTestCmd fails when the message was not taken, for scripts.
func webhookTestCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "test ID",
		Short: "Send a webhook a message now",
		Long: `Send a webhook a message of the type webhook.test now, once, and say whether it was
accepted, or why not.`,
		Example:           "  vpssnap webhook test wh-5b21e0c9d4f7",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeWebhook,
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			got, err := c.TestWebhook(ctx, args[0])
			if err != nil {
				return err
			}
			if !got.Delivered {
				err = errors.New("the message was not delivered: " + clean(got.Error))
			}
			return errors.Join(a.print(got, func() { a.showWebhookTest(got) }), err)
		}),
	}
}

func (a *app) showWebhookTest(got api.WebhookTest) {
	if got.Delivered {
		a.say("The message was delivered.")
	}
}
