package daemon

import (
	"context"
	"errors"
	"io/fs"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// uses says whether a domain refers to a file anywhere in its definitions.
func uses(dom hypervisor.Domain, path string) bool {
	for _, disks := range [][]hypervisor.Disk{dom.Disks, dom.PersistentDisks} {
		for _, d := range disks {
			if d.Path == path {
				return true
			}
			for _, l := range d.Chain {
				if l.Path == path {
					return true
				}
			}
		}
	}
	return path != "" && dom.NVRAM == path
}

// removeOwn removes a file whose name was recorded for this one purpose before
// it was made; "" and a missing file are no error.
func (d *Daemon) removeOwn(ctx context.Context, path string) error {
	if path == "" {
		return nil
	}
	file, err := d.Config.Host.Stat(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.Config.Host.Remove(ctx, path, file.Inode)
}

// removeRecorded removes a file only if it is the one whose inode was recorded.
func (d *Daemon) removeRecorded(ctx context.Context, path string, inode uint64) error {
	if path == "" {
		return nil
	}
	return d.Config.Host.Remove(ctx, path, inode)
}

// designNVRAM says where the UEFI variables will be kept. The first start makes
// their file; a VPS that was never started has none to keep.
func (d *Daemon) designNVRAM(ctx context.Context, dom hypervisor.Domain, snap *vps.Snapshot) error {
	if dom.NVRAM == "" {
		return nil
	}
	_, err := d.Config.Host.Stat(ctx, dom.NVRAM)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return explainAs("cannot take a snapshot of "+dom.Name, err)
	}
	snap.NVRAM, snap.NVRAMSaved = dom.NVRAM, nvramPath(dom.NVRAM, snap.ID, "saved")
	return nil
}

// saveNVRAM copies the UEFI variables, which are part of what a restore brings back.
func (d *Daemon) saveNVRAM(ctx context.Context, snap vps.Snapshot, notes *takeNotes) error {
	if snap.NVRAM == "" {
		return nil
	}
	file, err := d.Config.Host.Stat(ctx, snap.NVRAM)
	if err != nil {
		return err
	}
	notes.NVRAMAt = file.Modified
	_, err = d.Config.Host.Copy(ctx, snap.NVRAM, snap.NVRAMSaved)
	return err
}

// refreshNVRAM copies the UEFI variables again if the guest changed them
// between the copy and the switch of the disks.
func (d *Daemon) refreshNVRAM(ctx context.Context, snap vps.Snapshot, notes takeNotes) error {
	if snap.NVRAM == "" {
		return nil
	}
	file, err := d.Config.Host.Stat(ctx, snap.NVRAM)
	if err != nil || file.Modified.Equal(notes.NVRAMAt) {
		return err
	}
	if err := d.removeOwn(ctx, snap.NVRAMSaved); err != nil {
		return err
	}
	_, err = d.Config.Host.Copy(ctx, snap.NVRAM, snap.NVRAMSaved)
	return err
}
