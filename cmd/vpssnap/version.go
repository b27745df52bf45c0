package main

import (
	"context"
	"fmt"

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

func versionCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of vpssnap, and of vpssnapd if it answers",
		Long: `Print the version of vpssnap, and of vpssnapd if it answers. A daemon of another
version was not restarted after an upgrade, or is another host's.`,
		Example: "  vpssnap version\n  vpssnap --version",
		Args:    cobra.NoArgs,
		RunE: a.action(func(ctx context.Context, c *client.Client, _ []string) error {
			v := versions{Client: version}
			h, err := c.Host(ctx)
			if err == nil {
				v.Server = h.Version
			}
			return a.print(v, func() { a.showVersions(v, err) })
		}),
	}
}

// showVersions does not fail for want of a daemon: half of the answer is there.
func (a *app) showVersions(v versions, err error) {
	server := clean(v.Server)
	if err != nil {
		server = "unknown: " + clean(err.Error())
	}
	a.sheet([2]string{"vpssnap", v.Client}, [2]string{"vpssnapd", server})
	if err != nil || v.Server == v.Client {
		return
	}
	fmt.Fprintln(a.stderr, "vpssnap: the daemon has another version than this command")
	if a.server == "" {
		fmt.Fprintln(a.stderr, "  after an upgrade:  systemctl restart vpssnapd")
	}
}
