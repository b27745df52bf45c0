package main

import (
	"context"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

func offersCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "offers",
		Short: "List the options on sale on this host, with price and conditions",
		Long: `List the options on sale on this host, as [offer] in the configuration has them. What
an option was sold for is kept with it: vpssnap option show.`,
		Example: "  vpssnap offers",
		Args:    cobra.NoArgs,
		RunE: a.action(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.Offers(ctx)
			if err != nil {
				return err
			}
			return a.print(api.OfferList{Offers: list}, func() { a.offerTable(list) })
		}),
	}
}

func (a *app) offerTable(list []api.Offer) {
	t := a.table("offer", "name", "price", "conditions")
	for _, o := range list {
		t.AppendRow(table.Row{clean(o.ID), clean(o.Name), price(o.Price), clean(strings.Join(o.Conditions, " "))})
	}
	t.Render()
}
