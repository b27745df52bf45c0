// Command vpssnapd takes, restores and deletes the snapshots of the VPSes on
// this KVM host, and serves the REST API to panels, order systems and vpssnap.
//
// As vpssnapd rebuild it makes a lost or damaged database anew from the host.
//
// Exit codes: 0 stopped on request or rebuilt, 1 it could not start or go on, 2
// usage, 3 the database is damaged or of a newer version (a start will not help).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"vpssnapd/api/server"
	"vpssnapd/daemon"
	"vpssnapd/hypervisor/libvirt"
	"vpssnapd/hypervisor/qemuimg"
	"vpssnapd/systemd"
	"vpssnapd/systemd/bus"
)

// version is set at build time.
var version = "dev"

// exitUnusable tells systemd not to start it again (RestartPreventExitStatus=).
const exitUnusable = 3

// shutdownLimit is how long requests may still be answered after SIGTERM.
const shutdownLimit = 5 * time.Second

func main() {
	path := flag.String("config", "/etc/vpssnapd/config.toml", "the configuration `file`")
	hook := flag.Bool("hook", false, "act as libvirt's qemu hook: NAME OPERATION PHASE EXTRA, the definition on standard input")
	showVersion := flag.Bool("version", false, "print the version and exit")
	flag.Usage = usage
	work, args := run, os.Args[1:]
	if len(args) > 0 && args[0] == "rebuild" {
		work, args = rebuild, args[1:]
	}
	_ = flag.CommandLine.Parse(args) // it exits by itself
	switch {
	case *showVersion:
		fmt.Println("vpssnapd", version)
		return
	case *hook:
		exit(hookWith(*path, flag.Args()))
	case flag.NArg() > 0:
		usage()
		os.Exit(2)
	}
	exit(work(*path))
}

func exit(err error) {
	switch {
	case errors.Is(err, daemon.ErrUnusable):
		fmt.Fprintln(os.Stderr, "vpssnapd:", err)
		os.Exit(exitUnusable)
	case err != nil:
		fmt.Fprintln(os.Stderr, "vpssnapd:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func hookWith(path string, args []string) error {
	c, err := readConfig(path)
	if err != nil {
		return err
	}
	return runHook(c, args, os.Stdin)
}

func usage() {
	fmt.Fprint(os.Stderr, `usage: vpssnapd [-config FILE]
       vpssnapd rebuild [-config FILE]

Takes, restores and deletes the snapshots of the VPSes on this KVM host.
Runs until SIGTERM or SIGINT; operations in progress are then left where they
are, and the next start takes them up.

rebuild makes a lost or damaged database anew from what the host's VPSes say,
and keeps the damaged one aside. It refuses while a daemon runs, and when the
database is whole.

`)
	flag.PrintDefaults()
	fmt.Fprint(os.Stderr, "\nExit codes: 0 stopped on request or rebuilt, 1 it could not start or go on, 2 usage.\n")
}

// run wires the parts and works until a signal.
func run(path string) error {
	c, err := readConfig(path)
	if err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: c.LogLevel}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	certificates, err := c.TLS.load()
	if err != nil {
		return err
	}
	mailer, err := c.Mail.open()
	if err != nil {
		return err
	}
	host, err := openHost(ctx, c, logger)
	if err != nil {
		return err
	}
	defer closing(logger, "libvirt", host.Close)
	parts := c.daemon(host, logger)
	parts.Senders = senders(mailer)
	d, err := daemon.Open(ctx, parts)
	if err != nil {
		return err
	}
	defer closing(logger, "daemon", d.Close)

	defer serveBus(ctx, d, logger)()
	s := server.New(server.Config{
		Service: d, OperatorGroup: c.OperatorGroup, Logger: logger, Version: version,
		PerSecond: c.CallsPerSecond, Proxies: c.TrustedProxies,
	})
	return serve(ctx, s, c, certificates, logger)
}

func openHost(ctx context.Context, c config, logger *slog.Logger) (*libvirt.Host, error) {
	images, err := qemuimg.New()
	if err != nil {
		return nil, err
	}
	return libvirt.Open(ctx, libvirt.Config{URI: c.Libvirt.URI, ConfigDir: c.Libvirt.ConfigDir, Images: images, Logger: logger})
}

// serve listens only now that recovery is done, tells systemd, and returns when
// a signal comes or a listener fails.
func serve(ctx context.Context, s *server.Server, c config, certificates *certificates, logger *slog.Logger) error {
	listeners, err := listen(c)
	if err != nil {
		return err
	}
	defer certificates.reloadOnHangup(logger)()
	failed := make(chan error, 2)
	go func() { failed <- s.ServeUnix(listeners.unix) }()
	if listeners.tcp != nil {
		go func() { failed <- s.ServeTCP(listeners.tcp, certificates.config()) }()
	}
	logger.Info("ready", "version", version, "socket", c.Socket, "listen", c.Listen)
	systemd.Ready()
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	systemd.Stopping()
	shutdown, cancel := context.WithTimeout(context.Background(), shutdownLimit)
	defer cancel()
	return errors.Join(err, s.Shutdown(shutdown))
}

// serveBus answers on the system bus, if there is one, until ctx and stop end it.
func serveBus(ctx context.Context, d *daemon.Daemon, logger *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		bus.Serve(ctx, bus.Config{Service: d, Logger: logger, Version: version})
	}()
	return func() {
		cancel()
		<-ended
	}
}

func closing(logger *slog.Logger, what string, closer func() error) {
	if err := closer(); err != nil {
		logger.Error("not closed cleanly", "what", what, "error", err)
	}
}
