package main

import (
	"context"

	"github.com/spf13/cobra"

	"vpssnapd/api/client"
)

// version is set when a release is linked.
var version = "dev"

// versions is what the command prints as JSON.
type versions struct {
	Client string `json:"client"`
	Server string `json:"server,omitempty"`
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of vpssnap, and of vpssnapd if it answers",
		Args:  cobra.NoArgs,
		RunE: a.action(func(ctx context.Context, c *client.Client, _ []string) error {
			v := versions{Client: version}
			if h, err := c.Host(ctx); err == nil {
				v.Server = h.Version
			}
			return a.print(v, func() {
				a.sheet([2]string{"vpssnap", v.Client}, [2]string{"vpssnapd", clean(v.Server)})
			})
		}),
	}
}
