// Command vpssnap takes, restores and deletes the snapshots of the VPS on a
// host. It asks vpssnapd for everything, over its REST API, and knows nothing
// of libvirt or of disks itself.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole program; it returns the exit code. The output of a command goes to
// stdout, everything for people beside it to stderr, so that pipes get data only.
func run(args []string, stdin *os.File, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{stdin: stdin, stdout: &paper{to: stdout}, stderr: &paper{to: stderr}}
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = a.written()
	}
	if err != nil {
		a.complain(err)
	}
	return a.exitCode(err)
}
