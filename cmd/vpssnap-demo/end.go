package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
)

// close ends everything that the demo started. It may be called again.
func (p *play) close() error {
	if p.site == nil {
		return nil
	}
	return p.site.Close()
}

// keepUp tells how to talk to the demo's host, and waits for Enter or the end of
// ctx. All of it dies with this process, so it must stay.
func (p *play) keepUp(ctx context.Context) {
	fmt.Fprintf(p.out, `
%s
It lives as long as this command: press Enter or Ctrl-C to clean up. To talk to
it, open another terminal as root, and there:

  export PATH=%s:$PATH
  export VPSSNAP_SOCKET=%s
  export LIBVIRT_DEFAULT_URI='%s'

  vpssnap list
  vpssnap take %[5]s
  vpssnap restore %[5]s
  curl --unix-socket $VPSSNAP_SOCKET http://vpssnapd/v1/vps/%[5]s
  virsh domblklist %[5]s
  virsh qemu-agent-command %[5]s '{"execute": "guest-info"}'
  tail -f %[6]s       # the VPS's console
  tail -f %[7]s       # the daemon's log
`, text.Bold.Sprint("== The host stays up."), p.bin, p.site.Socket(), p.site.Lab.URI(), guest, p.site.Lab.ConsoleFile(guest), p.site.LogFile())
	entered := make(chan struct{})
	go func() {
		// Without a keyboard there is an end of file at once, which is no Enter.
		if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err == nil {
			close(entered)
		}
	}()
	select {
	case <-entered:
	case <-ctx.Done():
	case <-p.site.DaemonEnded():
	}
}

// summary repeats what was shown, how long it took, and what it proved.
func (p *play) summary() {
	fmt.Fprintf(p.out, "\n%s\n", text.Bold.Sprint("== What took how long"))
	var sum time.Duration
	for _, t := range p.timings {
		fmt.Fprintf(p.out, "%6.1f s  %s\n", t.took.Seconds(), t.headline)
		sum += t.took
	}
	fmt.Fprintf(p.out, "%6.1f s  together\n\n%s\n", sum.Seconds(), text.Bold.Sprint("== What was proven"))
	for _, proof := range p.proofs {
		fmt.Fprintf(p.out, "  %s\n", proof)
	}
}
