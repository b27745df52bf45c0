// Package integrity tells whether a snapshot is whole: whether its files are those that
// were recorded and whether the definition of its VPS names them. It puts definitions
// and their copy of the record right where that is provably safe.
package integrity

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"vpssnapd/daemon/image"
	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/metadata"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Integrity judges the snapshots of one host.
type Integrity struct {
	host      hypervisor.Host
	inventory *inventory.Inventory
	store     *store.Store
	logger    *slog.Logger
	onBroken  func(vpsID, why string)
}

// New makes a judge. OnBroken is to be called before it judges.
func New(host hypervisor.Host, inv *inventory.Inventory, db *store.Store, logger *slog.Logger) *Integrity {
	return &Integrity{host: host, inventory: inv, store: db, logger: logger, onBroken: func(string, string) {}}
}

// OnBroken sets what is called when a snapshot turns out to be broken.
func (in *Integrity) OnBroken(do func(vpsID, why string)) { in.onBroken = do }

// Judge records whether a snapshot is broken, and when it no longer is,
// by what libvirt says of its VPS. It names it; it guesses and deletes nothing.
// Nobody works on the VPS, and its lock is held.
func (in *Integrity) Judge(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) error {
	broken := snap.State == vps.SnapshotBroken
	// Somebody has to vouch for it; no file that comes back proves anything.
	if broken && !snap.Heals {
		return nil
	}
	reason, err := in.WhatIsBroken(ctx, dom, snap)
	if err != nil || broken == (reason != "") {
		return err
	}
	snap.State, snap.Heals, snap.Reason, snap.UpdatedAt = vps.SnapshotBroken, true, reason, in.store.Now()
	phrase := vps.PhraseSnapshotBroken
	if reason == "" {
		snap.State, snap.Heals, phrase = vps.SnapshotAvailable, false, vps.PhraseSnapshotHealed
	}
	in.logger.Warn(
		"snapshot judged anew", vps.LogAttr(dom.ID, dom.Name), "snapshot", snap.ID, "state", snap.State, "reason",
		reason,
	)
	if reason != "" {
		// After the write: who reads the snapshot is cut off with the record to show
		// why.
		defer in.onBroken(snap.VPS, "the snapshot is broken")
	}
	return in.store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.SaveSnapshot(ctx, snap); err != nil {
			return err
		}
		return tx.AddMessage(
			ctx,
			vps.Message{
				VPS:     dom.ID,
				VPSName: dom.Name,
				Kind:    vps.MessageWarning,
				Actor:   vps.ActorWatch,
				Phrase:  phrase,
				Detail:  reason,
			},
		)
	})
}

// WhatIsBroken compares a snapshot with the host; "" when nothing is.
func (in *Integrity) WhatIsBroken(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) (string, error) {
	// One reason is enough, and the first is what an operator can look at.
	for _, disk := range snap.Disks {
		now, ok := image.Live(dom, disk)
		switch {
		case !ok:
			return "the VPS has no disk " + disk.Target + " any more", nil
		case !now.Is(disk.Overlay):
			return "disk " + disk.Target + " of the VPS uses another image than the snapshot knows of", nil
		}
		if why, err := in.Damage(ctx, disk); why != "" || err != nil {
			return "disk " + disk.Target + ": " + why, err
		}
	}
	if snap.NVRAMSaved != "" {
		_, err := in.host.Stat(ctx, snap.NVRAMSaved)
		if errors.Is(err, fs.ErrNotExist) {
			return "its copy of the UEFI variables is missing", nil
		}
		return "", err
	}
	return "", nil
}

// BaseWritten is damage too, unless a merge of ours did it.
const BaseWritten = "its base was written to"

// cutShort is damage that an operator did by hand: to be told before QEMU reads zeros, or
// fails, where the tables of the overlay were.
const cutShort = "its overlay was cut short (truncated): a part of what the VPS has written since is lost"

// Damage says what has become of the files of one disk of a snapshot; "" when they are
// as recorded. The reasons are stored and shown; an error means that the file could not
// be asked, which proves nothing.
func (in *Integrity) Damage(ctx context.Context, disk vps.SnapshotDisk) (string, error) {
	overlay, err := in.host.Stat(ctx, disk.Overlay)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "its overlay is missing", nil
	case err != nil:
		return "", err
	// A copy has another inode, also one that holds the same bytes.
	case overlay.Inode != disk.OverlayInode:
		return "its overlay was replaced by another file", nil
	}
	cut, err := in.host.CutShort(ctx, disk.Overlay)
	switch {
	case err != nil:
		return "", err
	case cut:
		return cutShort, nil
	}
	base, err := in.host.Stat(ctx, disk.Base)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "its base is missing", nil
	case err != nil:
		return "", err
	case base.Inode != disk.BaseInode:
		return "its base was replaced by another file", nil
	// Earlier is no sign of a write: fdatasync does not make the time of the last
	// change durable, so a power cut may put it back.
	case !disk.BaseModified.IsZero() && base.Modified.After(disk.BaseModified):
		return BaseWritten, nil
	}
	return "", nil
}

// RightDefinition puts the definition of a VPS with a snapshot right, as far as
// that is safe, and judges the snapshot by what it then finds.
func (in *Integrity) RightDefinition(ctx context.Context, id string) error {
	snap, err := in.QuietSnapshot(ctx, id)
	if err != nil || snap == nil {
		return err // most VPSes have none, and need not wait for a lock
	}
	release, err := in.inventory.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	// Again, under the lock: an operation may have begun.
	if snap, err = in.QuietSnapshot(ctx, id); err != nil || snap == nil {
		return err
	}
	dom, err := in.inventory.Read(ctx, id)
	if errors.Is(err, hypervisor.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	// The definition first: a snapshot is judged by where the VPS will be at its next
	// boot.
	if snap, err = in.noteNames(ctx, dom, *snap); err != nil {
		return err
	}
	touched, failed := in.RepairDefinition(ctx, dom, *snap)
	if touched || failed != nil {
		if dom, err = in.inventory.Read(ctx, id); err != nil {
			return errors.Join(failed, err)
		}
	}
	if err := errors.Join(failed, in.Judge(ctx, dom, *snap)); err != nil {
		return err
	}
	if snap, err = in.QuietSnapshot(ctx, id); err != nil || snap == nil {
		return err
	}
	return in.RightMetadata(ctx, dom, *snap) // it may have become available just now
}

// NoteNames records the names that the disks of a snapshot have now, as after a start with a
// definition that had other names waiting for it.
func (in *Integrity) NoteNames(ctx context.Context, id string) error {
	dom, ok := in.inventory.Find(id)
	if !ok {
		return nil
	}
	snap, err := in.QuietSnapshot(ctx, id)
	if err != nil || snap == nil {
		return err
	}
	if _, changed := image.Renamed(dom, *snap); !changed {
		return nil
	}
	return in.RightDefinition(ctx, id)
}

// noteNames records the names that the disks of a snapshot have in the definition now.
// Nobody works on the VPS.
func (in *Integrity) noteNames(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) (*vps.Snapshot, error) {
	renamed, changed := image.Renamed(dom, snap)
	if !changed {
		return &snap, nil
	}
	in.logger.Warn("disks have other names in the definition now", vps.LogAttr(dom.ID, dom.Name), "snapshot", snap.ID)
	return &renamed, in.store.Write(ctx, func(tx *store.Tx) error { return tx.RenameDisks(ctx, snap, renamed) })
}

// QuietSnapshot is the usable or broken snapshot of a VPS on which no operation
// works, nil when there is none. A running operation reads and writes the
// definition itself.
func (in *Integrity) QuietSnapshot(ctx context.Context, id string) (*vps.Snapshot, error) {
	rec, err := in.store.Record(ctx, id)
	if err != nil || rec.Operation != nil || rec.Snapshot == nil ||
		rec.Snapshot.State != vps.SnapshotAvailable && rec.Snapshot.State != vps.SnapshotBroken {
		return nil, err
	}
	return rec.Snapshot, nil
}

// RepairDefinition points the definition at the overlays again, and writes the
// metadata that a definition made elsewhere has wiped. touched reports that it may have
// changed something.
func (in *Integrity) RepairDefinition(
	ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot,
) (touched bool, err error) {
	if !dom.Persistent {
		return false, nil
	}
	var wrong []hypervisor.DiskSource
	for _, disk := range snap.Disks {
		next, ok := image.Next(dom, disk)
		// A disk that has pivoted belongs on its base.
		if !ok || !next.Is(disk.Base) || disk.Pivoted {
			continue
		}
		safe, err := in.OverlayIsAuthority(ctx, dom, disk)
		// All or nothing: a definition with one disk of each time would be worse than
		// the one there is.
		if err != nil || !safe {
			return false, err
		}
		wrong = append(wrong, image.OnOverlay(dom, disk))
	}
	// The next boot on the base would write into it under the overlay and ruin both
	// (seen with panels).
	if len(wrong) > 0 {
		if err := in.host.PointDisks(ctx, dom.ID, wrong); err != nil {
			return true, err
		}
		in.logger.Warn("a definition that named the snapshot's base was put right", vps.LogAttr(dom.ID, dom.Name))
		err := in.store.Write(ctx, func(tx *store.Tx) error {
			return tx.AddMessage(ctx, vps.Message{VPS: dom.ID, VPSName: dom.Name, Kind: vps.MessageWarning,
				Actor:  vps.ActorWatch,
				Phrase: vps.PhraseRedefined,
				Detail: "somebody defined " + dom.Name +
					" with the base image of its snapshot; the definition names the overlay again"})
		})
		if err != nil {
			return true, err
		}
	}
	if dom.Metadata != "" && len(wrong) == 0 {
		return false, nil
	}
	return true, in.RightMetadata(ctx, dom, snap)
}

// OverlayIsAuthority reports whether the overlay surely holds the VPS's data: it
// runs on it, or it is off and both files are as they were recorded.
func (in *Integrity) OverlayIsAuthority(
	ctx context.Context, dom hypervisor.Domain, disk vps.SnapshotDisk,
) (bool, error) {
	if dom.State != hypervisor.Off {
		live, ok := image.Live(dom, disk)
		overlay, err := in.host.Stat(ctx, disk.Overlay)
		return ok && live.Is(disk.Overlay) && overlay.Inode == disk.OverlayInode, err
	}
	why, err := in.Damage(ctx, disk)
	return why == "", err
}

// RightMetadata makes the copy in the definition say what the record says. What
// is broken keeps the copy from before, and what is being restored its own.
func (in *Integrity) RightMetadata(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) error {
	text, err := metadata.Encode(snap, metadata.Restoring{})
	steady := snap.State == vps.SnapshotAvailable || snap.State == vps.SnapshotDeleting
	if err != nil || !steady || metadata.Differs(dom.Metadata, snap) == "" {
		return err
	}
	return in.host.SetMetadata(ctx, dom.ID, text)
}

// WriteMetadata puts the copy of the record into the domain's definition.
func (in *Integrity) WriteMetadata(ctx context.Context, r *operation.Run) error {
	return in.WriteRestoring(ctx, r, metadata.Restoring{})
}

// WriteRestoring is WriteMetadata with what a restore is about to exchange.
func (in *Integrity) WriteRestoring(ctx context.Context, r *operation.Run, notes metadata.Restoring) error {
	snap, err := in.store.Snapshot(ctx, r.Op.SnapshotID)
	if err != nil {
		return err
	}
	text, err := metadata.Encode(snap, notes)
	if err != nil {
		return err
	}
	if err := in.host.SetMetadata(ctx, snap.VPS, text); err != nil {
		return fmt.Errorf("record not copied into the domain's metadata: %w", err)
	}
	return nil
}
