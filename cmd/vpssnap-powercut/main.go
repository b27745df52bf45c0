// Command vpssnap-powercut cuts the power at the device writes of take, delete
// and restore. It lets a real daemon work on a block device whose every write
// is recorded, makes that device again as it was at many moments of the record,
// starts libvirtd and the daemon on what is found there, and holds the outcome
// against what had been acknowledged by then. See make powercut.
//
// Exit codes: 0 no violation, 1 a violation or the campaign could not go on, 2 usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"vpssnapd/hypervisor/lab"
)

// insideName is argv[0] of the process in a mount namespace of its own: however
// it ends, the kernel unmounts and detaches what it had mounted.
const insideName = "vpssnap-powercut-inside"

// The kernel tells a child of its parent's death when the thread ends that
// started it. The first thread lives as long as the process.
func init() { runtime.LockOSThread() }

func main() {
	lab.Main()
	cuts := flag.Int("cuts", 60, "how many `cuts` for each layout; 0: after every write")
	bin := flag.String("bin", "build", "the `directory` of the built programs")
	seed := flag.Uint64("seed", 0, "the random `seed`; 0: a new one")
	layouts := flag.String("layout", "one,two,three", "`layouts` to try, of one, two and three file systems")
	flag.Parse()
	if flag.NArg() > 0 || *cuts < 0 {
		flag.Usage()
		os.Exit(2)
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	chosen, err := parseLayouts(*layouts)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vpssnap-powercut:", err)
		os.Exit(2)
	}
	if os.Args[0] != insideName {
		os.Exit(goInside("-seed", fmt.Sprint(*seed), "-cuts", fmt.Sprint(*cuts), "-layout", *layouts, "-bin", *bin))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, chosen, *bin, *seed, *cuts); err != nil {
		fmt.Fprintf(os.Stderr, "vpssnap-powercut: %v\nrepeat it with SEED=%d CUTS=%d\n", err, *seed, *cuts)
		os.Exit(1)
	}
}

// parseLayouts refuses a name it does not know.
func parseLayouts(list string) ([]layout, error) {
	var chosen []layout
	for name := range strings.SplitSeq(list, ",") {
		l, ok := layouts[name]
		if !ok {
			return nil, fmt.Errorf("%q is no layout: there are one, two and three", name)
		}
		chosen = append(chosen, l)
	}
	return chosen, nil
}

// goInside runs this program in its own mount namespace, hands on signals, and
// returns its exit code.
func goInside(args ...string) int {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: append([]string{insideName}, args...),
		Stdout: os.Stdout, Stderr: os.Stderr,
		// A mount namespace of its own, so that nothing stays mounted on the host however
		// it ends.
		SysProcAttr: &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM},
	}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "vpssnap-powercut: cannot make a mount namespace:", err)
		return 1
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	if err := cmd.Wait(); err != nil {
		return 1
	}
	return 0
}

// run records and replays once for each layout.
func run(ctx context.Context, chosen []layout, bin string, seed uint64, cuts int) (err error) {
	// Libvirt's hook runs with another working directory.
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(bin, "vpssnapd")); err != nil {
		return fmt.Errorf("the programs are not built: %w", err)
	}
	work, err := os.MkdirTemp("", "powercut-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	violations := 0
	for _, l := range chosen {
		n, err := campaignOn(ctx, l, work, bin, seed, cuts)
		if err != nil {
			return err
		}
		violations += n
	}
	if violations > 0 {
		return fmt.Errorf("%d violations", violations)
	}
	return nil
}
