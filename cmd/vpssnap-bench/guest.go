package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"vpssnapd/hypervisor/lab"
)

const guest = "guest"

// inGuest measures what a booted guest feels: the freeze, its own writes after a take,
// and how long its writes wait while the snapshot is merged away. Without an agent in
// the guest there is no freeze to measure.
func (b *bench) inGuest(ctx context.Context) error {
	if !b.options.only.MatchString("guest") {
		return nil
	}
	spec := lab.Spec{Name: guest, OS: true, Disks: []lab.DiskSpec{
		{Target: "vda", Format: "raw", SizeBytes: 256 * mib, Ext4: true},
		{Target: "vdb", Format: "raw", SizeBytes: gib},
	}}
	if err := b.define(ctx, spec); err != nil {
		return err
	}
	defer b.drop(context.WithoutCancel(ctx), guest) //nolint:errcheck // the lab is about to end
	disks, err := b.disks(guest)
	if err != nil {
		return err
	}
	if _, err := b.fill(disks[1].Path, gib); err != nil {
		return err
	}
	if _, err := b.Lab.Virsh(ctx, "start", guest); err != nil {
		return err
	}
	if err := b.Lab.WaitAgent(ctx, guest); err != nil {
		return err
	}
	return errors.Join(b.freezes(ctx), b.guestWrites(ctx), b.latencies(ctx))
}

// freezes: how long the guest's file systems are frozen for a take.
func (b *bench) freezes(ctx context.Context) error {
	var frozen []float64
	err := b.hold(ctx, contest{
		what: "guest: take with its file systems frozen", with: "virsh snapshot-create-as --quiesce",
		ours: func(ctx context.Context) (float64, error) {
			took, err := timed(func() error { return b.take(ctx, guest) })
			if err != nil {
				return 0, err
			}
			s, err := b.Client.Snapshot(ctx, guest)
			if err != nil {
				return 0, err
			}
			// By the daemon's own clock, from the snapshot's record.
			frozen = append(frozen, float64(s.FreezeMS)/1000)
			return took, b.delete(ctx, guest)
		},
		theirs: func(ctx context.Context) (float64, error) {
			took, err := timed(func() error {
				return b.virshSnapshot(ctx, guest, "--quiesce")
			})
			return took, errors.Join(err, b.virshDelete(ctx, guest))
		},
	})
	if err == nil && len(frozen) > 0 {
		b.note("guest: of which frozen", "s", frozen, nil, "", 0)
	}
	return err
}

// dd writes in the guest, past its page cache, and returns the seconds it takes, by
// the guest's own clock.
func (b *bench) dd(ctx context.Context, block string, count int) (float64, error) {
	command := fmt.Sprintf(
		"read a x </proc/uptime; dd if=/dev/zero of=/dev/vdb bs=%s count=%d oflag=direct conv=notrunc 2>/dev/null && read b x </proc/uptime && echo $a $b",
		block, count,
	)
	out, _, err := b.Lab.GuestExec(ctx, guest, "sh", "-c", command)
	if err != nil {
		return 0, err
	}
	var began, ended float64
	if _, err := fmt.Sscan(out, &began, &ended); err != nil {
		return 0, fmt.Errorf("dd in the guest failed: %q", out)
	}
	return ended - began, nil
}

// guestWrites: one after the other, each waited for, as a database does.
func (b *bench) guestWrites(ctx context.Context) error {
	for _, c := range []struct {
		block string
		count int
	}{{"4k", 4096}, {"64k", 1024}, {"1M", 128}} {
		what := fmt.Sprintf("guest: %d writes of %s after a take", c.count, c.block)
		// Without a snapshot: what the disk allows.
		var none []float64
		for range b.options.rounds {
			took, err := b.dd(ctx, c.block, c.count)
			if err != nil {
				return err
			}
			none = append(none, took)
		}
		after := func(take, remove func(context.Context, string) error) func(context.Context) (float64, error) {
			return func(ctx context.Context) (float64, error) {
				if err := take(ctx, guest); err != nil {
					return 0, err
				}
				took, err := b.dd(ctx, c.block, c.count)
				return took, errors.Join(err, remove(ctx, guest))
			}
		}
		err := b.hold(ctx, contest{
			what: what, with: "virsh snapshot-create-as", limit: median(none),
			ours: after(b.take, b.delete), theirs: after(b.virshTake, b.virshDelete),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// bandwidth is the limit under which a merge is measured, too.
const bandwidth = "32 MiB"

// latencies: how long a guest that writes and waits for each write is kept waiting
// while its snapshot is merged away.
func (b *bench) latencies(ctx context.Context) error {
	if err := b.Lab.StartRecorder(ctx, guest); err != nil {
		return err
	}
	idle, err := b.waits(ctx, func() error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Second):
			return nil
		}
	})
	if err != nil {
		return err
	}
	var ours, theirs, limited []wait
	for range b.options.rounds {
		for _, way := range []struct {
			into         *[]wait
			limit        string
			take, remove func(context.Context, string) error
		}{
			{&ours, "0", b.take, b.delete},
			{&theirs, "0", b.virshTake, b.virshDelete},
			{&limited, bandwidth, b.take, b.delete},
		} {
			if err := b.limit(ctx, way.limit); err != nil {
				return err
			}
			if err := way.take(ctx, guest); err != nil {
				return err
			}
			if _, err := b.dd(ctx, "1M", 256); err != nil {
				return err
			}
			w, err := b.waits(ctx, func() error { return way.remove(ctx, guest) })
			if err != nil {
				return err
			}
			*way.into = append(*way.into, w)
		}
	}
	for i, what := range []string{"half of its writes wait at most", "its longest wait"} {
		of := func(all []wait) (v []float64) {
			for _, w := range all {
				v = append(v, w[i])
			}
			return v
		}
		b.note("guest: "+what+", in a merge", "s", of(ours), of(theirs), "virsh blockcommit", idle[i])
		b.note("guest: "+what+", in a merge of "+bandwidth+"/s", "s", of(limited), of(theirs), "virsh blockcommit", idle[i])
	}
	return nil
}

// limit starts the daemon again with another limit for merges. By the configuration, as
// an operator would set it.
func (b *bench) limit(ctx context.Context, bandwidth string) error {
	text, err := os.ReadFile(b.ConfigFile())
	if err != nil {
		return err
	}
	before, _, _ := strings.Cut(string(text), "\n[merge]")
	if err := b.StopDaemon(); err != nil {
		return err
	}
	if err := os.WriteFile(b.ConfigFile(), []byte(before+"\n[merge]\nbandwidth = \""+bandwidth+"\"\n"), 0o600); err != nil {
		return err
	}
	return b.StartDaemon(ctx)
}

// wait is what half of the waits do not exceed, and the longest.
type wait [2]float64

// waits looks at the times between what the guest acknowledges, during some work.
func (b *bench) waits(ctx context.Context, work func() error) (wait, error) {
	console, err := os.Open(b.Lab.ConsoleFile(guest))
	if err != nil {
		return wait{}, err
	}
	defer console.Close()
	if _, err := console.Seek(0, 2); err != nil {
		return wait{}, err
	}
	// Beside it the guest goes on; only its own acknowledgements tell how long it
	// waited.
	ended := make(chan error, 1)
	go func() { ended <- work() }()
	var gaps []float64
	last := time.Now()
	chunk := make([]byte, 64<<10)
	tick := time.NewTicker(time.Millisecond) // a file tells nobody that it grows
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			if err != nil || len(gaps) == 0 {
				return wait{}, errors.Join(err, ctx.Err())
			}
			return wait{median(gaps), slices.Max(gaps)}, nil
		case <-tick.C:
		}
		n, _ := console.Read(chunk)
		if lines := bytes.Count(chunk[:n], []byte("\n")); lines > 0 {
			gaps = append(gaps, time.Since(last).Seconds()/float64(lines))
			last = time.Now()
		}
	}
}
