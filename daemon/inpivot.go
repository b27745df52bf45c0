package daemon

import (
	"context"
	"fmt"
	"time"

	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// A guest is suspended from before its pivots until the record and the definition
// name the bases, so that overlay and base are equal whatever dies. Somebody else
// can resume it in between. Of one that still runs its live definition tells what
// it writes to. One that went off may have written to the base after a pivot that
// libvirt did not come to write down: then the definition names an old overlay.

// pivotMark is how things stood before a pivot was asked for that is not on record yet.
type pivotMark struct {
	target  string
	resumed int       // how often the guest had been resumed
	lost    int       // how often the connection had been lost, and events with it
	base    time.Time // when the base had last been written to
}

// markPivot remembers how things stand, unless it does from an earlier try.
func (d *Daemon) markPivot(ctx context.Context, id string, disk vps.SnapshotDisk, resumed, lost int) error {
	if known, ok := d.pivoting.Load(id); ok && known.(pivotMark).target == disk.Target { //nolint:forcetypeassert // the only type that is stored
		return nil
	}
	base, err := d.Config.Host.Stat(ctx, disk.Base)
	if err != nil {
		return err
	}
	d.pivoting.Store(id, pivotMark{disk.Target, resumed, lost, base.Modified})
	return nil
}

// checkNotRunInPivot makes sure that the definition of a VPS that is off names its
// newest data.
func (d *Daemon) checkNotRunInPivot(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) error {
	known, ok := d.pivoting.Load(dom.ID)
	if !ok {
		return nil
	}
	mark := known.(pivotMark) //nolint:forcetypeassert // the only type that is stored
	for _, disk := range snap.Disks {
		if disk.Target != mark.target || disk.Pivoted {
			continue
		}
		if err := d.checkChoice(ctx, dom, disk, mark); err != nil {
			return err
		}
	}
	d.pivoting.Delete(dom.ID)
	return nil
}

// checkChoice does so for the disk that was to pivot. Where the guest may have run
// meanwhile, the definition is right if it knows of the pivot, if the base was not
// written to since, or if both hold the same.
func (d *Daemon) checkChoice(ctx context.Context, dom hypervisor.Domain, disk vps.SnapshotDisk, mark pivotMark) error {
	next, ok := diskOf(dom.PersistentDisks, disk.Target)
	if ok && next.Path == disk.Base || !d.mayHaveRun(ctx, dom.ID, mark) {
		return nil
	}
	base, err := d.Config.Host.Stat(ctx, disk.Base)
	if err != nil || base.Modified.Equal(mark.base) {
		return err
	}
	same := false
	err = d.makingWay(ctx, dom.ID, func(ctx context.Context) (err error) {
		same, err = d.Config.Host.SameAsBase(ctx, hypervisor.OfflineMerge{Overlay: disk.Overlay, Base: disk.Base, BaseFormat: disk.BaseFormat})
		return err
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil && same:
		return nil
	}
	// Also when they could not be compared: with the VPS on, nobody can any more.
	return errRanInPivot(dom, disk, err)
}

// mayHaveRun says whether somebody else has let a guest run since a pivot was asked
// for. While there is no connection nothing tells.
func (d *Daemon) mayHaveRun(ctx context.Context, id string, mark pivotMark) bool {
	return d.inventory.resumedSince(ctx, id, mark.resumed) || d.inventory.timesLost() != mark.lost
}

func errRanInPivot(dom hypervisor.Domain, disk vps.SnapshotDisk, cause error) error {
	if cause == nil {
		cause = fmt.Errorf("overlay and base differ")
	}
	return operation.Park(vps.Errorf(vps.CodeVPSChanged, "somebody resumed %s while disk %s pivoted, or libvirt could not tell, and then it went off: its newest data is in the overlay or in the base", dom.Name, disk.Target).
		WithRemedy("compare both (qemu-img compare -U), point disk %s at the one with the newest data (virsh edit %s), then resume the operation", disk.Target, dom.Name).
		Because(fmt.Errorf("base %s, overlay %s: %w", disk.Base, disk.Overlay, cause)))
}
