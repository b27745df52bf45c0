package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// checkSnapshot compares a snapshot that should be usable with its files and
// with the definitions of its VPS.
func (i *inspection) checkSnapshot(ctx context.Context, s vps.Snapshot) {
	if s.State == vps.SnapshotBroken && !s.Heals {
		i.add(vps.CheckSnapshotBroken, "", "", "the snapshot is broken: "+s.Reason, remedyBroken(i.id))
	}
	for _, disk := range s.Disks {
		i.checkBase(ctx, disk)
		i.checkOverlay(ctx, s, disk)
		i.checkUndo(ctx, disk)
	}
	i.checkNVRAM(ctx, s)
	if s.State == vps.SnapshotBroken && s.Heals && strings.HasPrefix(s.Reason, halfRestored) {
		i.add(vps.CheckSnapshotBroken, "", "", "the snapshot is broken: "+s.Reason, way("it is available again when every disk has its right file: see the disk that has not"))
	}
	if i.present {
		i.checkDefinition(ctx, s)
	}
}

// file looks at a recorded file and adds what is wrong with it. ok says that it
// is there and the one that was recorded.
func (i *inspection) file(ctx context.Context, disk, path string, inode uint64, what string, missing, replaced vps.CheckCode) (hypervisor.File, bool) {
	file, err := i.d.Config.Host.Stat(ctx, path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		i.add(missing, disk, path, fmt.Sprintf("%s is missing: %s (inode %d)", what, path, inode), i.remediesMissing(ctx, disk, path, inode)...)
	case err != nil:
		i.add(vps.CheckUnreachable, disk, path, fmt.Sprintf("%s cannot be looked at: %v", what, err))
	case inode != 0 && file.Inode != inode:
		i.add(replaced, disk, path, fmt.Sprintf("%s was replaced: %s has inode %d, recorded is %d", what, path, file.Inode, inode),
			i.remediesReplaced(ctx, path, inode)...)
	default:
		return file, true
	}
	return file, false
}

func (i *inspection) checkBase(ctx context.Context, disk vps.SnapshotDisk) {
	base, ok := i.file(ctx, disk.Target, disk.Base, disk.BaseInode, "the snapshot's data", vps.CheckMissingBase, vps.CheckReplacedBase)
	if ok && !disk.BaseModified.IsZero() && base.Modified.After(disk.BaseModified) { // see damage
		i.add(vps.CheckBaseWritten, disk.Target, disk.Base, fmt.Sprintf("the snapshot's data was changed at %s by somebody else; it was last written at %s when the snapshot was taken",
			base.Modified.UTC().Format(timeFormat), disk.BaseModified.UTC().Format(timeFormat)), i.remedyBaseWritten(disk))
	}
}

const timeFormat = "2006-01-02T15:04:05.000Z"

func (i *inspection) checkOverlay(ctx context.Context, s vps.Snapshot, disk vps.SnapshotDisk) {
	file, ok := i.file(ctx, disk.Target, disk.Overlay, disk.OverlayInode, "the disk's present data", vps.CheckMissingOverlay, vps.CheckReplacedOverlay)
	if !ok {
		return
	}
	if file.Mode&0o077 != 0 || loginUser(file.UID) {
		i.add(vps.CheckWrongModeOrOwner, disk.Target, disk.Overlay, fmt.Sprintf("the overlay %s has mode %04o and belongs to uid %d: others may read the VPS's data",
			disk.Overlay, file.Mode, file.UID), remedyMode(disk, loginUser(file.UID)))
	}
	img, err := i.d.Config.Host.Inspect(ctx, disk.Overlay, "qcow2")
	switch {
	case err != nil:
		i.add(vps.CheckUnreachable, disk.Target, disk.Overlay, "the overlay's header cannot be read: "+err.Error())
	case img.Backing != disk.Base || img.BackingFormat != disk.BaseFormat:
		i.add(vps.CheckOverlayHeaderDiffers, disk.Target, disk.Overlay, fmt.Sprintf("the overlay lies on %s (%s) by its header, and on %s (%s) by the record",
			orNone(img.Backing), orNone(img.BackingFormat), disk.Base, disk.BaseFormat), remedyHeader(i.id, disk))
	case img.VirtualSize != disk.SizeBytes:
		i.add(vps.CheckDiskResized, disk.Target, disk.Overlay, fmt.Sprintf("the disk has %d bytes, at the snapshot it had %d; a restore brings that size back",
			img.VirtualSize, disk.SizeBytes), remedyRenew(i.id))
	}
}

// loginUser says that a uid is a person's by the convention of Debian and Red Hat.
func loginUser(uid uint32) bool { return uid >= 1000 && uid < 60000 }

func (i *inspection) checkUndo(ctx context.Context, disk vps.SnapshotDisk) {
	if disk.Undo != "" {
		i.file(ctx, disk.Target, disk.Undo, disk.UndoInode, "the disk from before the last restore", vps.CheckMissingUndo, vps.CheckMissingUndo)
	}
}

func (i *inspection) checkNVRAM(ctx context.Context, s vps.Snapshot) {
	if s.NVRAMSaved != "" {
		i.file(ctx, "", s.NVRAMSaved, 0, "the snapshot's copy of the UEFI variables", vps.CheckMissingNVRAM, vps.CheckMissingNVRAM)
	}
}

// checkDefinition compares what the VPS uses now, and will use at its next boot,
// with what the snapshot covers.
func (i *inspection) checkDefinition(ctx context.Context, s vps.Snapshot) {
	covered := map[string]bool{}
	for _, disk := range s.Disks {
		covered[disk.Target] = true
		i.checkDisk(ctx, s, disk)
	}
	for _, disk := range slices.Concat(i.dom.Disks, i.dom.PersistentDisks) {
		if c := cover(disk); !covered[disk.Target] && (c.Included || c.Refused) {
			covered[disk.Target] = true
			i.add(vps.CheckDiskSetChanged, disk.Target, disk.Path, "the disk was added after the snapshot, which does not cover it; a restore leaves it as it is", remedyRenew(i.id))
		}
	}
	if !i.dom.Persistent {
		i.add(vps.CheckVPSGone, "", "", "the VPS runs, but its definition was removed: it will be gone when it goes off", remedyDefineAgain(i.id))
		return
	}
	if i.dom.ForeignSnapshots+i.dom.Checkpoints > 0 && !i.has(vps.CheckForeignSnapshot) {
		i.add(vps.CheckForeignSnapshot, "", "", fmt.Sprintf("libvirt keeps %d snapshots and %d checkpoints of somebody else for the VPS",
			i.dom.ForeignSnapshots, i.dom.Checkpoints), i.remedySnapshotObjects())
	}
	if why := metadataDiffers(i.dom.Metadata, s); why != "" && s.State == vps.SnapshotAvailable {
		i.add(vps.CheckMetadataMissing, "", "", "the copy of the record in the VPS's definition "+why, remedyRepair())
		i.repairable()
	}
}

func (i *inspection) has(code vps.CheckCode) bool {
	for _, f := range i.findings {
		if f.Code == code {
			return true
		}
	}
	return false
}

// checkDisk compares one covered disk in the live and in the persistent definition.
func (i *inspection) checkDisk(ctx context.Context, s vps.Snapshot, disk vps.SnapshotDisk) {
	active := i.dom.State != hypervisor.Off
	live, inLive := diskOf(i.dom.Disks, disk.Target)
	next, inNext := diskOf(i.dom.PersistentDisks, disk.Target)
	unplugged, undefined := active && !inLive, i.dom.Persistent && !inNext
	switch {
	case unplugged || undefined:
		where := "definition of the next boot"
		if unplugged {
			where = "running VPS"
		}
		i.add(vps.CheckDiskSetChanged, disk.Target, disk.Overlay, "the disk was removed from the "+where, remedyAttach(i.id, disk, unplugged, undefined))
		return
	case active && live.Job:
		i.add(vps.CheckForeignJob, disk.Target, live.Path, "a block job of somebody else runs on the disk; if it writes into "+disk.Base+", the snapshot is lost", remedyJob(i.id, disk))
	}
	var uses []hypervisor.Disk
	if active {
		uses = append(uses, live)
	}
	if i.dom.Persistent && (!active || next.Path != live.Path) {
		uses = append(uses, next)
	}
	for n, use := range uses {
		i.checkSource(ctx, s, disk, use, active && n == 0)
	}
}

// checkSource says what it means that a disk does not use its overlay.
func (i *inspection) checkSource(ctx context.Context, s vps.Snapshot, disk vps.SnapshotDisk, use hypervisor.Disk, live bool) {
	when := "at its next boot the disk will use"
	if live {
		when = "the disk uses"
	}
	switch {
	case use.Path == disk.Overlay:
	case use.Path == disk.Base:
		safe, err := i.d.overlayIsAuthority(ctx, i.dom, disk)
		detail := when + " the snapshot's data itself: " + disk.Base
		if !live && err == nil && safe {
			i.add(vps.CheckDefinitionNamesBase, disk.Target, disk.Base, detail+"; a boot would ruin the snapshot and the VPS", remedyRepair())
			i.repairable()
			return
		}
		i.add(vps.CheckDefinitionNamesBase, disk.Target, disk.Base, detail+"; base and overlay may both hold new data", i.remediesOnBase(s, disk, live)...)
	case i.liesOn(ctx, use, disk.Overlay):
		i.add(vps.CheckForeignSnapshot, disk.Target, use.Path, when+" another overlay on top of ours: "+use.Path,
			i.remedyForeignOverlay(disk, use, live))
	default:
		i.add(vps.CheckDiskMoved, disk.Target, use.Path, fmt.Sprintf("%s another image than its overlay: %s instead of %s", when, orNone(use.Path), disk.Overlay),
			i.remediesMoved(s)...)
	}
}

// liesOn says whether an image lies on another, by the definition or by the headers.
func (i *inspection) liesOn(ctx context.Context, use hypervisor.Disk, below string) bool {
	for _, l := range use.Chain {
		if l.Path == below {
			return true
		}
	}
	if use.ChainKnown {
		return false
	}
	chain, _ := i.d.headerChain(ctx, use.Path, use.Format)
	return slices.Contains(chain, below)
}

// headerChain follows the backing files by the headers, nearest first. complete
// is false when the end was not reached.
func (d *Daemon) headerChain(ctx context.Context, path, format string) (below []string, complete bool) {
	for range maxChain {
		img, err := d.Config.Host.Inspect(ctx, path, format)
		if err != nil {
			return below, false
		}
		next := img.Backing
		if next == "" {
			return below, true
		}
		if strings.Contains(strings.SplitN(next, "/", 2)[0], ":") {
			return below, false
		}
		if !filepath.IsAbs(next) {
			next = filepath.Join(filepath.Dir(path), next)
		}
		below = append(below, next)
		path, format = next, img.BackingFormat
	}
	return below, false
}

// filesOf are the files that a snapshot consists of, apart from the bases, which
// are the VPS's own.
func filesOf(s vps.Snapshot) []string {
	var paths []string
	for _, disk := range s.Disks {
		paths = append(paths, disk.Overlay)
		if disk.Undo != "" {
			paths = append(paths, disk.Undo)
		}
	}
	for _, path := range []string{s.NVRAMSaved, s.NVRAMUndo} {
		if path != "" {
			paths = append(paths, path)
		}
	}
	return paths
}

// checkUnfinished finds snapshots that nothing works on. One that came after the record
// was read is none of that record; checkVPS then compares anew.
func (i *inspection) checkUnfinished(s vps.Snapshot) {
	switch {
	case s.State == vps.SnapshotDeleting && i.rec.snapshot != nil && s.ID == i.rec.snapshot.ID:
		detail := "the snapshot is half deleted and nothing works on it; it can never be restored again"
		if s.Reason != "" {
			detail += " (" + s.Reason + ")"
		}
		i.add(vps.CheckUnfinished, "", "", detail, remedyDelete(i.id))
	case s.State == vps.SnapshotDeleting:
		i.add(vps.CheckUnfinished, "", "", "the snapshot "+s.ID+" was replaced, but its overlay still lies below the present one", remedyOldLayer(i.id))
	default:
		i.add(vps.CheckUnfinished, "", "", fmt.Sprintf("the snapshot is recorded as %s and nothing works on it", s.State), remedyLog())
	}
	i.findings[len(i.findings)-1].Snapshot = s.ID
}

// gone says that libvirt answered, and does not know the VPS.
func (i *inspection) gone() bool { return i.answered && !i.present }

// namesake is the id of another VPS that bears the name now, "" for none.
func (i *inspection) namesake() string {
	if other, ok := i.d.inventory.find(i.name); ok && other.ID != i.id {
		return other.ID
	}
	return ""
}

// checkGone finds a record whose VPS libvirt does not know.
func (i *inspection) checkGone(snapshots []vps.Snapshot) {
	if i.rec.option == nil && len(snapshots) == 0 {
		return
	}
	what := "its option"
	if len(snapshots) > 0 {
		what = "its snapshot"
	}
	detail := fmt.Sprintf("libvirt does not know the VPS %s (%s), but %s is recorded", i.name, i.id, what)
	if other := i.namesake(); other != "" {
		i.add(vps.CheckVPSRedefined, "", "", detail+"; its name now belongs to another VPS, "+other, i.remediesGone(snapshots, other)...)
	} else {
		i.add(vps.CheckVPSGone, "", "", detail, i.remediesGone(snapshots, "")...)
	}
}
