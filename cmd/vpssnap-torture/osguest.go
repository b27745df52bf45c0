package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"vpssnapd/hypervisor/lab"
)

const (
	// osFirst and osEvery say in which rounds the guest with an operating system
	// takes part: under emulation its boot takes as much as many rounds.
	osFirst, osEvery = 10, 40
	// osBootWithin is far more than it needs, even on a busy machine.
	osBootWithin = 3 * time.Minute
)

// osGuest is a guest with Linux, a file system and an agent, which is frozen at
// a take. Between its rounds it is suspended. Its QEMU is never killed: what
// that does to a guest's writes the others show.
type osGuest struct {
	*victim
	// low and high bound the records that its snapshot can have.
	low, high int
	done      map[string]int // operations by outcome
}

// osDisk is the size of its disk, which holds a file system.
const osDisk = 64 << 20

// osRound takes, restores and deletes the snapshot of the guest with an
// operating system, under the round's strikes.
func (c *campaign) osRound(ctx context.Context, p plan) error {
	if err := c.wakeOS(ctx); err != nil {
		return fmt.Errorf("the guest with an operating system: %w", err)
	}
	for i := range p.strikes {
		if p.strikes[i].target.hits(qemuOnly) {
			p.strikes[i].target = daemonOnly
		}
	}
	p.sudden = nil
	for _, kind := range []string{take, restore, remove} {
		status, err := c.osOperation(ctx, p, kind)
		if err != nil {
			return fmt.Errorf("%s of the guest with an operating system (%s): %w", kind, status, err)
		}
		if status != "succeeded" {
			break // a take that was struck too early; there is another round
		}
	}
	if _, err := c.site.Lab.Virsh(ctx, "suspend", c.os.name); err != nil {
		return err
	}
	return c.wholeHost(ctx)
}

// wakeOS resumes the guest, and makes it when there is none yet.
func (c *campaign) wakeOS(ctx context.Context) error {
	l := c.site.Lab
	if c.os != nil {
		_, err := l.Virsh(ctx, "resume", c.os.name)
		return err
	}
	v := &victim{name: "vps-os", state: "running", targets: []string{"vda"}}
	path := filepath.Join(l.ImageDir(), v.name+"-vda.qcow2")
	v.bases = map[string]image{"vda": {path, "qcow2"}}
	disk := lab.DiskSpec{Target: "vda", Path: path, SizeBytes: osDisk, Ext4: true}
	var err error
	if v.id, err = l.DefineDomain(ctx, lab.Spec{Name: v.name, OS: true, Disks: []lab.DiskSpec{disk}}); err != nil {
		return err
	}
	c.os = &osGuest{victim: v, done: map[string]int{}}
	if err := c.bring(ctx, v); err != nil {
		return err
	}
	if err := c.activate(ctx, v); err != nil {
		return err
	}
	return c.startRecords(ctx)
}

// startRecords waits for the guest's boot and lets it write on.
func (c *campaign) startRecords(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, osBootWithin)
	defer cancel()
	if err := c.site.Lab.WaitAgent(ctx, c.os.name); err != nil {
		return err
	}
	// The console has the numbers from before a restore, too.
	if err := os.Truncate(c.site.Lab.ConsoleFile(c.os.name), 0); err != nil {
		return err
	}
	return c.site.Lab.StartRecorder(ctx, c.os.name)
}

// osWrites returns when the guest has written more, and what it has acknowledged.
func (c *campaign) osWrites(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, osBootWithin)
	defer cancel()
	n, err := c.site.Lab.Acknowledged(c.os.name)
	if err != nil {
		return 0, err
	}
	if err := c.site.Lab.WaitAcknowledged(ctx, c.os.name, n+2); err != nil {
		return 0, fmt.Errorf("the guest writes no more, it came to record %d: %w", n, err)
	}
	return c.site.Lab.Acknowledged(c.os.name)
}

func (c *campaign) osOperation(ctx context.Context, p plan, kind string) (string, error) {
	acked, err := c.osWrites(ctx)
	if err != nil {
		return "not begun", err
	}
	w := &work{victim: c.os.victim, kind: kind}
	if err := c.perform(ctx, p, []*work{w}); err != nil {
		return string(w.op.Status), err
	}
	status := string(w.op.Status)
	c.os.done[kind+" "+status]++
	if kind == restore && status == "succeeded" {
		return status, c.osRestored(ctx)
	}
	// A guest that is still frozen or suspended would not write.
	after, err := c.osWrites(ctx)
	if err != nil {
		return status, err
	}
	if kind == take {
		c.os.low, c.os.high = acked, after+1
	}
	return status, c.osRecords(ctx, acked, after+100)
}

// osRestored makes sure that the guest has exactly the records of the snapshot.
func (c *campaign) osRestored(ctx context.Context) error {
	booting, cancel := context.WithTimeout(ctx, osBootWithin)
	defer cancel()
	if err := c.site.Lab.WaitAgent(booting, c.os.name); err != nil {
		return err
	}
	if err := c.osRecords(ctx, c.os.low, c.os.high); err != nil {
		return err
	}
	return c.startRecords(ctx)
}

// osRecords reads the records in the guest: none may be missing, all up to low
// must be there and none beyond high.
func (c *campaign) osRecords(ctx context.Context, low, high int) error {
	records, err := c.site.Lab.Records(ctx, c.os.name)
	if err != nil {
		return err
	}
	for i, n := range records {
		if n != i+1 {
			return fmt.Errorf("record %d is %d", i+1, n)
		}
	}
	if len(records) < low || len(records) > high {
		return fmt.Errorf("the guest has %d records; %d were acknowledged, and at most %d written", len(records), low, high)
	}
	return nil
}
