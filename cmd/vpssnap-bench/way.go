package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/lab"
	"vpssnapd/hypervisor/qemuimg"
)

const (
	mib = 1 << 20
	gib = 1 << 30

	// scattered is how many blocks are written all over a disk, and scatteredOver its
	// size: large enough that each lies in a cluster of its own, as libvirt's overlays
	// have them.
	scattered     = 20_000
	scatteredOver = 4 * gib
	// scatteredStep is from one to the next: 53 is prime to the number of blocks of
	// every disk here, so that none is written twice.
	scatteredStep = 53 * 4096
)

// longest is how long one operation may take.
const longest = 10 * time.Minute

// timed is how many seconds work takes.
func timed(work func() error) (float64, error) {
	began := time.Now()
	err := work()
	return time.Since(began).Seconds(), err
}

// vps makes a VPS with raw disks of that size, off, that may have snapshots.
func (b *bench) vps(ctx context.Context, name string, size int64, disks int) error {
	spec := lab.Spec{Name: name, MemoryMiB: 16}
	for i := range disks {
		spec.Disks = append(spec.Disks, lab.DiskSpec{Target: "vd" + string(rune('a'+i)), Format: "raw", SizeBytes: size})
	}
	return b.define(ctx, spec)
}

func (b *bench) define(ctx context.Context, spec lab.Spec) error {
	if _, err := b.Lab.DefineDomain(ctx, spec); err != nil {
		return err
	}
	return b.order(ctx, spec.Name)
}

// order activates the option of a VPS, as soon as the daemon knows it.
func (b *bench) order(ctx context.Context, name string) error {
	for {
		_, err := b.Client.PutOption(ctx, name, api.OptionOrder{State: "active", OrderRef: "bench"})
		if problem, ok := errors.AsType[*client.Error](err); !ok || problem.Code != api.CodeNotFound {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// drop ends a VPS and its images.
func (b *bench) drop(ctx context.Context, name string) error {
	_, _ = b.Lab.Virsh(ctx, "destroy", name) // it may be off
	if _, err := b.Lab.Virsh(ctx, "undefine", name); err != nil {
		return err
	}
	entries, err := os.ReadDir(b.Lab.ImageDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), name+"-") {
			err = errors.Join(err, os.Remove(b.Lab.ImageDir()+"/"+e.Name()))
		}
	}
	return err
}

// done waits for an operation.
func (b *bench) done(ctx context.Context, op api.Operation, err error) error {
	if err != nil {
		return err
	}
	for until := time.Now().Add(longest); time.Now().Before(until); {
		if op, err = b.Client.WaitOperation(ctx, op.ID, time.Minute); err != nil {
			return err
		}
		switch op.Status {
		case api.OperationStatusSucceeded:
			return nil
		case api.OperationStatusPending, api.OperationStatusRunning:
		default:
			return fmt.Errorf("%s of %s: %s: %+v", op.Kind, op.VPSName, op.Status, op.Error)
		}
	}
	return fmt.Errorf("%s of %s takes longer than %s", op.Kind, op.VPSName, longest)
}

// take waits for the end, as vpssnap does.
func (b *bench) take(ctx context.Context, name string) error {
	op, err := b.Client.Take(ctx, name, api.TakeRequest{})
	return b.done(ctx, op, err)
}

// delete waits until nothing is left of the snapshot.
func (b *bench) delete(ctx context.Context, name string) error {
	op, err := b.Client.Delete(ctx, name)
	return b.done(ctx, op, err)
}

func (b *bench) restore(ctx context.Context, name string) error {
	s, err := b.Client.Snapshot(ctx, name)
	if err != nil {
		return err
	}
	op, err := b.Client.Restore(ctx, name, api.RestoreRequest{Confirm: s.ID})
	return b.done(ctx, op, err)
}

// virshTake is a snapshot as libvirt makes it.
func (b *bench) virshTake(ctx context.Context, name string) error {
	return b.virshSnapshot(ctx, name)
}

// Without metadata, so that libvirt keeps no object that would have to be deleted.
func (b *bench) virshSnapshot(ctx context.Context, name string, besides ...string) error {
	_, err := b.Lab.Virsh(
		ctx,
		append([]string{"snapshot-create-as", name, "bench", "--disk-only", "--atomic", "--no-metadata"}, besides...)...)
	return err
}

// virshMerge merges a snapshot of a VPS that is on, as libvirt does.
func (b *bench) virshMerge(ctx context.Context, name string, overlays []lab.DiskUse) error {
	for _, disk := range overlays {
		if _, err := b.Lab.Virsh(ctx, "blockcommit", name, disk.Target, "--active", "--pivot"); err != nil {
			return err
		}
	}
	return nil
}

// virshDelete does so, and removes what libvirt leaves.
func (b *bench) virshDelete(ctx context.Context, name string) error {
	overlays, err := b.disks(name)
	if err != nil {
		return err
	}
	return errors.Join(b.virshMerge(ctx, name, overlays), removeAll(overlays))
}

// removeAll unlinks what libvirt leaves behind.
func removeAll(overlays []lab.DiskUse) error {
	var err error
	for _, disk := range overlays {
		err = errors.Join(err, os.Remove(disk.Path))
	}
	return err
}

func (b *bench) disks(name string) ([]lab.DiskUse, error) { return b.Lab.PersistentDisks(name) }

// disk is the image that the first disk of a VPS uses.
func (b *bench) disk(name string) (lab.DiskUse, error) {
	disks, err := b.disks(name)
	if err != nil || len(disks) == 0 {
		return lab.DiskUse{}, fmt.Errorf("%s has no disk: %w", name, err)
	}
	return disks[0], nil
}

// tool runs a program of QEMU and returns what it prints.
func (b *bench) tool(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

var completed = regexp.MustCompile(`completed in ([0-9.]+) seconds`)

// write writes into an image as a guest with 32 requests in flight would, and
// returns the seconds that it takes. Not zeroes: those are merged in another way.
func (b *bench) write(ctx context.Context, path, format string, size, count, step int64) (float64, error) {
	out, err := b.tool(ctx, "qemu-img", "bench", "-w", "--pattern=170", "-f", format, "-t", "none", "-n", "-d", "32",
		"-s", strconv.FormatInt(size, 10), "-c", strconv.FormatInt(count, 10), "-S", strconv.FormatInt(step, 10), path)
	if err != nil {
		return 0, err
	}
	m := completed.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("cannot read what qemu-img bench says: %q", out)
	}
	return strconv.ParseFloat(m[1], 64)
}

// overlay makes an overlay as the daemon does, or as libvirt does.
func (b *bench) overlay(ctx context.Context, path, base string, size int64, ours bool) error {
	if !ours {
		_, err := b.tool(
			ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path, strconv.FormatInt(size, 10),
		)
		return err
	}
	images, err := qemuimg.New()
	if err != nil {
		return err
	}
	_, err = images.CreateOverlay(ctx, hypervisor.Overlay{Path: path, Base: base, BaseFormat: "raw", SizeBytes: size})
	return err
}
