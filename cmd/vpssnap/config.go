package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"
)

func configCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Look after the daemon's configuration",
		Long:  "Look after the daemon's configuration, /etc/vpssnapd/config.toml.",
		Args:  cobra.NoArgs,
		RunE:  needsCommand,
	}
	cmd.AddCommand(configCheckCmd(a))
	return cmd
}

// configCheckCmd asks vpssnapd itself, as only that knows its configuration.
func configCheckCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE]",
		Short: "Say whether the daemon could use a configuration",
		Long: `Say whether the daemon could use a configuration, and the certificates that it
names, without any change. Errors name the line, and all unknown keys are told at once.

The program vpssnapd of this host is asked, which need not run: it is the one that will
read the file, and so its word counts. FILE is /etc/vpssnapd/config.toml by default.`,
		Example: "  vpssnap config check\n  vpssnap config check ./config.toml && systemctl reload vpssnapd",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			return checkConfig(cmd.Context(), self, args, a.stdout, a.stderr)
		},
	}
}

// errConfig: vpssnapd has said what is wrong.
var errConfig = errors.New("the configuration cannot be used")

// checkConfig asks the daemon's program that was installed with self. The command line
// does not read the configuration itself: that would link it with all that is configured.
func checkConfig(ctx context.Context, self string, args []string, stdout, stderr io.Writer) error {
	dir := filepath.Dir(self)
	// Beside this program or in sbin, as packages lay them; never from the PATH, as root
	// runs it.
	for _, program := range []string{filepath.Join(dir, "vpssnapd"), filepath.Join(dir, "..", "sbin", "vpssnapd")} {
		if _, err := os.Stat(program); err != nil {
			continue
		}
		cmd := exec.CommandContext(ctx, program, append([]string{"config", "check"}, args...)...)
		cmd.Stdout, cmd.Stderr = stdout, stderr
		err := cmd.Run()
		if _, said := errors.AsType[*exec.ExitError](err); said {
			return errConfig
		}
		return err
	}
	return fmt.Errorf("cannot check the configuration: there is no vpssnapd beside %s, nor in ../sbin", self)
}
