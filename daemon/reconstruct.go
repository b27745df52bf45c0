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

// reconstruction is what a VPS's definition and files tell of a snapshot that no
// record knows.
type reconstruction struct {
	// exists: there is one, whole or not. Otherwise at most leftovers.
	exists bool
	// snap is the record to be made of it. It is available only where the files
	// prove it.
	snap vps.Snapshot
	// why says why it is not available, or what the leftovers are.
	why string
	// hopeless: no record can be made of it.
	hopeless bool
	// leftover: there is none, and the metadata tells nothing that is not known otherwise.
	leftover bool
}

// speaksOfSnapshot says that a definition has our metadata or names a file of ours.
func speaksOfSnapshot(dom hypervisor.Domain) bool {
	return dom.Metadata != "" || len(ourImages(dom)) > 0
}

// ourImages are the images of a VPS that are named as ours, with the snapshot's id.
func ourImages(dom hypervisor.Domain) map[string]string {
	found := map[string]string{}
	for _, disk := range slices.Concat(dom.Disks, dom.PersistentDisks) {
		if m := ourFile.FindStringSubmatch(filepath.Base(disk.Path)); m != nil {
			found[disk.Path] = m[1]
		}
	}
	return found
}

// reconstruct reads what is there. It changes nothing.
func (d *Daemon) reconstruct(ctx context.Context, dom hypervisor.Domain) reconstruction {
	if !dom.Persistent {
		return reconstruction{exists: true, hopeless: true, why: "the VPS is not persistent"}
	}
	m, err := parseMetadata(dom.Metadata)
	if err == nil && m.snap.VPS != dom.ID {
		err = fmt.Errorf("it is of another VPS, %s, whose definition was copied", m.snap.VPS)
	}
	images := ourImages(dom)
	mine := err == nil && len(images) == 0
	for _, id := range images {
		mine = mine || err == nil && id == m.snap.ID
	}
	switch {
	case mine:
		return d.fromMetadata(ctx, dom, m)
	case len(images) == 0:
		_, unknown := d.store.Snapshot(ctx, m.snap.ID)
		return reconstruction{leftover: m.snap.ID != "" && unknown == nil,
			why: "its metadata cannot be taken up (" + err.Error() + ") and it uses no file of ours"}
	}
	why := "its definition has no metadata of it"
	if dom.Metadata != "" {
		why = "the metadata in its definition is of another snapshot or cannot be read"
	}
	return d.fromNames(ctx, dom, images, why)
}

// fromNames makes a record from file names and headers alone. Whether the base
// was written since cannot be told, so it is never available.
func (d *Daemon) fromNames(ctx context.Context, dom hypervisor.Domain, images map[string]string, why string) reconstruction {
	r := reconstruction{exists: true, why: why + ", so whether its data is still that of its moment cannot be proven"}
	now := d.now()
	r.snap = vps.Snapshot{VPS: dom.ID, State: vps.SnapshotBroken, Reason: r.why, Consistency: vps.ConsistencyCrash, CreatedAt: now, UpdatedAt: now}
	for _, use := range dom.PersistentDisks {
		id, ok := images[use.Path]
		if !ok {
			continue
		}
		img, err1 := d.Config.Host.Inspect(ctx, use.Path, "qcow2")
		overlay, err2 := d.Config.Host.Stat(ctx, use.Path)
		base, err3 := d.Config.Host.Stat(ctx, img.Backing)
		if err := errors.Join(err1, err2, err3); err != nil {
			return reconstruction{exists: true, hopeless: true, why: fmt.Sprintf("the files of disk %s cannot be read: %v", use.Target, err)}
		}
		if r.snap.ID != "" && r.snap.ID != id || use.Path != overlayPath(img.Backing, id, use.Target) {
			return reconstruction{exists: true, hopeless: true, why: "disk " + use.Target + " uses " + use.Path + ", which does not go together with the other disks or with its base"}
		}
		if base.Modified.Before(r.snap.CreatedAt) {
			r.snap.CreatedAt = base.Modified.UTC()
		}
		r.snap.ID, r.snap.SizeBytes = id, r.snap.SizeBytes+img.VirtualSize
		r.snap.Disks = append(r.snap.Disks, vps.SnapshotDisk{Target: use.Target, Base: img.Backing, BaseFormat: img.BackingFormat, BaseInode: base.Inode,
			SizeBytes: img.VirtualSize, Overlay: use.Path, OverlayInode: overlay.Inode})
	}
	if len(r.snap.Disks) == 0 {
		return reconstruction{exists: true, hopeless: true, why: "the running VPS uses a file of ours, and its definition does not"}
	}
	return r
}

// fromMetadata makes a record from the copy in the definition, as far as the
// files bear it out.
func (d *Daemon) fromMetadata(ctx context.Context, dom hypervisor.Domain, m travelled) reconstruction {
	r := reconstruction{exists: true, snap: m.snap}
	r.snap.VPS, r.snap.UpdatedAt, r.snap.Disks = dom.ID, d.now(), slices.Clone(m.snap.Disks)
	state := r.snap.State
	if state != vps.SnapshotAvailable || !d.undoIsWhole(ctx, r.snap) {
		forgetUndo(&r.snap)
	}
	if state == vps.SnapshotDeleting {
		return d.halfDeleted(ctx, dom, r)
	}
	lacks, doubts := d.compareFiles(ctx, dom, &r.snap)
	switch {
	case len(lacks) == len(m.snap.Disks) && len(ourImages(dom)) == 0 && d.noneLeft(ctx, m.snap):
		return reconstruction{leftover: true, why: "the snapshot " + m.snap.ID + " that its metadata speaks of is gone"}
	case len(doubts) > 0:
		r.broken(false, strings.Join(doubts, "; "))
	case len(lacks) > 0:
		r.broken(true, strings.Join(lacks, "; "))
	case state == vps.SnapshotRestoring:
		d.comeSoFar(ctx, &r, m)
	default:
		r.snap.State = vps.SnapshotAvailable
	}
	return r
}

// undoIsWhole says that all disks from before the last restore are there and lie
// on their bases, so that it can still be undone.
func (d *Daemon) undoIsWhole(ctx context.Context, s vps.Snapshot) bool {
	if s.UndoUntil == nil {
		return false
	}
	for _, disk := range s.Disks {
		file, err := d.Config.Host.Stat(ctx, disk.Undo)
		if disk.Undo == "" || err != nil || file.Inode != disk.UndoInode {
			return false
		}
		img, err := d.Config.Host.Inspect(ctx, disk.Undo, "qcow2")
		if err != nil || img.Backing != disk.Base || img.BackingFormat != disk.BaseFormat {
			return false
		}
	}
	if s.NVRAMUndo != "" {
		_, err := d.Config.Host.Stat(ctx, s.NVRAMUndo)
		return err == nil
	}
	return true
}

// forgetUndo leaves the files from before a restore to whoever finds them.
func forgetUndo(s *vps.Snapshot) {
	s.UndoUntil, s.NVRAMUndo = nil, ""
	for n := range s.Disks {
		s.Disks[n].Undo, s.Disks[n].UndoInode = "", 0
	}
}

func (r *reconstruction) broken(heals bool, why string) {
	r.snap.State, r.snap.Heals, r.snap.Reason, r.why = vps.SnapshotBroken, heals, why, why
}

// noneLeft says that no overlay of a snapshot exists, where its bases do: an empty
// directory may be one on which nothing is mounted.
func (d *Daemon) noneLeft(ctx context.Context, s vps.Snapshot) bool {
	for _, disk := range s.Disks {
		_, base := d.Config.Host.Stat(ctx, disk.Base)
		_, overlay := d.Config.Host.Stat(ctx, disk.Overlay)
		if base != nil || !errors.Is(overlay, fs.ErrNotExist) {
			return false
		}
	}
	return true
}

// compareFiles takes the inodes of the files into the record and says what is
// missing, and what puts in doubt that the data is still that of the snapshot.
func (d *Daemon) compareFiles(ctx context.Context, dom hypervisor.Domain, s *vps.Snapshot) (lacks, doubts []string) {
	for n := range s.Disks {
		lack, doubt := d.compareDisk(ctx, dom, &s.Disks[n])
		if lack != "" {
			lacks = append(lacks, "disk "+s.Disks[n].Target+": "+lack)
		}
		if doubt != "" {
			doubts = append(doubts, "disk "+s.Disks[n].Target+": "+doubt)
		}
	}
	if s.NVRAMSaved != "" {
		if _, err := d.Config.Host.Stat(ctx, s.NVRAMSaved); err != nil {
			lacks = append(lacks, "its copy of the UEFI variables is missing")
		}
	}
	return lacks, doubts
}

// compareDisk does so for one disk. A copied file system gives other inodes; that
// the base was not written since is told by its time.
func (d *Daemon) compareDisk(ctx context.Context, dom hypervisor.Domain, disk *vps.SnapshotDisk) (lack, doubt string) {
	base, err := d.Config.Host.Stat(ctx, disk.Base)
	if err != nil {
		return "its base is missing", ""
	}
	overlay, err := d.Config.Host.Stat(ctx, disk.Overlay)
	if err != nil {
		return "its overlay is missing", ""
	}
	same := base.Inode == disk.BaseInode
	disk.BaseInode, disk.OverlayInode = base.Inode, overlay.Inode
	// Earlier is no sign of a write (see damage), unless it is another file.
	written := base.Modified.After(disk.BaseModified) || base.Modified.Before(disk.BaseModified) && !same
	if disk.BaseModified.IsZero() || written {
		return "", "its base may have been written to since the snapshot"
	}
	img, err := d.Config.Host.Inspect(ctx, disk.Overlay, "qcow2")
	if err != nil || img.Backing != disk.Base || img.BackingFormat != disk.BaseFormat {
		return "", "its overlay does not lie on its base"
	}
	if live, ok := diskOf(dom.Disks, disk.Target); ok && live.Job {
		return "", "a block job runs on it"
	}
	return "", ""
}

// halfRestored begins the reason of a snapshot whose VPS may have half of its disks.
const halfRestored = "a restore was interrupted"

// comeSoFar looks how far a restore came. None or all of its exchanges give a
// whole VPS; in between the record demands the files that would complete it, and
// heals when they are in place.
func (d *Daemon) comeSoFar(ctx context.Context, r *reconstruction, m travelled) {
	var done, todo, strange []string
	for _, disk := range r.snap.Disks {
		was, _ := diskNamed(m.snap, disk.Target)
		switch spare := m.spares[disk.Target]; {
		case spare != 0 && disk.OverlayInode == spare:
			done = append(done, disk.Target)
		case disk.OverlayInode == was.OverlayInode:
			todo = append(todo, disk.Target)
		default:
			strange = append(strange, disk.Target)
		}
	}
	variables := m.nvramSpare == 0
	if file, err := d.Config.Host.Stat(ctx, r.snap.NVRAM); !variables && err == nil {
		variables = file.Inode == m.nvramSpare
	}
	switch {
	case len(strange) > 0:
		r.broken(false, halfRestored+", and disk "+strings.Join(strange, ", ")+" has a file that belongs to neither side of it")
	case len(done) == 0, len(todo) == 0 && variables:
		r.snap.State = vps.SnapshotAvailable
	case len(todo) == 0:
		r.broken(false, halfRestored+" after the disks and before the UEFI variables, which are still from before it")
	default:
		for n := range r.snap.Disks {
			r.snap.Disks[n].OverlayInode = m.spares[r.snap.Disks[n].Target]
		}
		r.broken(true, fmt.Sprintf(halfRestored+": disk %s is restored, disk %s is not yet; do not start the VPS before it is", strings.Join(done, ", "), strings.Join(todo, ", ")))
	}
}

func diskNamed(s vps.Snapshot, target string) (vps.SnapshotDisk, bool) {
	for _, disk := range s.Disks {
		if disk.Target == target {
			return disk, true
		}
	}
	return vps.SnapshotDisk{}, false
}

// halfDeleted makes a record with which the deletion can be finished. What a
// running VPS writes to is the authority; of one that is off the definition's
// choice holds, because it stood still across the pivot.
func (d *Daemon) halfDeleted(ctx context.Context, dom hypervisor.Domain, r reconstruction) reconstruction {
	disks, merged := dom.PersistentDisks, 0
	if dom.State != hypervisor.Off {
		disks = dom.Disks
	}
	for n := range r.snap.Disks {
		disk := &r.snap.Disks[n]
		use, _ := diskOf(disks, disk.Target)
		base, err := d.Config.Host.Stat(ctx, disk.Base)
		overlay, err2 := d.Config.Host.Stat(ctx, disk.Overlay)
		switch {
		case err != nil:
			return reconstruction{exists: true, hopeless: true, why: fmt.Sprintf("a deletion was interrupted, and of disk %s: %v", disk.Target, err)}
		case use.Path == disk.Base:
			disk.Pivoted = true
			merged++
		case use.Path != disk.Overlay || err2 != nil:
			return reconstruction{exists: true, hopeless: true,
				why: fmt.Sprintf("a deletion was interrupted, and disk %s uses %s (%v)", disk.Target, orNone(use.Path), err2)}
		}
		disk.BaseInode = base.Inode
		if err2 == nil {
			disk.OverlayInode = overlay.Inode
		}
	}
	if merged == len(r.snap.Disks) {
		return reconstruction{leftover: d.noneLeft(ctx, r.snap), why: "the snapshot " + r.snap.ID + " is deleted, all but its leftovers"}
	}
	r.why = "its deletion was interrupted"
	r.snap.Reason = r.why
	if dom.State == hypervisor.Paused {
		r.why += "; the VPS is paused, perhaps by the deletion: finish that first, then virsh resume " + dom.ID
	}
	return r
}

// checkUnrecorded finds a VPS that has, or speaks of, a snapshot without a record.
func (i *inspection) checkUnrecorded(ctx context.Context) {
	if !speaksOfSnapshot(i.dom) {
		return
	}
	i.read(ctx) // a deletion may have ended since the list was made
	if !i.present || !speaksOfSnapshot(i.dom) {
		return
	}
	if i.checkOutdated(ctx) {
		return
	}
	r := i.d.reconstruct(ctx, i.dom)
	if known, err := i.d.store.Snapshot(ctx, r.snap.ID); err == nil && wasLetGo(known) && i.dom.State == hypervisor.Off {
		return // what a migration has left behind
	}
	detail := "the VPS has the snapshot " + r.snap.ID + ", of which there is no record"
	switch {
	case !r.exists:
		detail = "the VPS's definition speaks of a snapshot that is not there: " + r.why
	case r.hopeless:
		detail = "the VPS has, or had, a snapshot of which there is no record, and none can be made: " + r.why
	case r.snap.State != vps.SnapshotAvailable:
		detail += "; recorded anew it is " + string(r.snap.State) + ", because " + r.why
	}
	switch {
	case r.hopeless:
		i.add(vps.CheckUnrecordedSnapshot, "", "", detail, i.remedyUnrecorded())
		return
	case !r.exists && !r.leftover:
		i.add(vps.CheckUnrecordedSnapshot, "", "", detail, i.remedyMetadata())
		return
	}
	i.add(vps.CheckUnrecordedSnapshot, "", "", detail, remedyRepair())
	i.findings[len(i.findings)-1].Snapshot = r.snap.ID
	i.repairable()
}

// checkOutdated finds a definition from the time of a snapshot that is gone by the
// record: it names files that were merged away, with old data in them.
func (i *inspection) checkOutdated(ctx context.Context) bool {
	for path, id := range ourImages(i.dom) {
		gone, err := i.d.store.Snapshot(ctx, id)
		if err != nil || !mergedAway(gone) {
			continue
		}
		for _, disk := range gone.Disks {
			if disk.Overlay == path {
				i.add(vps.CheckStaleOverlay, disk.Target, path, "the disk's definition names a file of a snapshot that is gone: "+path+"; the present data is in "+disk.Base,
					way("shut the VPS down, keep both files, and let its definition name "+disk.Base+" ("+disk.BaseFormat+") again",
						command("virsh", "shutdown", i.id), command("virsh", "edit", i.id)))
				return true
			}
		}
	}
	return false
}

// mergedAway says that a snapshot is gone because it was deleted, so that its
// overlays are stale; and not given up, when they may be all that is left of a VPS.
func mergedAway(s vps.Snapshot) bool {
	for _, disk := range s.Disks {
		if !disk.Pivoted {
			return false
		}
	}
	return s.State == vps.SnapshotGone && len(s.Disks) > 0
}

// remedyMetadata takes metadata away of which nobody can say what it is worth.
func (i *inspection) remedyMetadata() vps.Remedy {
	return way("if nobody needs what it says, take it away",
		command("virsh", "metadata", i.id, hypervisor.MetadataURI, "--config"),
		command("virsh", "metadata", i.id, hypervisor.MetadataURI, "--config", "--remove"))
}

// remedyUnrecorded merges by hand what no record can be made of.
func (i *inspection) remedyUnrecorded() vps.Remedy {
	w := way("keep all files; look at what each disk uses and what lies below it, and merge it into its base by hand (virsh blockcommit, qemu-img commit)",
		command("virsh", "domblklist", "--details", i.id))
	for path := range ourImages(i.dom) {
		w.Commands = append(w.Commands, command("qemu-img", "info", "-U", "-f", "qcow2", path))
	}
	return w
}
