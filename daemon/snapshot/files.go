package snapshot

import (
	"context"
	"errors"
	"io/fs"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// removeOwn removes a file whose name was recorded for this one purpose before
// it was made; "" and a missing file are no error.
func (s *Snapshots) removeOwn(ctx context.Context, path string) error {
	if path == "" {
		return nil
	}
	file, err := s.host.Stat(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// The inode is read just before, so that a file that is exchanged at this moment
	// is not removed in its place.
	return s.host.Remove(ctx, path, file.Inode)
}

// removeRecorded removes a file only if it is the one whose inode was recorded.
func (s *Snapshots) removeRecorded(ctx context.Context, path string, inode uint64) error {
	if path == "" {
		return nil
	}
	// Somebody may have put another file under the name, such as a copy from a backup.
	return s.host.Remove(ctx, path, inode)
}

// designNVRAM says where the UEFI variables will be kept. The first start makes
// their file; a VPS that was never started has none to keep.
func (s *Snapshots) designNVRAM(ctx context.Context, dom hypervisor.Domain, snap *vps.Snapshot) error {
	if dom.NVRAM == "" {
		return nil
	}
	_, err := s.host.Stat(ctx, dom.NVRAM)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fault.Explain("cannot take a snapshot of "+dom.Name, err)
	}
	snap.NVRAM, snap.NVRAMSaved = dom.NVRAM, image.NVRAMPath(dom.NVRAM, snap.ID, "saved")
	return nil
}

// saveNVRAM copies the UEFI variables, which are part of what a restore brings back.
func (s *Snapshots) saveNVRAM(ctx context.Context, snap vps.Snapshot, notes *takeNotes) error {
	if snap.NVRAM == "" {
		return nil
	}
	file, err := s.host.Stat(ctx, snap.NVRAM)
	if err != nil {
		return err
	}
	// The time is read before the copy: a change during it is then seen as one after it.
	notes.NVRAMAt = file.Modified
	_, err = s.host.Copy(ctx, snap.NVRAM, snap.NVRAMSaved)
	return err
}

// refreshNVRAM copies the UEFI variables again if the guest changed them
// between the copy and the switch of the disks.
func (s *Snapshots) refreshNVRAM(ctx context.Context, snap vps.Snapshot, notes takeNotes) error {
	if snap.NVRAM == "" {
		return nil
	}
	file, err := s.host.Stat(ctx, snap.NVRAM)
	if err != nil || file.Modified.Equal(notes.NVRAMAt) {
		return err
	}
	if err := s.removeOwn(ctx, snap.NVRAMSaved); err != nil {
		return err
	}
	_, err = s.host.Copy(ctx, snap.NVRAM, snap.NVRAMSaved)
	return err
}
