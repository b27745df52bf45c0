package daemon

import (
	"context"
	"errors"
	"io/fs"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// judgeSnapshot records whether a snapshot is broken, and when it no longer is,
// by what libvirt says of its VPS. It names it; it guesses and deletes nothing.
// Nobody works on the VPS, and its lock is held.
func (d *Daemon) judgeSnapshot(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) error {
	broken := snap.State == vps.SnapshotBroken
	if broken && !snap.Heals {
		return nil
	}
	reason, err := d.whatIsBroken(ctx, dom, snap)
	if err != nil || broken == (reason != "") {
		return err
	}
	snap.State, snap.Heals, snap.Reason, snap.UpdatedAt = vps.SnapshotBroken, true, reason, d.now()
	phrase := vps.PhraseSnapshotBroken
	if reason == "" {
		snap.State, snap.Heals, phrase = vps.SnapshotAvailable, false, vps.PhraseSnapshotHealed
	}
	d.Logger.Warn("snapshot judged anew", vps.LogAttr(dom.ID, dom.Name), "snapshot", snap.ID, "state", snap.State, "reason", reason)
	if reason != "" {
		defer d.cutReadersOf(snap.VPS, "the snapshot is broken")
	}
	return d.store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.SaveSnapshot(ctx, snap); err != nil {
			return err
		}
		return d.say(ctx, tx, vps.Message{VPS: dom.ID, VPSName: dom.Name, Kind: vps.MessageWarning, Actor: watchman, Phrase: phrase, Detail: reason})
	})
}

// whatIsBroken compares a snapshot with the host; "" when nothing is.
func (d *Daemon) whatIsBroken(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) (string, error) {
	for _, disk := range snap.Disks {
		now, ok := diskOf(dom.Disks, disk.Target)
		switch {
		case !ok:
			return "the VPS has no disk " + disk.Target + " any more", nil
		case now.Path != disk.Overlay:
			return "disk " + disk.Target + " of the VPS uses another image than the snapshot knows of", nil
		}
		if why, err := d.damage(ctx, disk); why != "" || err != nil {
			return "disk " + disk.Target + ": " + why, err
		}
	}
	if snap.NVRAMSaved != "" {
		_, err := d.Config.Host.Stat(ctx, snap.NVRAMSaved)
		if errors.Is(err, fs.ErrNotExist) {
			return "its copy of the UEFI variables is missing", nil
		}
		return "", err
	}
	return "", nil
}

// baseWritten is damage too, unless a merge of ours did it.
const baseWritten = "its base was written to"

// damage says what has become of the files of one disk of a snapshot; "" when
// they are as recorded.
func (d *Daemon) damage(ctx context.Context, disk vps.SnapshotDisk) (string, error) {
	overlay, err := d.Config.Host.Stat(ctx, disk.Overlay)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "its overlay is missing", nil
	case err != nil:
		return "", err
	case overlay.Inode != disk.OverlayInode:
		return "its overlay was replaced by another file", nil
	}
	base, err := d.Config.Host.Stat(ctx, disk.Base)
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
		return baseWritten, nil
	}
	return "", nil
}
