package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

// completeWithin is how long a user who has pressed the tab key is kept waiting.
const completeWithin = time.Second

// completion offers words for an argument or a flag.
type completion = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective)

// words makes a completion of what the daemon says. When it does not answer there are
// none, and nothing is said: the user is in the middle of a line. Beside each name
// stands what helps to choose it.
func (a *app) words(ask func(ctx context.Context, c *client.Client) ([]string, error)) completion {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		const none = cobra.ShellCompDirectiveNoFileComp
		ctx, cancel := context.WithTimeout(cmd.Context(), completeWithin)
		defer cancel()
		c, err := a.client(ctx)
		if err != nil {
			return nil, none
		}
		words, err := ask(ctx, c)
		if err != nil {
			return nil, none
		}
		return words, none
	}
}

// first offers words for the first argument only.
func first(offer completion) completion {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return offer(cmd, args, typed)
	}
}

// word is one that is offered, with what the shell shows beside it.
func word(w string, about ...string) string {
	return clean(w) + "\t" + clean(strings.Join(about, " "))
}

// completeVPS offers the names of the VPSes.
func (a *app) completeVPS(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	return first(a.namesOfVPS)(cmd, args, typed)
}

func (a *app) namesOfVPS(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	return a.words(func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.ListVPS(ctx)
		var names []string
		for _, v := range list {
			about := "no snapshot"
			if v.Snapshot != nil {
				about = "snapshot " + string(v.Snapshot.State)
			}
			names = append(names, word(v.Name, about))
		}
		return names, err
	})(cmd, args, typed)
}

// completeOperation offers the ids of operations that are of use.
func (a *app) completeOperation(ofUse func(api.Operation) bool) completion {
	return first(a.words(func(ctx context.Context, c *client.Client) ([]string, error) {
		// One page is enough to choose from.
		page := largestPage
		list, err := c.Operations(ctx, api.ListOperationsParams{Limit: &page})
		var ids []string
		for _, op := range list.Operations {
			if ofUse(op) {
				ids = append(ids, word(op.ID, string(op.Kind), op.VPSName, string(op.Status)))
			}
		}
		return ids, err
	}))
}

// completeToken offers the ids of tokens.
func (a *app) completeToken(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	return first(a.words(func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.Tokens(ctx)
		var ids []string
		for _, t := range list {
			ids = append(ids, word(t.ID, t.Name))
		}
		return ids, err
	}))(cmd, args, typed)
}

// completeWebhook offers the ids of webhooks.
func (a *app) completeWebhook(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	return first(a.words(func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.Webhooks(ctx)
		var ids []string
		for _, w := range list {
			ids = append(ids, word(w.ID, w.URL))
		}
		return ids, err
	}))(cmd, args, typed)
}

// linksOf offers the ids of the links to the snapshot of a VPS.
func (a *app) linksOf(ref string) completion {
	return a.words(func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.Downloads(ctx, ref)
		var ids []string
		for _, d := range list {
			ids = append(ids, word(d.ID, d.Disk))
		}
		return ids, err
	})
}

// completeFlag teaches the shell the words of a flag that was added just now.
func completeFlag(cmd *cobra.Command, name string, offer completion) {
	if err := cmd.RegisterFlagCompletionFunc(name, offer); err != nil {
		// It cannot happen but by a mistake in this program, which every test would see.
		panic("the flag was added just now: " + err.Error())
	}
}
