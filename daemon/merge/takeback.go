package merge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vpssnapd/daemon/image"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// A libvirt that dies within a call can leave a QEMU behind that writes to the overlays,
// and believe itself that it uses the bases: then nothing can be done with the disks
// through libvirt until the VPS is started again. What the guest wrote is taken back into
// the bases instead, past libvirt, which is right again then. It is a merge like any other:
// the overlay is the authority, and the definition names it, until the record says
// "pivoted"; the guest is suspended meanwhile.

// takeBackPoll is how often such a merge is looked at.
const takeBackPoll = 200 * time.Millisecond

// Mark records, before a disk pivots, that this is under way.
type Mark func(disk vps.SnapshotDisk) error

// TakeBack does so for some disks of a snapshot, of which the definition names the overlays.
func (m *Merger) TakeBack(
	ctx context.Context, r *operation.Run, snap vps.Snapshot, disks []int, mark Mark,
) error {
	return m.inventory.Await(ctx, snap.VPS, takeBackPoll, func() (bool, error) {
		job, err := m.host.TakeBackSwitch(ctx, snap.VPS, switchesOf(snap, disks), false)
		r.Progress(job.Done, job.Total)
		switch {
		case err != nil:
			return false, err
		case !job.Found:
			return true, m.RecordTakenBack(ctx, r, snap, disks)
		case !job.Ready:
			return false, nil
		}
		return true, m.endTakeBack(ctx, r, snap, disks, mark)
	})
}

// switchesOf lists for the host which of the disks are meant.
func switchesOf(snap vps.Snapshot, disks []int) (list []hypervisor.DiskSwitch) {
	for _, i := range disks {
		list = append(list, hypervisor.DiskSwitch{Target: snap.Disks[i].Target, Overlay: snap.Disks[i].Overlay})
	}
	return list
}

// endTakeBack has the guest use the bases, disk by disk, while it is suspended.
func (m *Merger) endTakeBack(
	ctx context.Context, r *operation.Run, snap vps.Snapshot, disks []int, mark Mark,
) error {
	dom, err := m.inventory.Read(ctx, snap.VPS)
	if err != nil {
		return err
	}
	if dom.State == hypervisor.Running {
		err = m.guests.Suspend(ctx, r)
	}
	for _, i := range disks {
		if err == nil {
			err = m.takeBackDisk(ctx, r, snap, i, mark)
		}
	}
	if owed, e := m.store.Owes(ctx, snap.VPS, store.DebtResume); e != nil || !owed {
		return errors.Join(err, e)
	}
	return errors.Join(err, m.guests.Resume(ctx, snap.VPS))
}

// takeBackPivot is how long the pivot of one disk may take while its guest is suspended.
const takeBackPivot = 2 * time.Second

// stillPoll is the pause between two looks while a guest is suspended.
const stillPoll = 5 * time.Millisecond

// takeBackDisk pivots one disk past libvirt and records it.
func (m *Merger) takeBackDisk(
	ctx context.Context, r *operation.Run, snap vps.Snapshot, i int, mark Mark,
) error {
	if err := mark(snap.Disks[i]); err != nil {
		return err
	}
	one := []int{i}
	late, cancel := context.WithTimeout(ctx, takeBackPivot)
	defer cancel()
	for {
		job, err := m.host.TakeBackSwitch(ctx, snap.VPS, switchesOf(snap, one), true)
		if err != nil {
			return err
		}
		if !job.Found {
			return m.RecordTakenBack(ctx, r, snap, one)
		}
		select {
		case <-late.Done():
			return fmt.Errorf("disk %s not taken back: %w", snap.Disks[i].Target, hypervisor.ErrNotReady)
		case <-time.After(stillPoll):
		}
	}
}

// RecordTakenBack makes durable that the bases are the authority again.
func (m *Merger) RecordTakenBack(ctx context.Context, r *operation.Run, snap vps.Snapshot, disks []int) error {
	for _, i := range disks {
		snap.Disks[i].Pivoted = true
	}
	snap.UpdatedAt = m.store.Now()
	return r.Record(ctx, func(tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
}

// IsLost reports whether libvirt believes that a guest uses the base, or that a merge
// goes on, and QEMU uses the overlay.
func (m *Merger) IsLost(ctx context.Context, dom hypervisor.Domain, disk vps.SnapshotDisk) (bool, error) {
	now, ok := image.Live(dom, disk)
	switch {
	case dom.State == hypervisor.Off || disk.Pivoted || !ok:
		return false, nil
	case now.Is(disk.Overlay) || now.JobLost:
		return now.Is(disk.Overlay) && now.JobLost, nil
	case !now.Is(disk.Base):
		return false, nil
	}
	err := m.host.Unused(ctx, disk.Overlay, "qcow2")
	if errors.Is(err, hypervisor.ErrBusy) {
		return true, nil
	}
	return false, err
}
