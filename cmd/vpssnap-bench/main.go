// Command vpssnap-bench measures what a snapshot costs: ours beside what virsh
// and qemu-img do alone, in turns on the same machine, and beside what the disk
// can do at all. With -scale it measures instead what many VPSes cost. See make
// bench and make bench-scale.
//
// Exit codes: 0 measured, 1 it could not go on, 2 usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"

	"vpssnapd/cmd/internal/site"
	"vpssnapd/hypervisor/lab"
)

// options are what the command line says.
type options struct {
	rounds int
	full   bool
	scale  bool
	only   *regexp.Regexp
	json   string
	dir    string
}

func main() {
	lab.Main()
	var o options
	var only string
	flag.IntVar(&o.rounds, "rounds", 3, "how often each is measured; the median counts")
	flag.BoolVar(&o.full, "full", false, "large sizes, too, which take long")
	flag.BoolVar(&o.scale, "scale", false, "measure what many VPSes cost")
	flag.StringVar(&only, "run", ".", "measure only what this `expression` matches")
	flag.StringVar(&o.json, "json", "", "write the figures into this `file`, too")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "the `directory` for the images: on the disk that is to be measured")
	flag.Parse()
	var err error
	if o.only, err = regexp.Compile(only); err != nil || flag.NArg() > 0 || o.rounds < 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "vpssnap-bench:", err)
		os.Exit(1)
	}
}

// settings keep the daemon from waiting for anything but the work.
const settings = `[snapshot]
headroom = "1 MiB"
agent_wait = "1ms"
undo_keep = "0s"
merge_limit = 100
`

// Everything is private: a lab with a libvirtd of its own, and a daemon built now.
func run(ctx context.Context, o options) (err error) {
	bin, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(bin)) }()
	if err := site.Build(ctx, bin); err != nil {
		return err
	}
	s, err := site.Open(ctx, site.Options{BinDir: bin, Config: settings, Lab: lab.Options{Parent: o.dir}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	b := &bench{Site: s, options: o, out: os.Stdout}
	if err := b.meter(ctx); err != nil {
		return err
	}
	measure := b.compare
	if o.scale {
		measure = b.scale
	}
	// What was measured is shown, also when it could not go on.
	return errors.Join(measure(ctx), b.show())
}
