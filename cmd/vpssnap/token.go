package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

func tokenCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make, list and revoke the access tokens of panels and order systems",
		Long: `Make, list and revoke the access tokens of panels and order systems, who show them at
the daemon's TCP address. On this host's own socket nobody needs a token.`,
		Args: cobra.NoArgs,
		RunE: needsCommand,
	}
	cmd.AddCommand(tokenCreateCmd(a), tokenListCmd(a), tokenRevokeCmd(a))
	return cmd
}

func tokenListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the tokens; their secrets are not known",
		Long: `List the tokens: what each may do, the VPS that it is bound to, when it expires and
when it was last used (noted once an hour). The daemon keeps no secret, only its hash.`,
		Example: "  vpssnap token list",
		Args:    cobra.NoArgs,
		RunE: a.action(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.Tokens(ctx)
			if err != nil {
				return err
			}
			return a.print(api.TokenList{Tokens: list}, func() { a.tokenTable(list) })
		}),
	}
}

func (a *app) tokenTable(list []api.Token) {
	t := a.table("id", "name", "scopes", "way", "vps", "expires", "last used")
	for _, k := range list {
		t.AppendRow(
			table.Row{
				clean(k.ID),
				clean(k.Name),
				scopesOf(k),
				string(k.Way),
				boundTo(k),
				momentOr(k.ExpiresAt, "never"),
				momentOr(k.LastUsedAt, "-"),
			},
		)
	}
	t.Render()
}

func scopesOf(k api.Token) string {
	var names []string
	for _, s := range k.Scopes {
		names = append(names, string(s))
	}
	return strings.Join(names, ",")
}

func boundTo(k api.Token) string {
	if len(k.VPS) == 0 {
		return "all"
	}
	return clean(strings.Join(k.VPS, ","))
}

func tokenRevokeCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "Revoke a token, and those that it has made, at once",
		Long: `Revoke a token, and those that it has made. The next call with one of them is refused,
and listeners to events are cut off within 15 seconds.`,
		Example:           "  vpssnap token revoke tok-3f2a9c01b7de",
		SuggestFor:        []string{"delete", "remove", "rm"},
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeToken,
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			return c.RevokeToken(ctx, args[0])
		}),
	}
}

// tokenScopes are the scopes in the order of what they allow.
var tokenScopes = []api.Scope{api.ScopeRead, api.ScopeSnapshot, api.ScopeOption, api.ScopeAdmin}

func tokenCreateCmd(a *app) *cobra.Command {
	way := choice{value: "panel", of: []string{"panel", "order"}}
	var scopes, bound []string
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a token",
		Long: `Make a token and print its secret, which is shown now and never again. NAME is
seen as the author of what is done with it.

Scopes: read; snapshot (take, restore, delete); option (order and cancel, for
order systems); admin (everything).

A file for the secret is made with umask 077, so that nobody else reads it.`,
		SuggestFor: []string{"add", "make", "new"},
		Example: `  vpssnap token create panel --scope read,snapshot > panel.token
  vpssnap token create shop --scope read,option --way order --expires-in 8760h`,
		Args: cobra.ExactArgs(1),
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&scopes, "scope", nil, "what it may do: read, snapshot, option, admin; several with commas")
	flags.StringSliceVar(&bound, "vps", nil, "bind it to this VPS; may be repeated. All others do not exist for it")
	completeFlag(cmd, "vps", a.namesOfVPS)
	flags.DurationVar(&life, "expires-in", 0, "when it expires, as in 720h; without it is valid until revoked")
	choose(cmd, flags, &way, "way", "", "what the journal says that its changes came by: panel or order")
	cmd.RunE = a.action(func(ctx context.Context, c *client.Client, args []string) error {
		r := api.TokenRequest{Name: args[0], Way: api.TokenRequestWay(way.value), VPS: bound}
		if len(scopes) == 0 {
			return usagef("say what the token may do, as in --scope read,snapshot")
		}
		for _, s := range scopes {
			if !slices.Contains(tokenScopes, api.Scope(s)) {
				return usagef("--scope: %q is none of read, snapshot, option, admin", s)
			}
			r.Scopes = append(r.Scopes, api.Scope(s))
		}
		if flags.Changed("expires-in") && life < time.Second {
			return usagef("--expires-in must be 1s or more")
		}
		r.ExpiresInSeconds = int64(life.Seconds())
		made, err := c.CreateToken(ctx, r)
		if err != nil {
			return err
		}
		return a.print(made, func() { a.showNewToken(made) })
	})
	return cmd
}

// showNewToken prints the secret alone to the standard output, for scripts. All else
// goes to the standard error.
func (a *app) showNewToken(made api.NewToken) {
	a.say("%s", clean(made.Secret))
	fmt.Fprintf(a.stderr, "%s was made. The secret above is not kept: it cannot be shown again.\n", clean(made.Token.ID))
}
