package main

import (
	"context"

	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

func optionCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "option",
		Short: "Order, activate or cancel the snapshot option of a VPS",
		Long: `Order, activate or cancel the snapshot option of a VPS. Only a VPS with an active
option can take a snapshot. An order system does the same by the API.`,
		Args: cobra.NoArgs,
		RunE: needsCommand,
	}
	cmd.AddCommand(
		optionShowCmd(a),
		optionOrderCmd(
			a, "order", "Order the option; it must be activated before a snapshot can be taken",
			api.OptionOrderStateOrdered,
		),
		optionOrderCmd(a, "activate", "Activate the option, so that a snapshot can be taken", api.OptionOrderStateActive),
		optionCancelCmd(a),
		optionHistoryCmd(a),
	)
	return cmd
}

func optionShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show VPS",
		Short:             "Show the option of a VPS as it was sold",
		Long:              "Show the option of a VPS: its state, the price as it was sold, and when it ends.",
		Example:           "  vpssnap option show web1",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVPS,
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			o, err := c.Option(ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(o, func() { a.showOption(o) })
		}),
	}
}

func (a *app) showOption(o api.Option) {
	a.sheet(
		[2]string{"Option", clean(o.ID)},
		[2]string{"State", state(o.State)},
		[2]string{"Price", price(o.Price)},
		[2]string{"Order", clean(o.OrderRef)},
		[2]string{"Contact", clean(o.ContactEmail)},
		[2]string{"Locale", clean(o.Locale)},
		[2]string{"Ordered", moment(o.OrderedAt)},
		[2]string{"Activated", momentOr(o.ActivatedAt, "")},
		[2]string{"Ends", momentOr(o.EndsAt, "")},
		[2]string{"Cancelled", momentOr(o.CancelledAt, "")},
		[2]string{"Grace until", momentOr(o.GraceUntil, "")},
		[2]string{"Released", momentOr(o.ReleasedAt, "")},
	)
}
