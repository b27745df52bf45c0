package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vpssnapd/api/client"
	"vpssnapd/hostfile"
)

const defaultSocket = "/run/vpssnapd/api.sock"

// app is what the commands share: where to read, where to write, whom to ask. Commands
// print through it only, so that tests can play a terminal.
type app struct {
	stdin          *os.File
	stdout, stderr io.Writer

	socket    string
	server    string
	tokenFile string
	// ca, cert and key are files, for TLS that the system's CAs do not cover.
	ca, cert, key string
	output        choice

	// started reports whether the command line was understood; errors before are usage errors.
	started bool
}

// root builds the command tree.
func (a *app) root() *cobra.Command {
	a.output = choice{value: "table", of: []string{"table", "json", "yaml"}}
	showVersion := false
	root := &cobra.Command{
		Use:   "vpssnap",
		Short: "One snapshot per VPS: take it, restore it, delete it",
		Long: `vpssnap asks vpssnapd, the daemon on this host, to take, restore and delete
the snapshot of a VPS. There is one snapshot per VPS. VPS is its name or its id.

A snapshot is a quick way back before a risky change. It is no backup.

Root and the members of the group vpssnap may use it on the host itself; with
--server and a token it works from elsewhere.

Environment: VPSSNAP_SOCKET is the default of --socket, VPSSNAP_TOKEN the token for
--server; NO_COLOR=1 switches colours off, which only terminals get anyway.`,
		Example: `  vpssnap list
  vpssnap take web1 --description "before the upgrade"
  vpssnap restore web1
  vpssnap delete web1`,
		// Packages install the scripts: vpssnap docs. Packages install them, so nobody
		// has to ask for the script.
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if showVersion {
				return versionCmd(a).RunE(cmd, args)
			}
			return needsCommand(cmd, args)
		},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			// cobra has parsed everything by now: what fails from here on is not usage.
			a.started = true
			if !isTerminal(a.stdout) || isDumb() || os.Getenv("NO_COLOR") != "" {
				text.DisableColors()
			}
			return a.checkConnection(cmd)
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(
		&a.socket, "socket", envOr("VPSSNAP_SOCKET", defaultSocket),
		"the daemon's Unix socket (environment: VPSSNAP_SOCKET)",
	)
	flags.StringVar(
		&a.server, "server", "",
		"ask the daemon at this URL instead, with a token from the\nenvironment (VPSSNAP_TOKEN) or from --token-file",
	)
	flags.StringVar(&a.tokenFile, "token-file", "", "read the token from this file, which must be yours and closed to others")
	flags.StringVar(&a.ca, "ca", "", "trust the CAs in this PEM file, and no others (with --server)")
	flags.StringVar(&a.cert, "cert", "", "show the certificate in this PEM file (with --server)")
	flags.StringVar(&a.key, "key", "", "the certificate's private key, a PEM file")
	choose(root, flags, &a.output, "output", "o", "how to print: table, json or yaml")
	root.Flags().BoolVar(&showVersion, "version", false, "print the versions, as the command version does")
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.AddCommand(
		listCmd(a), showCmd(a), takeCmd(a), restoreCmd(a), undoRestoreCmd(a), deleteCmd(a), describeCmd(a), vouchCmd(a),
		downloadCmd(a), downloadsCmd(a), offersCmd(a), optionCmd(a), messagesCmd(a), eventsCmd(a), watchCmd(a),
		operationsCmd(a), tokenCmd(a), webhookCmd(a), hostCmd(a), doctorCmd(a), configCmd(a), versionCmd(a), docsCmd(a),
	)
	// Now, not when cobra would: their mistakes are explained like all others.
	root.InitDefaultCompletionCmd()
	addHelp(root)
	documentExits(root)
	explainUsage(root)
	return root
}

// envOr is the environment's word, or another.
func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// checkConnection refuses what does not go together before anything is asked for.
func (a *app) checkConnection(cmd *cobra.Command) error {
	if a.server != "" && cmd.Flags().Changed("socket") {
		return usagef("give either --socket or --server")
	}
	if a.server == "" && a.tokenFile != "" {
		return usagef("--token-file needs --server: on the socket no token is asked for")
	}
	if (a.cert == "") != (a.key == "") {
		return usagef("give both --cert and --key")
	}
	if (a.ca != "" || a.cert != "") && !strings.HasPrefix(a.server, "https://") {
		return usagef("--ca, --cert and --key need --server with an https URL")
	}
	return nil
}

// client connects as the global flags say.
func (a *app) client(ctx context.Context) (*client.Client, error) {
	if a.server == "" {
		return client.Unix(a.socket)
	}
	token, err := a.token(ctx)
	if err != nil {
		return nil, err
	}
	certificates, err := a.certificates(ctx)
	if err != nil {
		return nil, err
	}
	c, err := client.HTTP(a.server, token, certificates)
	if err != nil {
		return nil, usagef("--server: %v", err)
	}
	return c, nil
}

func (a *app) token(ctx context.Context) (string, error) {
	token := os.Getenv("VPSSNAP_TOKEN")
	if a.tokenFile != "" {
		b, err := hostfile.Read(ctx, a.tokenFile, hostfile.Mine)
		if err != nil {
			return "", fmt.Errorf("cannot read the token: %w", err)
		}
		token = string(b)
	}
	token = strings.TrimSpace(token)
	if token == "" {
		return "", usagef("--server needs a token: set VPSSNAP_TOKEN or use --token-file")
	}
	return token, nil
}

// certificates is what --ca, --cert and --key say; nil when they say nothing.
func (a *app) certificates(ctx context.Context) (*tls.Config, error) {
	if a.ca == "" && a.cert == "" {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if a.ca != "" {
		text, err := hostfile.Read(ctx, a.ca, hostfile.Anyones)
		if err != nil {
			return nil, fmt.Errorf("cannot read the CAs: %w", err)
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("there is no certificate of a CA in %s", a.ca)
		}
	}
	if a.cert != "" {
		cert, err := hostfile.Read(ctx, a.cert, hostfile.Anyones)
		if err != nil {
			return nil, fmt.Errorf("cannot read the certificate: %w", err)
		}
		key, err := hostfile.Read(ctx, a.key, hostfile.Mine)
		if err != nil {
			return nil, fmt.Errorf("cannot read the key: %w", err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("cannot use the certificate %s with the key %s: %w", a.cert, a.key, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// action is the RunE of a command that asks the daemon. Its first argument, if
// there is one, is what an error's remedy is about.
func (a *app) action(
	do func(ctx context.Context, c *client.Client, args []string) error,
) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.client(cmd.Context())
		if err != nil {
			return err
		}
		err = do(cmd.Context(), c, args)
		if len(args) > 0 {
			err = withCommands(err, args[0])
		}
		return err
	}
}

// isDumb reports whether the terminal knows no colours, and cannot draw over a line.
func isDumb() bool { return os.Getenv("TERM") == "dumb" }

// fileOf is the file that is printed on, if it is one.
func fileOf(f any) (*os.File, bool) {
	if p, ok := f.(*paper); ok {
		f = p.to
	}
	file, ok := f.(*os.File)
	return file, ok
}

func isTerminal(f any) bool {
	file, ok := fileOf(f)
	return ok && term.IsTerminal(int(file.Fd()))
}
