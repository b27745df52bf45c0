// Command vpssnap-hosts proves the package on whole hosts: Debian 12 and Debian 13
// boot under systemd in containers (systemd-nspawn), install it with apt, and live
// with it until it is purged. On the way daemon, libvirtd and host are stopped in
// the middle of every kind of operation, and the disks are compared byte for byte.
// See make test-hosts.
//
// It needs root, debootstrap and systemd-container, and the apt sources of this
// machine, from which it bootstraps each Debian once ($XDG_CACHE_HOME keeps it).
//
// Exit codes: 0 everything was as it must be, 1 something was not, 2 usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	suites := flag.String("suites", "bookworm,trixie", "the Debian `suites` to prove it on")
	scenes := flag.String("scenes", "", "only `scenes` whose name has this word, after the installation")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, strings.Split(*suites, ","), *scenes); err != nil {
		fmt.Fprintln(os.Stderr, "vpssnap-hosts:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, suites []string, scenes string) (err error) {
	work, err := os.MkdirTemp("/srv", "vpssnap-hosts-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if err := os.Chmod(work, 0o755); err != nil { //nolint:gosec // QEMU of another user looks for its images below
		return err
	}
	packages, err := buildPackages(ctx, work)
	if err != nil {
		return err
	}
	for _, suite := range suites {
		start := time.Now()
		if err := proveOn(ctx, work, suite, packages, scenes); err != nil {
			return fmt.Errorf("%s: %w", suite, err)
		}
		fmt.Printf("== %s: all as it must be, in %.0f s\n", suite, time.Since(start).Seconds())
	}
	return nil
}

// proveOn plays all scenes on one host.
func proveOn(ctx context.Context, work, suite string, packages [2]string, only string) (err error) {
	tree, err := bootstrapped(ctx, suite)
	if err != nil {
		return err
	}
	h, err := newHost(ctx, work, suite, tree, packages)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	for i, s := range scenes {
		if i > 0 && !strings.Contains(s.name, only) {
			continue
		}
		fmt.Printf("== %s: %s\n", suite, s.name)
		start := time.Now()
		if err := s.play(ctx, h); err != nil {
			return fmt.Errorf("%s: %w\n%s", s.name, err, h.journal(ctx))
		}
		fmt.Printf("-- %.1f s\n", time.Since(start).Seconds())
	}
	return nil
}
