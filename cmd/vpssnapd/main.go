// Command vpssnapd takes, restores and deletes the snapshots of the VPSes on
// this KVM host, and serves the REST API to panels, order systems and vpssnap.
//
// As vpssnapd rebuild it makes a lost or damaged database again from the host; as
// vpssnapd config check it reports whether a configuration can be used.
//
// Exit codes: 0 stopped on request, rebuilt or usable, 1 it could not start or go on, 2
// usage, 3 the database is damaged or of a newer version (a start will not help).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"vpssnapd/api/server"
	"vpssnapd/cmd/internal/wire"
	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor/libvirt"
	"vpssnapd/hypervisor/qemuimg"
	"vpssnapd/systemd"
	"vpssnapd/systemd/bus"
)

// version is set at build time.
var version = "dev"

// exitUsage: the command line is not valid.
const exitUsage = 2

// exitUnusable tells systemd not to start it again (RestartPreventExitStatus=).
const exitUnusable = 3

// shutdownLimit is how long requests may still be answered after SIGTERM.
const shutdownLimit = 5 * time.Second

func main() {
	work, code := command(os.Args[1:])
	if work == nil {
		os.Exit(code)
	}
	err := work()
	if err == nil {
		err = stdout.failed()
	}
	exit(err)
}

// command reads the command line. Without work there is only an exit code left. Work is
// returned and not done, so that a test can read command lines.
func command(args []string) (work func() error, code int) {
	flags := flag.NewFlagSet("vpssnapd", flag.ContinueOnError)
	path := flags.String("config", "/etc/vpssnapd/config.toml", "the configuration `file`")
	hook := flags.Bool(
		"hook", false, "act as libvirt's qemu hook: NAME OPERATION PHASE EXTRA, the definition on standard input",
	)
	showVersion := flags.Bool("version", false, "print the version and exit")
	flags.Usage = func() {} // which of both it goes to is not known yet
	do := run
	checks := len(args) > 1 && args[0] == "config" && args[1] == "check"
	rebuilds := len(args) > 0 && args[0] == "rebuild"
	switch {
	case checks:
		do, args = checkConfig, args[2:]
	case rebuilds:
		do, args = rebuild, args[1:]
	}
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return func() error { usage(flags, stdout); return nil }, 0
	}
	flags.Usage = func() { usage(flags, os.Stderr) }
	if err != nil {
		flags.Usage()
		return nil, exitUsage
	}
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	alone := !checks && !rebuilds
	switch {
	case *hook && alone && !*showVersion: // its arguments are libvirt's
		return func() error { return hookWith(*path, flags.Args()) }, 0
	case *showVersion && alone && !*hook && flags.NArg() == 0:
		return func() error { fmt.Fprintln(stdout, "vpssnapd", version); return nil }, 0
	case checks && flags.NArg() == 1 && len(given) == 0:
		*path = flags.Arg(0)
	case *hook || *showVersion || flags.NArg() > 0:
		flags.Usage()
		return nil, exitUsage
	}
	return func() error { return do(*path) }, 0
}

// stdout is where answers go, to people and to programs.
var stdout = &output{to: os.Stdout}

// output remembers that it could not be written: an answer that nobody got is no success.
type output struct {
	to  io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.to.Write(p)
	o.err = errors.Join(o.err, err)
	return n, err
}

func (o *output) failed() error {
	if o.err == nil {
		return nil
	}
	return fmt.Errorf("cannot print: %w", o.err)
}

// exit prints the error, which is a sentence already; the name of the program is all that is added.
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
	c, err := readConfig(context.Background(), path)
	if err != nil {
		// The record says more about the VPS than the configuration: it is asked where it is by default.
		fmt.Fprintln(os.Stderr, "vpssnapd:", err)
		c = defaults()
	}
	return runHook(c, args, os.Stdin)
}

func usage(flags *flag.FlagSet, to io.Writer) {
	fmt.Fprint(to, `usage: vpssnapd [-config FILE]
       vpssnapd rebuild [-config FILE]
       vpssnapd config check [FILE]

Takes, restores and deletes the snapshots of the VPSes on this KVM host.
Runs until SIGTERM or SIGINT; operations in progress are then left where they
are, and the next start takes them up.

rebuild makes a lost or damaged database anew from what the host's VPSes say,
and keeps the damaged one aside. It refuses while a daemon runs, and when the
database is whole.

config check says whether a start could use the configuration, and the files that
it names. SIGHUP reads it anew; what then still needs a restart is in the log.

`)
	flags.SetOutput(to)
	flags.PrintDefaults()
	fmt.Fprint(to, `
Exit codes:
  0  stopped on request, rebuilt, or the configuration can be used
  1  it could not start or go on; it says why
  2  the command line is not valid
  3  the database is damaged or of a newer version: another start will not help
`)
}

// heapGrowth is by how many percent the heap may grow before it is cleaned up: less
// than usual, because the memory of a host is for its guests.
const heapGrowth = 40

// run wires the parts and works until a signal.
func run(path string) error {
	debug.SetGCPercent(heapGrowth)
	// From the first moment on: a signal to reload must not end a daemon that starts.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	c, err := readConfig(ctx, path)
	if err != nil {
		return err
	}
	r := &reloader{path: path, level: new(slog.LevelVar), running: c}
	r.level.Set(c.LogLevel)
	r.log = systemd.Logger(r.level)
	if err := r.readFiles(ctx); err != nil {
		return err
	}
	// Recovery of many operations, or the migration of a large database, outlasts
	// systemd's default of 90 s.
	started := systemd.Starting("taking up what an earlier run left behind")
	defer started()
	// A libvirt that does not answer is no reason to fail: the daemon waits for it.
	host, err := openHost(ctx, c, r.log)
	if err != nil {
		return err
	}
	defer closing(r.log, "libvirt", host.Close)
	d, err := openDaemon(ctx, c.daemon(host, r.log), r)
	if err != nil {
		return err
	}
	defer closing(r.log, "daemon", d.Close)
	r.apply = d.Apply
	// Only now that recovery is done does anybody get an answer.
	l, err := listen(c)
	if err != nil {
		return err
	}
	started()
	// Deferred, so that they end in the reverse order, and all before daemon and host
	// are closed.
	defer inBackground(ctx, func(ctx context.Context) {
		bus.Serve(ctx, bus.Config{Services: wire.Bus(d), Logger: r.log, Version: version})
	})()
	defer inBackground(ctx, func(ctx context.Context) { systemd.Supervise(ctx, d.Overview, r.log) })()
	defer inBackground(ctx, func(ctx context.Context) { r.follow(ctx, hangup) })()
	s := server.New(server.Config{
		Services: wire.REST(d), OperatorGroup: c.OperatorGroup, Logger: r.log, Version: version,
		PerSecond: c.CallsPerSecond, Proxies: c.TrustedProxies,
	})
	return serve(ctx, s, l, r)
}

// inBackground works until ctx ends or it is stopped, which waits for the end.
func inBackground(ctx context.Context, work func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		work(ctx)
	}()
	return func() {
		cancel()
		<-ended
	}
}

func openDaemon(ctx context.Context, wanted daemon.Config, r *reloader) (*daemon.Daemon, error) {
	wanted.Senders, wanted.Judge = senders(r.mailer), r.judgeFiles
	wanted.Hold = systemd.NewInhibitor(wanted.Logger).Hold
	d, err := daemon.Open(ctx, wanted)
	if errors.Is(err, daemon.ErrUnusable) {
		wanted.Logger.Error("cannot start", vps.LogEvent(vps.LogDatabaseUnusable), "error", err)
	}
	return d, err
}

func openHost(ctx context.Context, c config, logger *slog.Logger) (*libvirt.Host, error) {
	// qemu-img and qemu-nbd are found here; without them nothing could be done.
	images, err := qemuimg.New()
	if err != nil {
		return nil, err
	}
	images.Confine = systemd.Confine(c.Merge.Weight, logger)
	return libvirt.Open(
		ctx, libvirt.Config{URI: c.Libvirt.URI, ConfigDir: c.Libvirt.ConfigDir, Images: images, Logger: logger},
	)
}

// serve answers, tells systemd so, and returns when a signal comes or a listener fails.
func serve(ctx context.Context, s *server.Server, l listeners, r *reloader) error {
	// Room for both, so that neither goroutine stays behind.
	failed := make(chan error, 2)
	go func() { failed <- s.ServeUnix(l.unix) }()
	if l.tcp != nil {
		go func() { failed <- s.ServeTCP(l.tcp, r.certificates.config()) }()
	}
	r.log.Info("ready", "version", version, "socket", addressOf(l.unix), "listen", addressOf(l.tcp))
	systemd.Ready()
	var err error
	// A listener that fails ends the daemon: systemd starts it again, with new sockets.
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	// Operations are not waited for: the next daemon resumes them from their step.
	systemd.Stopping("leaving operations where they are, to be taken up by the next start")
	shutdown, cancel := context.WithTimeout(context.Background(), shutdownLimit)
	defer cancel()
	return errors.Join(err, s.Shutdown(shutdown))
}

func addressOf(l net.Listener) string {
	if l == nil {
		return ""
	}
	return l.Addr().String()
}

// closing logs the error of an end: there is nobody left to return it to.
func closing(logger *slog.Logger, what string, closer func() error) {
	if err := closer(); err != nil {
		logger.Error("not closed cleanly", "what", what, "error", err)
	}
}
