package merge

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/startlock"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// A guest is suspended from before its pivots until the record and the definition
// name the bases, so that overlay and base are equal whatever dies. Somebody else
// can resume it in between. Of one that still runs its live definition tells what
// it writes to. One that went off may have written to the base after a pivot that
// libvirt did not come to write down: then the definition names an old overlay.

// pivotState is how things stood, in this process, before a pivot was asked for that
// is not on record yet. What must outlive the process is store.PivotMark.
type pivotState struct {
	target  string
	resumed int // how often the guest had been resumed
	lost    int // how often the connection had been lost, and events with it
}

// MarkPivot records that a pivot is under way, unless an earlier try has: a daemon that
// dies after the pivot must not merge old data over what the guest then wrote.
func (m *Merger) MarkPivot(ctx context.Context, r *operation.Run, disk vps.SnapshotDisk, resumed, lost int) error {
	known, err := m.store.PivotMark(ctx, r.Op.VPS)
	if err == nil && known.Target == disk.Target {
		return nil
	}
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	// Read before the pivot: a younger time later on tells that the guest wrote to the
	// base.
	base, err := m.host.Stat(ctx, disk.Base)
	if err != nil {
		return err
	}
	mark := store.PivotMark{VPS: r.Op.VPS, Target: disk.Target, BaseModified: base.Modified}
	if err := r.Record(ctx, func(tx *store.Tx) error { return tx.MarkPivot(ctx, mark) }); err != nil {
		return err
	}
	m.pivots.Store(r.Op.VPS, pivotState{disk.Target, resumed, lost})
	return nil
}

// CheckNotRunInPivot makes sure that the definition of a VPS that is off names its
// newest data.
func (m *Merger) CheckNotRunInPivot(
	ctx context.Context, r *operation.Run, dom hypervisor.Domain, snap vps.Snapshot,
) error {
	mark, err := m.store.PivotMark(ctx, dom.ID)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, disk := range snap.Disks {
		if disk.Target != mark.Target || disk.Pivoted {
			continue
		}
		if err := m.checkChoice(ctx, dom, disk, mark); err != nil {
			return err
		}
	}
	m.pivots.Delete(dom.ID)
	return r.Record(ctx, func(tx *store.Tx) error { return tx.ForgetPivot(ctx, dom.ID) })
}

// checkChoice does so for the disk that was to pivot. Where the guest may have run
// meanwhile, the definition is right if it knows of the pivot, if the base was not
// written to since, or if both hold the same.
func (m *Merger) checkChoice(
	ctx context.Context, dom hypervisor.Domain, disk vps.SnapshotDisk, mark store.PivotMark,
) error {
	next, ok := image.Next(dom, disk)
	// The definition on disk names the base, so libvirt came to write the pivot down.
	if ok && next.Is(disk.Base) || !m.mayHaveRun(ctx, dom.ID, mark) {
		return nil
	}
	base, err := m.host.Stat(ctx, disk.Base)
	if err != nil || base.Modified.Equal(mark.BaseModified) {
		return err
	}
	same := false
	// The lock keeps the hook from letting the VPS start while both files are read.
	err = startlock.Hold(ctx, m.stateDir, dom.ID, func(ctx context.Context) (err error) {
		same, err = m.host.SameAsBase(
			ctx, hypervisor.OfflineMerge{Overlay: disk.Overlay, Base: disk.Base, BaseFormat: disk.BaseFormat},
		)
		return err
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil && same:
		return nil
	case errors.Is(err, hypervisor.ErrUnavailable):
		return err // nor can the VPS be started from storage that does not answer
	}
	// Also when they could not be compared: with the VPS on, nobody can any more.
	return errRanInPivot(dom, disk, err)
}

// mayHaveRun reports whether somebody else may have let a guest run since a pivot was
// asked for. While there is no connection nothing tells; nor does anything of the time
// before this process.
func (m *Merger) mayHaveRun(ctx context.Context, id string, mark store.PivotMark) bool {
	known, ok := m.pivots.Load(id)
	if !ok {
		return true
	}
	state := known.(pivotState) //nolint:forcetypeassert // the only type that is stored
	return state.target != mark.Target || m.inventory.ResumedSince(ctx, id, state.resumed) ||
		m.inventory.TimesLost() != state.lost
}

// errRanInPivot leaves the choice to an operator: the guest may have written to the overlay
// or to the base after the last moment at which both were the same.
func errRanInPivot(dom hypervisor.Domain, disk vps.SnapshotDisk, cause error) error {
	if cause == nil {
		cause = fmt.Errorf("overlay and base differ")
	}
	return operation.Park(
		vps.Errorf(vps.CodeVPSChanged,
			"somebody resumed %s while disk %s pivoted, or libvirt could not tell, and then it went off: its newest "+
				"data is in the overlay or in the base", dom.Name, disk.Target).
			WithRemedy("compare both (qemu-img compare -U), point disk %s at the one with the newest data (virsh "+
				"edit %s), then resume the operation", disk.Target, dom.Name).
			Because(fmt.Errorf("base %s, overlay %s: %w", disk.Base, disk.Overlay, cause)),
	)
}
