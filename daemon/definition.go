package daemon

import (
	"context"

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
	d.refreshDomain(ctx, id)
	release, err := d.locks.acquire(ctx, id)
	if err != nil {
		d.Logger.Warn("definition not looked at", "vps", id, "error", err)
		return
	}
	defer release()
	rec, err := readRecord(ctx, d.store, id)
	if err != nil || rec.operation != nil || rec.snapshot == nil ||
		rec.snapshot.State != vps.SnapshotAvailable && rec.snapshot.State != vps.SnapshotBroken {
		return // a running operation reads and writes the definition itself
	}
	dom, err := d.inventory.domain(ctx, id)
	if err != nil {
		return
	}
	if err := d.repairDefinition(ctx, dom, *rec.snapshot); err != nil {
		d.Logger.Error("definition not put right", "vps", dom.Name, "error", err)
	}
	if err := d.judgeSnapshot(ctx, *rec.snapshot); err != nil {
		d.Logger.Error("snapshot not looked at", "vps", dom.Name, "error", err)
	}
}

// reviewDefinitions looks at every VPS with a snapshot: somebody may have
// defined it anew while nobody watched.
func (d *Daemon) reviewDefinitions(ctx context.Context) {
	snapshots, err := d.store.Snapshots(ctx)
	if err != nil {
		d.Logger.Error("definitions not reviewed", "error", err)
		return
	}
	for _, snap := range snapshots {
		if _, ok := d.inventory.find(snap.VPS); ok {
			d.definitionChanged(ctx, snap.VPS)
		}
	}
}

// repairDefinition points the definition at the overlays again, and writes the
// metadata that a definition made elsewhere has wiped.
func (d *Daemon) repairDefinition(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) error {
	if !dom.Persistent {
		return nil
	}
	var wrong []hypervisor.DiskSource
	for _, disk := range snap.Disks {
		next, ok := diskOf(dom.PersistentDisks, disk.Target)
		if !ok || next.Path != disk.Base || disk.Pivoted {
			continue
		}
		safe, err := d.overlayIsAuthority(ctx, dom, disk)
		if err != nil || !safe {
			return err
		}
		wrong = append(wrong, hypervisor.DiskSource{Target: disk.Target, Path: disk.Overlay, Format: "qcow2"})
	}
	if len(wrong) > 0 {
		if err := d.Config.Host.PointDisks(ctx, dom.ID, wrong); err != nil {
			return err
		}
		d.Logger.Warn("a definition that named the snapshot's base was put right", "vps", dom.Name)
		err := d.store.Write(ctx, func(tx *store.Tx) error {
			return d.say(ctx, tx, vps.Message{VPS: dom.ID, VPSName: dom.Name, Kind: vps.MessageWarning,
				Actor:  vps.Actor{Name: "vpssnapd", Way: vps.WayRecovery},
				Text:   "The VPS was defined anew with its disks of before the snapshot; this was put right.",
				Detail: "somebody defined " + dom.Name + " with the base image of its snapshot; the definition names the overlay again"})
		})
		if err != nil {
			return err
		}
	}
	if dom.Metadata != "" && len(wrong) == 0 {
		return nil
	}
	text, err := metadataOf(snap)
	if err != nil {
		return err
	}
	return d.Config.Host.SetMetadata(ctx, dom.ID, text)
}

// overlayIsAuthority says whether the overlay surely holds the VPS's data: it
// runs on it, or it is off and both files are as they were recorded.
func (d *Daemon) overlayIsAuthority(ctx context.Context, dom hypervisor.Domain, disk vps.SnapshotDisk) (bool, error) {
	if dom.State != hypervisor.Off {
		live, ok := diskOf(dom.Disks, disk.Target)
		return ok && live.Path == disk.Overlay, nil
	}
	why, err := d.damage(ctx, disk)
	return why == "", err
}
