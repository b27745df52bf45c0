// Package hook answers libvirt's hook: whether a VPS may be started on these images now.
// It runs in a process of its own and reads nothing but the record.
package hook

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/startlock"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hostfile"
	"vpssnapd/hypervisor/pathname"
)

// BeforeStart says why a VPS must not be started on these images now, nil when it
// may, and has a merge let go of them. It is asked by libvirt's hook, in a process of
// its own, so it reads nothing but the record: calling libvirt from its hook would
// deadlock. Without a record nothing is refused.
//
// Codes: operation_in_progress, vps_changed. With every other error the record could
// not be asked, or a merge did not let go.
func BeforeStart(ctx context.Context, stateDir, vpsID, name string, images []string) error {
	path := filepath.Join(stateDir, store.FileName)
	switch err := hostfile.Judge(ctx, path, hostfile.Anyones); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil: // SQLite would wait for the other end of a FIFO
		return err
	}
	db, err := store.OpenReadOnly(path)
	if err != nil {
		return err
	}
	defer db.Close()
	if err := refuseStart(ctx, db, vpsID, name, images); err != nil {
		return err
	}
	if err := makeWay(ctx, db, stateDir, vpsID); err != nil {
		return err
	}
	return refuseUnknown(ctx, db, vpsID, name)
}

// refuseUnknown refuses a VPS whose record was damaged: it may be in the middle of a restore.
func refuseUnknown(ctx context.Context, db *store.Store, vpsID, name string) error {
	damaged, err := db.DamagedState(ctx, vpsID)
	if err == nil && damaged {
		err = fault.RecordDamaged(name)
	}
	return err
}

func refuseStart(ctx context.Context, db *store.Store, vpsID, name string, images []string) error {
	snapshots, err := db.Snapshots(ctx)
	if err != nil {
		return fmt.Errorf("the record cannot be read: %w", err)
	}
	for _, snap := range snapshots {
		if snap.VPS != vpsID {
			continue
		}
		if err := refuseStartOn(snap, name, images); err != nil {
			return err
		}
	}
	return nil
}

// refuseStartOn holds the images against one snapshot of the VPS.
func refuseStartOn(snap vps.Snapshot, name string, images []string) error {
	if snap.State == vps.SnapshotRestoring {
		return vps.Errorf(vps.CodeOperationInProgress, "%s is in the middle of a restore and must not be started on half of its disks", name).
			WithRemedy("wait: the restore starts it (vpssnap operations list)")
	}
	for _, image := range images {
		for _, disk := range snap.Disks {
			switch {
			case switched(snap) && !disk.Pivoted && isBase(image, disk):
				return vps.Errorf(vps.CodeVPSChanged, "%s would write to %s, which is the frozen base of its snapshot; its data is in %s", name, image, disk.Overlay).
					WithRemedy("define that disk with %s (qcow2), or let vpssnapd put the definition right and start it again", disk.Overlay)
			case disk.Pivoted && isOverlay(image, disk):
				return vps.Errorf(vps.CodeVPSChanged, "%s would use %s, a merged overlay with old data; its data is in %s", name, image, disk.Base).
					WithRemedy("define that disk with %s (%s)", disk.Base, disk.BaseFormat)
			}
		}
	}
	return nil
}

// switched reports whether the VPS writes to the snapshot's overlays: from the switch
// on, although the take may not have ended.
func switched(snap vps.Snapshot) bool {
	return snap.State != vps.SnapshotCreating || snap.Consistency != ""
}

// isBase reports whether an image is the frozen base of a disk, by whatever name. Another
// disk under the same name is not, as when the VPS was installed again. Where the base was
// moved, with its directory for instance, its inode and the time of its last write tell.
func isBase(image string, disk vps.SnapshotDisk) bool {
	stat, err := look(image)
	if pathname.Same(image, disk.Base) {
		return err != nil || stat.Ino == disk.BaseInode // when that cannot be told, it is
	}
	return err == nil && stat.Ino == disk.BaseInode && !disk.BaseModified.IsZero() &&
		time.Unix(stat.Mtim.Unix()).Equal(disk.BaseModified)
}

// isOverlay reports the same of an overlay, which is known by the snapshot's id in its name
// where it was moved: the time of its last write is not on record.
func isOverlay(image string, disk vps.SnapshotDisk) bool {
	if pathname.Same(image, disk.Overlay) {
		return true
	}
	stat, err := look(image)
	return err == nil && stat.Ino == disk.OverlayInode && filepath.Base(image) == filepath.Base(disk.Overlay)
}

func look(path string) (unix.Stat_t, error) {
	return pathname.Look(context.Background(), filepath.Dir(path), func() (stat unix.Stat_t, err error) {
		return stat, unix.Stat(path, &stat)
	})
}

// Merging are the kinds of operations that merge. The hook is a process of its own, in
// which no kind is registered; the daemon's test compares this with those that are.
var Merging = []vps.Kind{vps.KindTake, vps.KindDelete}

// makeWay asks a merge to let go of the images of a VPS that is about to start.
func makeWay(ctx context.Context, db *store.Store, stateDir, vpsID string) error {
	op, err := db.ActiveOperation(ctx, vpsID)
	if errors.Is(err, sql.ErrNoRows) || err == nil && !slices.Contains(Merging, op.Kind) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the record cannot be read: %w", err)
	}
	return startlock.Ask(ctx, stateDir, op.VPS)
}
