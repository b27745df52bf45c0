// Command vpssnap-torture is the kill campaign: random operations on several
// real VPSes while the daemon, libvirtd and QEMU are killed, at failpoints and
// at random moments. The guests write numbered records all the time and say
// which are on the disk. After every kill, and thoroughly after every round,
// what is on the disks is held against that, and the definitions, the files and
// the database against each other. See make torture.
//
// Exit codes: 0 no violation, 1 a violation or the campaign could not go on, 2 usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
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
		*seed = uint64(time.Now().UnixNano())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *seed, time.Duration(*minutes*float64(time.Minute)), *kills); err != nil {
		fmt.Fprintf(os.Stderr, "vpssnap-torture: %v\nrepeat it with SEED=%d\n", err, *seed)
		os.Exit(1)
	}
}

// settings make what takes days on a host happen within a campaign.
const settings = `[snapshot]
headroom = "1 MiB"
agent_wait = "1s"
grace = "300ms"
undo_keep = "20s"
`

// memory is a directory that no disk slows down: a process that is killed loses
// nothing that it has written, so nothing is proved by waiting for a disk. Power
// cuts are the matter of vpssnap-powercut.
func memory() string {
	const dir = "/dev/shm"
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return dir
	}
	return ""
}

// The programs are built with failpoints, which no package has.
func run(ctx context.Context, seed uint64, limit time.Duration, kills int) (err error) {
	bin, err := os.MkdirTemp("", "torture-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(bin)) }()
	if err := site.Build(ctx, bin, "-tags", "failpoints"); err != nil {
		return err
	}
	c, err := newCampaign(bin, seed)
	if err != nil {
		return err
	}
	defer c.striker.close()
	c.site, err = site.Open(ctx, site.Options{
		BinDir: bin, Env: c.striker.environment, Config: settings,
		Lab: lab.Options{Parent: memory()},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.site.Close()) }()
	fmt.Printf("seed %d, %s\n", seed, limit)
	return c.run(ctx, limit, kills)
}
