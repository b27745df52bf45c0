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
	// quietWithin is how long the daemon may be busy with what a start leaves to do.
	quietWithin = time.Minute
	// madeAtOnce is how many VPSes are made side by side.
	madeAtOnce = 4
)

// scale measures what the daemon costs as the VPSes become more.
func (b *bench) scale(ctx context.Context) error {
	known := 0
	for _, n := range []int{10, 50, 100, 500} {
		all, making := errgroup.WithContext(ctx)
		all.SetLimit(madeAtOnce)
		for i := known; i < n; i++ {
			all.Go(func() error { return b.another(making, i) })
		}
		if err := all.Wait(); err != nil {
			return err
		}
		known = n
		if err := b.level(ctx, n, min(n, mostRunning)); err != nil {
			return fmt.Errorf("with %d VPSes: %w", n, err)
		}
	}
	return nil
}

func numbered(i int) string { return fmt.Sprintf("vps%03d", i) }

// another makes one more VPS, and starts it while there are not enough. Those that
// are off have images whose headers must be read to know what they lie on.
func (b *bench) another(ctx context.Context, i int) error {
	name, format := numbered(i), "raw"
	if i >= mostRunning {
		format = "qcow2"
	}
	spec := lab.Spec{
		Name:      name,
		MemoryMiB: 16,
		Halt:      true,
		Disks:     []lab.DiskSpec{{Target: "vda", Format: format, SizeBytes: 16 * mib}},
	}
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
	if err := b.answers(ctx, running, note); err != nil {
		return err
	}
	if err := b.allAtOnce(ctx, n, running, note); err != nil {
		return err
	}
	recovered, err := b.recover(ctx, running)
	if err != nil {
		return err
	}
	note("killed in mid-delete of all: until it answers", "s", recovered)
	return nil
}

// quiet waits until the daemon has done what its start, or its last work, left to do.
func (b *bench) quiet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, quietWithin)
	defer cancel()
	for last := -1.0; ; {
		now, err := b.used()
		if err != nil || now.processor == last {
			return err
		}
		last = now.processor
		select {
		case <-ctx.Done():
			return fmt.Errorf("the daemon does not come to rest: %w", ctx.Err())
		case <-time.After(time.Second):
		}
	}
}

// idle watches the daemon while nothing happens.
func (b *bench) idle(ctx context.Context, note func(what, unit string, value float64)) error {
	if err := b.quiet(ctx); err != nil {
		return err
	}
	before, err := b.used()
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(idleFor):
	}
	after, err := b.used()
	if err != nil {
		return err
	}
	note("memory, idle", "MB", after.memory)
	note("memory, idle, without program and libraries", "MB", after.own)
	note("processor, idle", "%", 100*(after.processor-before.processor)/idleFor.Seconds())
	return nil
}

// allAtOnce takes and deletes the snapshots of all that are on side by side, in our
// way and in libvirt's.
func (b *bench) allAtOnce(ctx context.Context, n, running int, note func(what, unit string, value float64)) error {
	var took []float64
	for _, work := range []func(context.Context, string) error{b.take, b.delete, b.virshTake, b.virshDelete} {
		seconds, err := b.sideBySide(ctx, running, work)
		if err != nil {
			return err
		}
		took = append(took, seconds)
		if len(took) == 2 {
			u, err := b.used()
			if err != nil {
				return err
			}
			note("memory, at most until then", "MB", u.most)
		}
	}
	for i, c := range []struct{ what, with string }{{"take", "virsh snapshot-create-as, all at once"}, {"delete", "virsh blockcommit, all at once"}} {
		what := fmt.Sprintf("%d VPSes, %d on: %s of all at once", n, running, c.what)
		ours, theirs := took[i], took[i+2]
		b.note(what, "s", []float64{ours}, []float64{theirs}, c.with, 0)
		b.note(
			what+", for each", "s", []float64{ours / float64(running)}, []float64{theirs / float64(running)},
			"the same", 0,
		)
	}
	return nil
}

// sideBySide measures until the last one is done.
func (b *bench) sideBySide(ctx context.Context, n int, work func(context.Context, string) error) (float64, error) {
	return timed(func() error {
		all, ctx := errgroup.WithContext(ctx)
		for i := range n {
			all.Go(func() error { return work(ctx, numbered(i)) })
		}
		return all.Wait()
	})
}

// recover kills the daemon while it deletes the snapshots of all, and measures until it
// answers again. Then all deletions go on to their end. A restart after a crash is what
// an upgrade or the OOM killer makes of many deletions.
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

// usage is what the daemon uses.
type usage struct {
	processor float64 // seconds so far
	// memory is what is resident, in MB, and most the most that ever was. own leaves
	// out what is mapped of its program and of libraries: others may share it, and
	// the kernel may drop it.
	memory, most, own float64
}

// From /proc, so that the daemon is not asked and not disturbed.
func (b *bench) used() (u usage, err error) {
	dir := fmt.Sprintf("/proc/%d/", b.DaemonPID())
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return u, err
	}
	// Behind the program's name, which may hold anything: utime and stime are the
	// fields 14 and 15 of proc(5), in hundredths of a second.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 13 {
		return u, fmt.Errorf("%sstat reads %q", dir, stat)
	}
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return u, err
		}
		u.processor += ticks / 100
	}
	status, err := os.ReadFile(dir + "status")
	for _, of := range []struct {
		name string
		mb   *float64
	}{{"VmRSS:", &u.memory}, {"VmHWM:", &u.most}, {"RssAnon:", &u.own}} {
		_, text, _ := strings.Cut(string(status), of.name)
		var kilobytes float64
		if _, e := fmt.Sscan(text, &kilobytes); e != nil {
			err = errors.Join(err, fmt.Errorf("%sstatus has no %s", dir, of.name))
		}
		*of.mb = kilobytes * 1024 / 1e6
	}
	return u, err
}
