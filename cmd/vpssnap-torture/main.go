// Command vpssnap-torture is the kill campaign: random operations on several
// real VPSes while the daemon, libvirtd and QEMU are killed, at failpoints and
// at random moments. After every round each VPS is compared, byte for byte, with
// a model of what its guest wrote. See make torture.
//
// Exit codes: 0 no violation, 1 a violation or the campaign could not go on, 2 usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

func main() {
	lab.Main()
	minutes := flag.Float64("minutes", 5, "how long to go on, in `minutes`")
	kills := flag.Int("kills", 0, "end early after so many `kills`; 0: not early")
	seed := flag.Uint64("seed", 0, "the random `seed`; 0: a new one")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano()) //nolint:gosec // any bits will do
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *seed, time.Duration(*minutes*float64(time.Minute)), *kills); err != nil {
		fmt.Fprintf(os.Stderr, "vpssnap-torture: %v\nrepeat it with SEED=%d\n", err, *seed)
		os.Exit(1)
	}
}

func run(ctx context.Context, seed uint64, limit time.Duration, kills int) (err error) {
	bin, err := os.MkdirTemp("", "torture-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(bin)) }()
	if err := site.Build(ctx, bin, "-tags", "failpoints"); err != nil {
		return err
	}
	c := &campaign{rand: rand.New(rand.NewPCG(seed, seed)), kills: map[string]int{}, visits: filepath.Join(bin, "visits")}
	c.site, err = site.Open(ctx, site.Options{
		BinDir: bin, Env: c.arm,
		Config: "[snapshot]\nheadroom = \"1 MiB\"\nagent_wait = \"1s\"\n",
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.site.Close()) }()
	fmt.Printf("seed %d, %s\n", seed, limit)
	if err := c.populate(ctx); err != nil {
		return err
	}
	c.armed = true
	began := time.Now()
	for round := 1; time.Since(began) < limit && ctx.Err() == nil && (kills == 0 || c.total() < kills); round++ {
		if err := c.round(ctx); err != nil {
			c.report(round, time.Since(began))
			return fmt.Errorf("violation in round %d: %w\n%s", round, err, c.site.DaemonLog())
		}
		c.rounds = round
	}
	c.report(c.rounds, time.Since(began))
	return nil
}

func (c *campaign) total() int {
	sum := 0
	for _, n := range c.kills {
		sum += n
	}
	return sum
}

// report prints the kills by target and failpoint.
func (c *campaign) report(rounds int, took time.Duration) {
	fmt.Printf("\n%d rounds, %d operations, %d kills in %s\n", rounds, c.operations, c.total(), took.Round(time.Second))
	for _, point := range slices.Sorted(mapKeys(c.kills)) {
		fmt.Printf("%6d  %s\n", c.kills[point], point)
	}
	fmt.Printf("operations by outcome: %v\n", c.outcomes)
}
