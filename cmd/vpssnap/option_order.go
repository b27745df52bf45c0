package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

// orderFlags are the flags of option order and option activate.
type orderFlags struct {
	ref, currency, email, locale, endsAt string
	amount                               int64
	period                               choice
}

// optionOrderCmd is option order and option activate: they differ in the state.
func optionOrderCmd(a *app, name, short string, state api.OptionOrderState) *cobra.Command {
	f := orderFlags{period: choice{value: "month", of: []string{"month", "year", "once"}}}
	cmd := &cobra.Command{
		Use:   name + " VPS",
		Short: short,
		Long: short + `.

Without a price that of the offer is recorded. The command may be repeated: the
same order reference is the same order.`,
		Example:           "  vpssnap option " + name + " web1 --order-ref A-1001 --amount 299 --currency EUR --period month",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVPS,
	}
	flags := cmd.Flags()
	flags.StringVar(&f.ref, "order-ref", "", "the order system's own reference")
	flags.Int64Var(&f.amount, "amount", 0, "the price as sold, in the currency's minor unit: 299 is 2.99 EUR")
	flags.StringVar(&f.currency, "currency", "", "the price's currency, as in EUR")
	choose(cmd, flags, &f.period, "period", "", "how often the price is charged: month, year or once")
	flags.StringVar(&f.email, "email", "", "where to write to the customer")
	flags.StringVar(&f.locale, "locale", "", "the customer's language, as in fr or de-CH")
	flags.StringVar(&f.endsAt, "ends-at", "", "when the paid time ends, as in 2027-01-31 (UTC) or 2027-01-31T12:00:00Z")
	cmd.RunE = a.action(func(ctx context.Context, c *client.Client, args []string) error {
		order, err := f.order(flags.Changed("amount"), flags.Changed("period"))
		if err != nil {
			return err
		}
		order.State = state
		o, err := c.PutOption(ctx, args[0], order)
		if err != nil {
			return err
		}
		return a.print(o, func() { a.showOption(o) })
	})
	return cmd
}

// order says only what was given: the daemon leaves the rest as it is.
func (f *orderFlags) order(amount, period bool) (api.OptionOrder, error) {
	order := api.OptionOrder{OrderRef: f.ref, ContactEmail: f.email, Locale: f.locale}
	if amount != (f.currency != "") || period && !amount {
		return order, usagef("a price needs both --amount and --currency")
	}
	if amount {
		order.Price = &api.Price{Amount: f.amount, Currency: f.currency, Period: api.Period(f.period.value)}
	}
	if f.endsAt != "" {
		at, err := parseTime(f.endsAt)
		if err != nil {
			return order, err
		}
		order.EndsAt = &at
	}
	return order, nil
}

// parseTime takes a date too, for people; it means its beginning in UTC.
func parseTime(s string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, usagef("--ends-at: %q is no time such as 2027-01-31 or 2027-01-31T12:00:00Z", s)
}
