package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"vpssnapd/hypervisor/lab"
)

const (
	// mostRunning is how many of the VPSes are on; the others are off.
	mostRunning = 100
	// idleFor is how long the daemon is watched while nothing happens.
	idleFor = 20 * time.Second
)

// scale measures what the daemon costs as the VPSes become more.
func (b *bench) scale(ctx context.Context) error {
	known := 0
	for _, n := range []int{10, 50, 100, 500} {
		for ; known < n; known++ {
			if err := b.another(ctx, known); err != nil {
				return err
			}
		}
		if err := b.level(ctx, n, min(n, mostRunning)); err != nil {
			return fmt.Errorf("with %d VPSes: %w", n, err)
		}
	}
	return nil
}

func numbered(i int) string { return fmt.Sprintf("vps%03d", i) }

// another makes one more VPS, and starts it while there are not enough.
func (b *bench) another(ctx context.Context, i int) error {
	name := numbered(i)
	spec := lab.Spec{Name: name, MemoryMiB: 16, Halt: true, Disks: []lab.DiskSpec{{Target: "vda", Format: "raw", SizeBytes: 16 * mib}}}
	if err := b.define(ctx, spec); err != nil || i >= mostRunning {
		return err
	}
	_, err := b.Lab.Virsh(ctx, "start", name)
	return err
}

// level measures with so many VPSes known, and so many of them on.
func (b *bench) level(ctx context.Context, n, running int) error {
	note := func(what, unit string, value float64) {
		b.note(fmt.Sprintf("%d VPSes, %d on: %s", n, running, what), unit, []float64{value}, nil, "", 0)
	}
	restart, err := timed(func() error { return errors.Join(b.StopDaemon(), b.StartDaemon(ctx)) })
	if err != nil {
		return err
	}
	note("stop and start of the daemon", "s", restart)
	if err := b.idle(ctx, note); err != nil {
		return err
	}
	if err := b.takesAtOnce(ctx, n, running); err != nil {
		return err
	}
	recovered, err := b.recover(ctx, running)
	if err != nil {
		return err
	}
	note("killed in mid-delete of all: until it answers", "s", recovered)
	return nil
}

// idle watches the daemon while nothing happens.
func (b *bench) idle(ctx context.Context, note func(what, unit string, value float64)) error {
	before, _, err := b.used()
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(idleFor):
	}
	after, memory, err := b.used()
	if err != nil {
		return err
	}
	note("memory, idle", "MB", memory)
	note("processor, idle", "%", 100*(after-before)/idleFor.Seconds())
	return nil
}

// takesAtOnce takes all that are on side by side, in our way and in libvirt's, and
// deletes the former again.
func (b *bench) takesAtOnce(ctx context.Context, n, running int) error {
	ours, err := b.sideBySide(ctx, running, b.take)
	if err != nil {
		return err
	}
	_, memory, err := b.used()
	if err != nil {
		return err
	}
	if _, err := b.sideBySide(ctx, running, b.delete); err != nil {
		return err
	}
	theirs, err := b.sideBySide(ctx, running, b.virshTake)
	if err != nil {
		return err
	}
	if _, err := b.sideBySide(ctx, running, b.virshDelete); err != nil {
		return err
	}
	what := fmt.Sprintf("%d VPSes, %d on: take of all at once", n, running)
	b.note(what, "s", []float64{ours}, []float64{theirs}, "virsh snapshot-create-as, all at once", 0)
	b.note(what+", for each", "s", []float64{ours / float64(running)}, []float64{theirs / float64(running)}, "the same", 0)
	b.note(what+", memory then", "MB", []float64{memory}, nil, "", 0)
	return nil
}

func (b *bench) sideBySide(ctx context.Context, n int, work func(context.Context, string) error) (float64, error) {
	return timed(func() error {
		all, ctx := errgroup.WithContext(ctx)
		for i := range n {
			all.Go(func() error { return work(ctx, numbered(i)) })
		}
		return all.Wait()
	})
}

// recover kills the daemon while it deletes the snapshots of all, and measures
// until it answers again. Then all deletions go on to their end.
func (b *bench) recover(ctx context.Context, running int) (float64, error) {
	if _, err := b.sideBySide(ctx, running, b.take); err != nil {
		return 0, err
	}
	for i := range running {
		if _, err := b.Client.Delete(ctx, numbered(i)); err != nil {
			return 0, err
		}
	}
	if err := b.KillDaemon(); err != nil {
		return 0, err
	}
	took, err := timed(func() error { return b.StartDaemon(ctx) })
	if err != nil {
		return 0, err
	}
	for i := range running {
		v, err := b.Client.VPS(ctx, numbered(i))
		if err != nil {
			return 0, err
		}
		if v.Operation == nil {
			continue
		}
		if err := b.done(ctx, *v.Operation, nil); err != nil {
			return 0, err
		}
	}
	return took, nil
}

// used is the processor time that the daemon has used so far, in seconds, and the
// memory that it has now, in MB.
func (b *bench) used() (processor, memory float64, err error) {
	dir := fmt.Sprintf("/proc/%d/", b.DaemonPID())
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return 0, 0, err
	}
	// Behind the program's name, which may hold anything: utime and stime are the
	// fields 14 and 15 of proc(5), in hundredths of a second.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 13 {
		return 0, 0, fmt.Errorf("%sstat reads %q", dir, stat)
	}
	user, err1 := strconv.ParseFloat(fields[11], 64)
	system, err2 := strconv.ParseFloat(fields[12], 64)
	status, err3 := os.ReadFile(dir + "status")
	_, rss, _ := strings.Cut(string(status), "VmRSS:")
	var kilobytes float64
	_, err4 := fmt.Sscan(rss, &kilobytes)
	return (user + system) / 100, kilobytes * 1024 / 1e6, errors.Join(err1, err2, err3, err4)
}
