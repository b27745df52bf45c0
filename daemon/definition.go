package daemon

import (
	"context"
	"errors"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// definitionChanged looks at a VPS that somebody defined, perhaps anew from a
// panel's own database. A definition that names the base under our overlay
// would let the next boot write into the base and ruin both: it is put right.
func (d *Daemon) definitionChanged(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, hostRead)
	defer cancel()
	if d.workedOn(ctx, id) {
		// Mostly its own work, of which it reads the outcome while the guest stands still.
		d.inventory.refreshSoon(ctx, id, refreshLagBeside)
	} else {
		d.inventory.refresh(ctx, id)
	}
	if dom, ok := d.inventory.find(id); ok && dom.MigratedAway {
		d.definitionLeft(ctx, id)
		return
	}
	if err := errors.Join(d.arrived(ctx, id), d.rightDefinition(ctx, id)); err != nil {
		d.Logger.Error("definition not put right", d.logAttr(id), "error", err)
	}
}

// rightDefinition puts the definition of a VPS with a snapshot right, as far as
// that is safe, and judges the snapshot by what it then finds.
func (d *Daemon) rightDefinition(ctx context.Context, id string) error {
	snap, err := d.quietSnapshot(ctx, id)
	if err != nil || snap == nil {
		return err // most VPSes have none, and need not wait for a lock
	}
	release, err := d.locks.acquire(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	if snap, err = d.quietSnapshot(ctx, id); err != nil || snap == nil {
		return err
	}
	dom, err := d.inventory.domain(ctx, id)
	if errors.Is(err, hypervisor.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	touched, failed := d.repairDefinition(ctx, dom, *snap)
	if touched || failed != nil {
		if dom, err = d.inventory.domain(ctx, id); err != nil {
			return errors.Join(failed, err)
		}
	}
	if err := errors.Join(failed, d.judgeSnapshot(ctx, dom, *snap)); err != nil {
		return err
	}
	if snap, err = d.quietSnapshot(ctx, id); err != nil || snap == nil {
		return err
	}
	return d.rightMetadata(ctx, dom, *snap) // it may have become available just now
}

// quietSnapshot is the usable or broken snapshot of a VPS on which no operation
// works, nil when there is none. A running operation reads and writes the
// definition itself.
func (d *Daemon) quietSnapshot(ctx context.Context, id string) (*vps.Snapshot, error) {
	rec, err := readRecord(ctx, d.store, id)
	if err != nil || rec.operation != nil || rec.snapshot == nil ||
		rec.snapshot.State != vps.SnapshotAvailable && rec.snapshot.State != vps.SnapshotBroken {
		return nil, err
	}
	return rec.snapshot, nil
}

// reviewDefinitions looks at every VPS that has a snapshot, or says so: somebody
// may have defined it anew, or moved it, while nobody watched.
func (d *Daemon) reviewDefinitions(ctx context.Context) {
	records, err := d.allRecords(ctx)
	if err != nil {
		d.Logger.Error("definitions not reviewed", "error", err)
		return
	}
	for _, dom := range d.inventory.all() {
		if records[dom.ID].snapshot != nil || dom.Metadata != "" || dom.MigratedAway {
			d.definitionChanged(ctx, dom.ID)
		}
	}
}

// repairDefinition points the definition at the overlays again, and writes the
// metadata that a definition made elsewhere has wiped. touched says that it may have
// changed something.
func (d *Daemon) repairDefinition(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) (touched bool, err error) {
	if !dom.Persistent {
		return false, nil
	}
	var wrong []hypervisor.DiskSource
	for _, disk := range snap.Disks {
		next, ok := diskOf(dom.PersistentDisks, disk.Target)
		if !ok || next.Path != disk.Base || disk.Pivoted {
			continue
		}
		safe, err := d.overlayIsAuthority(ctx, dom, disk)
		if err != nil || !safe {
			return false, err
		}
		wrong = append(wrong, hypervisor.DiskSource{Target: disk.Target, Path: disk.Overlay, Format: "qcow2"})
	}
	if len(wrong) > 0 {
		if err := d.Config.Host.PointDisks(ctx, dom.ID, wrong); err != nil {
			return true, err
		}
		d.Logger.Warn("a definition that named the snapshot's base was put right", vps.LogAttr(dom.ID, dom.Name))
		err := d.store.Write(ctx, func(tx *store.Tx) error {
			return d.say(ctx, tx, vps.Message{VPS: dom.ID, VPSName: dom.Name, Kind: vps.MessageWarning,
				Actor:  vps.Actor{Name: "vpssnapd", Way: vps.WayRecovery},
				Phrase: vps.PhraseRedefined,
				Detail: "somebody defined " + dom.Name + " with the base image of its snapshot; the definition names the overlay again"})
		})
		if err != nil {
			return true, err
		}
	}
	if dom.Metadata != "" && len(wrong) == 0 {
		return false, nil
	}
	return true, d.rightMetadata(ctx, dom, snap)
}

// overlayIsAuthority says whether the overlay surely holds the VPS's data: it
// runs on it, or it is off and both files are as they were recorded.
func (d *Daemon) overlayIsAuthority(ctx context.Context, dom hypervisor.Domain, disk vps.SnapshotDisk) (bool, error) {
	if dom.State != hypervisor.Off {
		live, ok := diskOf(dom.Disks, disk.Target)
		overlay, err := d.Config.Host.Stat(ctx, disk.Overlay)
		return ok && live.Path == disk.Overlay && overlay.Inode == disk.OverlayInode, err
	}
	why, err := d.damage(ctx, disk)
	return why == "", err
}
