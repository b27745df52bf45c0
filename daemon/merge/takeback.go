package merge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vpssnapd/daemon/image"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/startlock"
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

// MergeLost merges the disks of a VPS that is on which libvirt has lost track of: it died
// when it ended a merge.
func (m *Merger) MergeLost(ctx context.Context, r *operation.Run, dom hypervisor.Domain, snap vps.Snapshot) error {
	var lost []int
	for i, disk := range snap.Disks {
		yes, err := m.isLost(ctx, dom, disk)
		if err != nil {
			return err
		}
		if yes {
			lost = append(lost, i)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	m.logger.Warn("libvirt died in a call and lost track of disks, which are merged past it", r.Op.LogAttr())
	return m.TakeBack(ctx, r, dom, snap, lost)
}

// TakeBack takes some disks of a snapshot back into their bases. The next boot uses their
// overlays until that is done.
func (m *Merger) TakeBack(
	ctx context.Context, r *operation.Run, dom hypervisor.Domain, snap vps.Snapshot, disks []int,
) error {
	var overlays []hypervisor.DiskSource
	for _, i := range disks {
		overlays = append(overlays, image.OnOverlay(dom, snap.Disks[i]))
	}
	if err := m.host.PointDisks(ctx, snap.VPS, overlays); err != nil {
		return err
	}
	return m.inventory.Await(ctx, snap.VPS, takeBackPoll, func() (bool, error) {
		job, err := m.host.TakeBackSwitch(ctx, snap.VPS, switchesOf(snap, disks), false)
		r.Progress(job.Done, job.Total)
		switch {
		case err != nil:
			return false, err
		case !job.Found:
			return true, m.recordTakenBack(ctx, r, snap, disks)
		case !job.Ready:
			return false, nil
		}
		return true, m.endTakeBack(ctx, r, snap, disks)
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
	ctx context.Context, r *operation.Run, snap vps.Snapshot, disks []int,
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
			err = m.takeBackDisk(ctx, r, snap, i)
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
	ctx context.Context, r *operation.Run, snap vps.Snapshot, i int,
) error {
	if err := m.MarkPivot(ctx, r, snap.Disks[i], m.inventory.TimesResumed(snap.VPS), m.inventory.TimesLost()); err != nil {
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
			return m.recordTakenBack(ctx, r, snap, one)
		}
		select {
		case <-late.Done():
			return fmt.Errorf("disk %s not taken back: %w", snap.Disks[i].Target, hypervisor.ErrNotReady)
		case <-time.After(stillPoll):
		}
	}
}

// TakeBackOff merges what was written to the overlays of a VPS that has gone off since.
func (m *Merger) TakeBackOff(
	ctx context.Context, r *operation.Run, dom hypervisor.Domain, snap vps.Snapshot, rest []int,
) error {
	if err := m.CheckNotRunInPivot(ctx, r, dom, snap); err != nil {
		return err
	}
	err := startlock.Hold(ctx, m.stateDir, dom.ID, func(ctx context.Context) error {
		for _, i := range rest {
			disk := snap.Disks[i]
			what := hypervisor.OfflineMerge{Overlay: disk.Overlay, Base: disk.Base, BaseFormat: disk.BaseFormat}
			if err := m.host.MergeOffline(ctx, what, r.Progress); err != nil {
				return fmt.Errorf("overlay of disk %s not merged: %w", disk.Target, err)
			}
		}
		return m.recordTakenBack(ctx, r, snap, rest)
	})
	if errors.Is(err, startlock.ErrStarting) {
		return fmt.Errorf("%s is being started: %w", dom.Name, hypervisor.ErrBusy)
	}
	return err
}

// recordTakenBack makes durable that the bases are the authority again.
func (m *Merger) recordTakenBack(ctx context.Context, r *operation.Run, snap vps.Snapshot, disks []int) error {
	for _, i := range disks {
		snap.Disks[i].Pivoted = true
	}
	snap.UpdatedAt = m.store.Now()
	return r.Record(ctx, func(tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
}

// isLost reports whether libvirt believes that a guest uses the base, or that a merge
// goes on, and QEMU uses the overlay.
func (m *Merger) isLost(ctx context.Context, dom hypervisor.Domain, disk vps.SnapshotDisk) (bool, error) {
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
