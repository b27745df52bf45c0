package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"vpssnapd/daemon"
)

// rebuild makes the database again and tells what came of it. The lock on the state
// directory keeps a running daemon and this apart.
func rebuild(path string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	c, err := readConfig(ctx, path)
	if err != nil {
		return err
	}
	if err := errors.Join(c.judge(ctx, path)...); err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: max(c.LogLevel, slog.LevelWarn)}))
	host, err := openHost(ctx, c, logger)
	if err != nil {
		return err
	}
	defer closing(logger, "libvirt", host.Close)
	done, err := daemon.Rebuild(ctx, c.daemon(host, logger))
	tellRebuilt(done)
	return err
}

// tellRebuilt quotes names and reasons, which come from definitions: no control character
// reaches the terminal.
func tellRebuilt(done daemon.Rebuilt) {
	for _, file := range done.Aside {
		fmt.Fprintf(stdout, "kept aside: %s\n", file)
	}
	for _, s := range done.Snapshots {
		switch {
		case s.Recorded && s.Why == "":
			fmt.Fprintf(
				stdout, "%q: snapshot %s of %s is %s\n", s.VPSName, s.Snapshot.ID,
				s.Snapshot.CreatedAt.Format("2006-01-02 15:04:05 UTC"), s.Snapshot.State,
			)
		case s.Recorded:
			fmt.Fprintf(stdout, "%q: snapshot %s is %s: %s\n", s.VPSName, s.Snapshot.ID, s.Snapshot.State, s.Why)
		default:
			fmt.Fprintf(stdout, "%q: no snapshot recorded: %s\n", s.VPSName, s.Why)
		}
	}
	for _, f := range done.Report.Findings {
		fmt.Fprintf(stdout, "%q: %s: %q\n", f.VPSName, f.Code, f.Detail)
	}
	// Nothing was read: the rebuild ended before, and the error says why.
	if done.Report.At.IsZero() {
		return
	}
	fmt.Fprintf(stdout, `%d VPS were read. Next:
  1. systemctl start vpssnapd
  2. vpssnap doctor        # what is left to be done, with the commands for it
  3. Let your order systems order the snapshot options again (PUT /v1/vps/{vps}/option):
     who paid what cannot be read from the host. Until then the snapshots above can be
     restored and deleted, but none can be taken.
  4. vpssnap token create  # for each panel and order system: their tokens are gone, too.
`, done.Report.VPSCount)
}
