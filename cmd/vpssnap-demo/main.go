// Command vpssnap-demo shows the life of a snapshot on a real, private libvirtd,
// as an operator would see it on a terminal. Everything that it says is checked:
// when something is not as it should be, the demo stops and exits with 1.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/term"

	"vpssnapd/hypervisor/lab"
)

const (
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130
)

var errInterrupted = errors.New("interrupted")

func main() {
	lab.Main()
	os.Exit(run())
}

func run() int {
	bin := flag.String("bin", "build", "the directory with the built vpssnapd and vpssnap")
	keep := flag.Bool("keep", false, "leave everything up at the end, until Enter or Ctrl-C")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "vpssnap-demo takes no arguments, only -bin and -keep")
		return exitUsage
	}
	if !term.IsTerminal(int(os.Stdout.Fd())) || os.Getenv("NO_COLOR") != "" {
		text.DisableColors()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// A second Ctrl-C ends the demo at once; the lab then cleans up by itself.
	context.AfterFunc(ctx, stop)

	err := demo(ctx, *bin, *keep)
	if err == nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "\n%s %v\n", text.FgRed.Sprint("vpssnap-demo:"), err)
	if errors.Is(err, errInterrupted) {
		return exitInterrupted
	}
	return exitFailed
}

// demo plays all scenes, and cleans up however they end.
func demo(ctx context.Context, bin string, keep bool) (err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	if err := prepare(ctx, bin); err != nil {
		return err
	}
	p := &play{out: os.Stdout, bin: bin}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.perform(ctx, scenes); err != nil {
		return err
	}
	// Cleaning up is not to be interrupted.
	end := context.WithoutCancel(ctx)
	if !keep {
		if err := p.perform(end, closing); err != nil {
			return err
		}
		p.summary()
		return nil
	}
	p.summary()
	p.keepUp(ctx)
	return p.perform(end, closing)
}

// prepare makes sure that everything is there that the scenes need.
func prepare(ctx context.Context, bin string) error {
	if os.Geteuid() != 0 {
		return errors.New("this needs root, for a libvirtd of its own")
	}
	for _, program := range []string{"vpssnapd", "vpssnap"} {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			return fmt.Errorf("%w: build it first (go build -o %s/ ./cmd/...)", err, bin)
		}
	}
	fmt.Println("Making the VPS's kernel and guest agent ready; they are downloaded once.")
	_, err := lab.Build(ctx, "")
	if ctx.Err() != nil {
		return errInterrupted
	}
	return err
}
