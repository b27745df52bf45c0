package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"vpssnapd/daemon/vps"
)

// stuckAfter is how long an operation may take between two steps, where it waits for
// nobody but the database. Within a step it waits for the host, for hours if need be.
const stuckAfter = 2 * time.Minute

// Health is nil unless something of the daemon hangs that a new process cures: the
// writing of the database, the runner of the operations, or the picture of the host. A
// database that answers with an error, and a libvirt that does not answer, are no
// such thing: Ready and Status say so.
func (d *Daemon) Health(ctx context.Context) error {
	stuck := make(chan error, 1)
	go func() {
		_ = d.inventory.ready() // its lock can be had
		stuck <- d.runner.Stuck(stuckAfter)
	}()
	if err := d.store.Ping(ctx); err != nil && ctx.Err() != nil {
		return fmt.Errorf("the database cannot be read: %w", err)
	}
	if err := d.store.Writable(ctx); err != nil {
		return err
	}
	select {
	case err := <-stuck:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the operations, or the picture of the host, cannot be read: %w", ctx.Err())
	}
}

// Status says in one line what is being done, and what is wrong.
func (d *Daemon) Status(ctx context.Context) string {
	var parts []string
	if err := d.Ready(ctx); err != nil && ctx.Err() == nil {
		if e, ok := errors.AsType[*vps.Error](err); ok {
			parts = append(parts, e.Detail)
		}
	}
	if n, err := d.store.CountWithSnapshot(ctx); err == nil {
		parts = append(parts, count(n, "VPS with a snapshot", "VPSes with a snapshot"))
	}
	ops, err := d.store.ActiveOperations(ctx)
	if err != nil {
		return strings.Join(parts, "; ")
	}
	return strings.Join(append(parts, d.doing(ops)...), "; ")
}

// mostShown is how many operations a status names.
const mostShown = 3

// doing names the operations that are worked on, and counts those that wait for an operator.
func (d *Daemon) doing(ops []vps.Operation) []string {
	var parts []string
	parked, running := 0, 0
	for _, op := range ops {
		if op.Status == vps.StatusNeedsAttention {
			parked++
			continue
		}
		if running++; running <= mostShown {
			parts = append(parts, fmt.Sprintf("%s of %s %d %%", op.Kind, op.VPSName, d.runner.Live(op).Progress.Percent))
		}
	}
	if running > mostShown {
		parts = append(parts, count(running-mostShown, "more operation", "more operations"))
	}
	if parked > 0 {
		parts = append(parts, count(parked, "operation needs an operator", "operations need an operator"))
	}
	return parts
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
