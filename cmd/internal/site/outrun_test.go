package site_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/guest"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/snapshot"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/lab"
	"vpssnapd/hypervisor/libvirt"
	"vpssnapd/hypervisor/qemuimg"
)

// slowDisk is a host whose disks merge no faster than speed, whatever the limit,
// and that remembers for how long a guest was suspended at a time.
type slowDisk struct {
	hypervisor.Host
	speed int64

	mu        sync.Mutex
	suspended time.Time
	stops     []time.Duration
}

func (s *slowDisk) StartMerge(ctx context.Context, id string, m hypervisor.Merge) error {
	m.BytesPerSecond = s.speed
	return s.Host.StartMerge(ctx, id, m)
}

func (s *slowDisk) SetMergeSpeed(ctx context.Context, id, target string, _ int64) error {
	return s.Host.SetMergeSpeed(ctx, id, target, s.speed)
}

func (s *slowDisk) Suspend(ctx context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.suspended = time.Now()
	return s.Host.Suspend(ctx, id)
}

func (s *slowDisk) Resume(ctx context.Context, id string) error {
	err := s.Host.Resume(ctx, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && !s.suspended.IsZero() {
		s.stops, s.suspended = append(s.stops, time.Since(s.suspended)), time.Time{}
	}
	return err
}

// stalled is how long a merge is watched. QEMU may copy the 3 MiB that the guest writes to
// at a time, for which this slow disk takes 6 s: until then nothing is seen to move.
const stalled = 15 * time.Second

// outrun is a daemon of this process on a lab of its own.
type outrun struct {
	t     *testing.T
	lab   *lab.Lab
	disk  *slowDisk
	state string
}

func (o *outrun) must(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

// open starts a daemon with a policy for merges.
func (o *outrun) open(policy merge.Policy) *daemon.Daemon {
	o.t.Helper()
	images, err := qemuimg.New()
	o.must(err)
	log := slog.New(slog.NewTextHandler(o.t.Output(), nil))
	real, err := libvirt.Open(o.t.Context(), libvirt.Config{
		URI: o.lab.URI(), ConfigDir: filepath.Join(o.lab.ConfigDir(), "qemu"), Images: images, Logger: log})
	o.must(err)
	o.disk = &slowDisk{Host: real, speed: 512 << 10}
	d, err := daemon.Open(o.t.Context(), daemon.Config{Host: o.disk, StateDir: o.state, Version: "test", Logger: log,
		Settings: daemon.Settings{
			Offer:    vps.Offer{ID: "snapshot"},
			Guest:    guest.Policy{FreezeLimit: 10 * time.Second},
			Snapshot: snapshot.Policy{AgentWait: time.Minute},
			Merge:    policy,
		}})
	o.must(err)
	return d
}

func (o *outrun) close(d *daemon.Daemon) {
	o.t.Helper()
	o.must(d.Close())
	o.must(o.disk.Close())
}

// TestMergeOutrunByTheGuest deletes the snapshot of a guest that writes faster
// than its disk is merged. Without help that does not end, and says so. With help
// it does: the guest is never stopped for longer than it may, and not a byte that
// it was told to be on the disk is lost.
func TestMergeOutrunByTheGuest(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l, err := lab.Start(ctx, lab.Options{})
	o := &outrun{t: t, lab: l, state: t.TempDir()}
	o.must(err)
	t.Cleanup(func() { o.must(l.Close()) })
	id, err := l.DefineDomain(
		ctx, lab.Spec{Name: "web1", OS: true, Disks: []lab.DiskSpec{{Target: "vda", SizeBytes: 128 << 20, Ext4: true}}},
	)
	o.must(err)
	_, err = l.Virsh(ctx, "start", "web1")
	o.must(err)
	booting, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	o.must(l.WaitAgent(booting, "web1"))
	o.must(l.GuestStart(
		ctx, "web1", "/bin/sh", "-c",
		"dd if=/dev/urandom of=/run/data bs=1M count=3; while dd if=/run/data of=/mnt/vda/busy bs=1M count=3 conv=notrunc,fsync; do :; done",
	))
	o.must(l.StartRecorder(ctx, "web1"))

	operator := vps.Actor{Name: "test", Way: vps.WayOperator}
	d := o.open(merge.Policy{StalledAfter: stalled})
	_, err = d.Options.PutOption(ctx, id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "order-1"}, operator)
	o.must(err)
	op, err := d.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
	o.must(err)
	if op, err = d.Operations.WaitOperation(ctx, op.ID, time.Minute); err != nil || op.Status != vps.StatusSucceeded {
		t.Fatalf("the take is %s: %v", op.Status, err)
	}
	late := time.Now().Add(bootWithin)
	for delta := int64(0); delta < 3<<20; {
		if time.Now().After(late) {
			t.Fatalf("the guest has written %d bytes only", delta)
		}
		snapshot, err := d.Snapshots.Snapshot(ctx, id)
		o.must(err)
		delta = snapshot.DeltaBytes
		time.Sleep(100 * time.Millisecond)
	}
	op, err = d.Snapshots.Delete(ctx, id, operator)
	o.must(err)
	late = time.Now().Add(time.Minute)
	for !strings.Contains(op.Progress.Note, "writes as fast") {
		if time.Now().After(late) || op.Status.Final() {
			t.Fatalf("nothing was said of the merge: %s at %s, %+v", op.Status, op.Step, op.Progress)
		}
		op, err = d.Operations.WaitOperation(ctx, op.ID, 200*time.Millisecond)
		o.must(err)
	}
	if op, err = d.Operations.WaitOperation(ctx, op.ID, 20*time.Second); err != nil || op.Status != vps.StatusRunning ||
		op.Step != "merge" {
		t.Fatalf("without help the merge went on to %s at %s: %v", op.Status, op.Step, err)
	}
	t.Logf("without help, after 20 s more: %+v", op.Progress)
	if len(o.disk.stops) > 0 {
		t.Errorf("the guest was stopped: %v", o.disk.stops)
	}
	o.close(d)

	const longest = 10 * time.Second // time to copy all that the guest writes to
	d = o.open(merge.Policy{StalledAfter: stalled, Help: true, LongestStop: longest})
	if op, err = d.Operations.WaitOperation(ctx, op.ID, 3*time.Minute); err != nil || op.Status != vps.StatusSucceeded {
		t.Fatalf("with help the delete is %s at %s, %+v: %v", op.Status, op.Step, op.Progress, err)
	}
	t.Logf("with help, the guest was stopped for %v", o.disk.stops)
	if len(o.disk.stops) < 2 {
		t.Errorf("the guest was stopped for %v only", o.disk.stops)
	}
	for _, took := range o.disk.stops {
		if took > longest+5*time.Second { // the pivot itself, on a busy machine
			t.Errorf("the guest stood still for %v", took)
		}
	}
	o.close(d)
	o.whole(ctx)
}

// whole kills the guest and fails unless all that it was told to be on the disk
// is there at the next boot.
func (o *outrun) whole(ctx context.Context) {
	o.t.Helper()
	before, err := o.lab.Acknowledged("web1")
	o.must(err)
	waiting, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	o.must(o.lab.WaitAcknowledged(waiting, "web1", before+5))
	o.must(o.lab.KillQEMU("web1"))
	acknowledged, err := o.lab.Acknowledged("web1")
	o.must(err)
	o.must(o.lab.WaitState(waiting, "web1", "shut off"))
	disks, err := o.lab.Virsh(ctx, "domblklist", "web1")
	o.must(err)
	if strings.Contains(disks, ".vpssnap-") {
		o.t.Errorf("the VPS has\n%s", disks)
	}
	_, err = o.lab.Virsh(ctx, "start", "web1")
	o.must(err)
	o.must(o.lab.WaitAgent(waiting, "web1"))
	records, err := o.lab.Records(ctx, "web1")
	o.must(err)
	for i, n := range records {
		if n != i+1 {
			o.t.Fatalf("record %d is %d", i+1, n)
		}
	}
	if len(records) < acknowledged {
		o.t.Errorf("%d records were acknowledged, %d are there", acknowledged, len(records))
	}
	o.t.Logf("%d records were acknowledged, %d are there", acknowledged, len(records))
}
