package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"vpssnapd/daemon/adoption"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/metadata"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
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
	// A restore that was cut off with the database lost heals by itself, once each disk
	// has its right file; see adoption.
	if s.State == vps.SnapshotBroken && s.Heals && strings.HasPrefix(s.Reason, adoption.HalfRestored) {
		i.add(
			vps.CheckSnapshotBroken, "", "", "the snapshot is broken: "+s.Reason,
			remedy(vps.RemedyRead, "it is available again when every disk has its right file: see the disk that has not"),
		)
	}
	if i.present {
		i.offerVouch(ctx, s)
		i.checkDefinition(ctx, s)
	}
}

// vouchable are the findings that may come of a file that was copied or touched, and holds
// what it held (FAULTS.md row 39).
var vouchable = []vps.CheckCode{
	vps.CheckReplacedBase, vps.CheckBaseWritten, vps.CheckReplacedOverlay, vps.CheckMissingUndo, vps.CheckSnapshotBroken,
}

// offerVouch adds the way out of a doubt where an operator's word would end it.
func (i *inspection) offerVouch(ctx context.Context, s vps.Snapshot) {
	doubted := func(f vps.Finding) bool { return slices.Contains(vouchable, f.Code) }
	if i.rec.Snapshot == nil || i.rec.Snapshot.ID != s.ID || !slices.ContainsFunc(i.findings, doubted) ||
		!i.d.vouchers.May(ctx, i.dom, s) {
		return
	}
	for n := range i.findings {
		if doubted(i.findings[n]) {
			i.findings[n].Remedies = append(i.findings[n].Remedies, remedyVouch(i.id))
		}
	}
}

// file looks at a recorded file and adds what is wrong with it. ok reports that it
// is there and the one that was recorded.
func (i *inspection) file(
	ctx context.Context, disk vps.SnapshotDisk, path string, inode uint64, what string, missing, replaced vps.CheckCode,
) (hypervisor.File, bool) {
	// With inode 0 none is recorded, and only the presence is checked.
	file, err := i.d.host.Stat(ctx, path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		i.add(
			missing,
			disk.Target,
			path,
			fmt.Sprintf("%s is missing: %s (inode %d)", what, path, inode),
			i.remediesMissing(ctx, disk, path, inode)...)
	case err != nil:
		i.add(vps.CheckUnreachable, disk.Target, path, fmt.Sprintf("%s cannot be looked at: %v", what, err))
	case inode != 0 && file.Inode != inode:
		i.add(
			replaced,
			disk.Target,
			path,
			fmt.Sprintf("%s was replaced: %s has inode %d, recorded is %d", what, path, file.Inode, inode),
			i.remediesReplaced(ctx, disk, path, inode)...)
	default:
		return file, true
	}
	return file, false
}

// checkBase looks for the file that is the snapshot, by device and inode, and for a write
// to it after the moment of the snapshot: one byte in a base spoils the overlay above it.
func (i *inspection) checkBase(ctx context.Context, disk vps.SnapshotDisk) {
	base, ok := i.file(
		ctx, disk, disk.Base, disk.BaseInode, "the snapshot's data", vps.CheckMissingBase, vps.CheckReplacedBase,
	)
	// An earlier time proves nothing: a power cut may put it back.
	if ok && !disk.BaseModified.IsZero() && base.Modified.After(disk.BaseModified) { // see damage
		i.add(
			vps.CheckBaseWritten,
			disk.Target,
			disk.Base,
			fmt.Sprintf(
				"the snapshot's data was changed at %s by somebody else; it was last written at %s when the snapshot "+
					"was taken",
				base.Modified.UTC().Format(timeFormat), disk.BaseModified.UTC().Format(timeFormat),
			),
			i.remedyBaseWritten(ctx, disk),
		)
	}
}

// timeFormat has milliseconds: a write just after the take differs from it by less than a
// second.
const timeFormat = "2006-01-02T15:04:05.000Z"

// checkOverlay looks at the file that holds what the guest wrote since the snapshot: that
// it is the one we made, who can use it, and that its header names the base.
func (i *inspection) checkOverlay(ctx context.Context, s vps.Snapshot, disk vps.SnapshotDisk) {
	file, ok := i.file(
		ctx, disk, disk.Overlay, disk.OverlayInode, "the disk's present data", vps.CheckMissingOverlay,
		vps.CheckReplacedOverlay,
	)
	if !ok {
		return
	}
	i.checkRights(ctx, disk, disk.Overlay, "the overlay", file)
	if cut, err := i.d.host.CutShort(ctx, disk.Overlay); err == nil && cut {
		i.add(
			vps.CheckReplacedOverlay, disk.Target, disk.Overlay,
			fmt.Sprintf("the overlay was cut short (truncated) to %d bytes: %s", file.Size, disk.Overlay),
			remedy(vps.RemedyRead, "a part of what the VPS has written is lost: keep the VPS off, keep both files, and write the content "+
				"of the overlay back into that same file from your backup"),
		)
		return
	}
	img, err := i.d.host.Inspect(ctx, disk.Overlay, "qcow2")
	switch {
	case err != nil:
		i.add(vps.CheckUnreachable, disk.Target, disk.Overlay, "the overlay's header cannot be read: "+err.Error())
	// What the header says decides at the next offline start: there libvirt drops the
	// definition's backing store and trusts the header.
	case !img.LiesOn(disk.Base, disk.BaseFormat):
		i.add(
			vps.CheckOverlayHeaderDiffers,
			disk.Target,
			disk.Overlay,
			fmt.Sprintf("the overlay lies on %s (%s) by its header, and on %s (%s) by the record",
				image.OrNone(img.Backing), image.OrNone(img.BackingFormat), disk.Base, disk.BaseFormat),
			i.remedyHeader(ctx, disk),
		)
	case img.VirtualSize != disk.SizeBytes:
		i.add(
			vps.CheckDiskResized,
			disk.Target,
			disk.Overlay,
			fmt.Sprintf("the disk has %d bytes, at the snapshot it had %d; a restore brings that size back",
				img.VirtualSize, disk.SizeBytes),
			remedyRenew(i.id),
		)
	}
}

// checkUndo looks for the disk that an undone restore would bring back.
func (i *inspection) checkUndo(ctx context.Context, disk vps.SnapshotDisk) {
	if disk.Undo == "" {
		return
	}
	const what = "the disk from before the last restore"
	file, ok := i.file(ctx, disk, disk.Undo, disk.UndoInode, what, vps.CheckMissingUndo, vps.CheckMissingUndo)
	if ok {
		i.checkRights(ctx, disk, disk.Undo, what, file)
	}
}

// checkNVRAM looks for the UEFI variables as they were; without them a restored guest may
// find no boot entry.
func (i *inspection) checkNVRAM(ctx context.Context, s vps.Snapshot) {
	// Its inode is not recorded: a copy from a backup serves as well.
	if s.NVRAMSaved != "" {
		i.file(
			ctx, vps.SnapshotDisk{}, s.NVRAMSaved, 0, "the snapshot's copy of the UEFI variables", vps.CheckMissingNVRAM,
			vps.CheckMissingNVRAM,
		)
	}
}

// checkDefinition compares what the VPS uses now, and will use at its next boot,
// with what the snapshot covers.
func (i *inspection) checkDefinition(ctx context.Context, s vps.Snapshot) {
	covered := map[string]bool{}
	for _, disk := range s.Disks {
		for _, use := range []func(hypervisor.Domain, vps.SnapshotDisk) (hypervisor.Disk, bool){image.Live, image.Next} {
			if known, ok := use(i.dom, disk); ok {
				covered[known.Target] = true
			}
		}
		i.checkDisk(ctx, s, disk)
	}
	for _, disk := range slices.Concat(i.dom.Disks, i.dom.PersistentDisks) {
		if c := image.Cover(disk); !covered[disk.Target] && (c.Included || c.Refused) {
			covered[disk.Target] = true
			i.add(
				vps.CheckDiskSetChanged, disk.Target, disk.Path,
				"the disk was added after the snapshot, which does not cover it; a restore leaves it as it is",
				remedyRenew(i.id),
			)
		}
	}
	// Only a definition can name the merged disks afterwards, so a deletion is refused until
	// there is one again.
	if !i.dom.Persistent {
		i.add(
			vps.CheckVPSGone, "", "", "the VPS runs, but its definition was removed: it will be gone when it goes off",
			remedyDefineAgain(i.id),
		)
		return
	}
	// They block migration and undefine, and a restore would make checkpoints void.
	if i.dom.ForeignSnapshots+i.dom.Checkpoints > 0 && !i.has(vps.CheckForeignSnapshot) {
		i.add(
			vps.CheckForeignSnapshot,
			"",
			"",
			fmt.Sprintf("libvirt keeps %d snapshots and %d checkpoints of somebody else for the VPS",
				i.dom.ForeignSnapshots, i.dom.Checkpoints),
			i.remedySnapshotObjects(),
		)
	}
	// The copy travels with a migration and outlives the database, so it must be there
	// and be right.
	if why := metadata.Differs(i.dom.Metadata, s); why != "" && s.State == vps.SnapshotAvailable {
		i.add(vps.CheckMetadataMissing, "", "", "the copy of the record in the VPS's definition "+why, remedyRepair())
		i.repairable()
	}
}

// has reports whether the inspection came across code: some checks make no sense after others.
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
	live, inLive := image.Live(i.dom, disk)
	next, inNext := image.Next(i.dom, disk)
	unplugged, undefined := active && !inLive, i.dom.Persistent && !inNext
	switch {
	case unplugged || undefined:
		where := "definition of the next boot"
		if unplugged {
			where = "running VPS"
		}
		i.add(
			vps.CheckDiskSetChanged, disk.Target, disk.Overlay, "the disk was removed from the "+where,
			i.remedyAttach(ctx, disk, unplugged, undefined),
		)
		return
	// No operation of ours runs, or run would have left it alone: the job is foreign.
	case active && live.Job:
		i.add(
			vps.CheckForeignJob, disk.Target, live.Path,
			"a block job of somebody else runs on the disk; if it writes into "+disk.Base+", the snapshot is lost",
			remedyJob(i.id, live.Target),
		)
	}
	var uses []hypervisor.Disk
	if active {
		uses = append(uses, live)
	}
	// Where both name the same image, one finding is enough.
	if i.dom.Persistent && (!active || !next.Is(live.Path)) {
		uses = append(uses, next)
	}
	for n, use := range uses {
		i.checkSource(ctx, s, disk, use, active && n == 0)
	}
}

// checkSource says what it means that a disk does not use its overlay.
func (i *inspection) checkSource(
	ctx context.Context, s vps.Snapshot, disk vps.SnapshotDisk, use hypervisor.Disk, live bool,
) {
	when := "at its next boot the disk will use"
	if live {
		when = "the disk uses"
	}
	switch {
	case use.Is(disk.Overlay):
	case use.Is(disk.Base):
		safe, err := i.d.integrity.OverlayIsAuthority(ctx, i.dom, disk)
		detail := when + " the snapshot's data itself: " + disk.Base
		// Repaired only while nobody can have written to the base since: then the overlay alone
		// holds the data. A panel that defines the VPS from its own database does this.
		if !live && err == nil && safe {
			i.add(
				vps.CheckDefinitionNamesBase, disk.Target, disk.Base,
				detail+"; a boot would ruin the snapshot and the VPS", remedyRepair(),
			)
			i.repairable()
			return
		}
		i.add(
			vps.CheckDefinitionNamesBase,
			disk.Target,
			disk.Base,
			detail+"; base and overlay may both hold new data",
			i.remediesOnBase(ctx, s, disk, live)...)
	// Somebody took a snapshot with virsh. Nothing is lost, but the chain is not ours to
	// merge or to exchange.
	case i.liesOn(ctx, use, disk.Overlay):
		i.add(vps.CheckForeignSnapshot, disk.Target, use.Path, when+" another overlay on top of ours: "+use.Path,
			i.remedyForeignOverlay(ctx, disk, use, live))
	default:
		i.add(
			vps.CheckDiskMoved,
			disk.Target,
			use.Path,
			fmt.Sprintf("%s another image than its overlay: %s instead of %s", when, image.OrNone(use.Path),
				disk.Overlay),
			i.remediesMoved(ctx, s)...)
	}
}

// liesOn reports whether an image lies on another, by the definition or by the headers.
func (i *inspection) liesOn(ctx context.Context, use hypervisor.Disk, below string) bool {
	if use.LiesOn(below) || use.ChainKnown {
		return use.LiesOn(below)
	}
	// By the headers, as libvirt states no chain for a VPS that is off.
	chain, _ := i.d.images.Chain(ctx, use.Path, use.Format)
	return slices.ContainsFunc(chain, func(path string) bool { return pathname.Same(path, below) })
}

// checkUnfinished finds snapshots that nothing works on. One that came after the record
// was read is none of that record; checkVPS then compares again.
func (i *inspection) checkUnfinished(s vps.Snapshot) {
	switch {
	case s.State == vps.SnapshotDeleting && i.rec.Snapshot != nil && s.ID == i.rec.Snapshot.ID:
		detail := "the snapshot is half deleted and nothing works on it; it can never be restored again"
		if s.Reason != "" {
			detail += " (" + s.Reason + ")"
		}
		i.add(vps.CheckUnfinished, "", "", detail, remedyDelete(i.id))
	case s.State == vps.SnapshotDeleting:
		i.add(
			vps.CheckUnfinished, "", "",
			"the snapshot "+s.ID+" was replaced, but its overlay still lies below the present one",
			remedyOldLayer(i.id),
		)
	default:
		i.add(
			vps.CheckUnfinished, "", "", fmt.Sprintf("the snapshot is recorded as %s and nothing works on it", s.State),
			repairBy("have the record of the VPS made again from its definition and its files"),
		)
		i.repairable()
	}
	// add named the current snapshot; this finding is about s.
	i.findings[len(i.findings)-1].Snapshot = s.ID
}

// checkAstray tells of a VPS that libvirt is wrong about: what its disks hold is not known.
func (i *inspection) checkAstray(dom hypervisor.Domain) {
	i.name = dom.Name
	i.add(vps.CheckUnreachable, "", "", (&hypervisor.AstrayError{Domain: dom}).Error(), remedyAstray(*dom.Astray))
}

// gone reports whether libvirt answered, and does not know the VPS.
func (i *inspection) gone() bool { return i.answered && !i.present }

// namesake is the id of another VPS that bears the name now, "" for none.
func (i *inspection) namesake() string {
	// Customers and panels know the name. A VPS under it with another UUID is never
	// taken for the one that is gone.
	if other, ok := i.d.inventory.Find(i.name); ok && other.ID != i.id {
		return other.ID
	}
	return ""
}

// checkGone finds a record whose VPS libvirt does not know.
func (i *inspection) checkGone(snapshots []vps.Snapshot) {
	if i.rec.Option == nil && len(snapshots) == 0 {
		return
	}
	what := "its option"
	if len(snapshots) > 0 {
		what = "its snapshot"
	}
	detail := fmt.Sprintf("libvirt does not know the VPS %s (%s), but %s is recorded", i.name, i.id, what)
	if other := i.namesake(); other != "" {
		i.add(
			vps.CheckVPSRedefined,
			"",
			"",
			detail+"; its name now belongs to another VPS, "+other,
			i.remediesGone(snapshots, other)...)
	} else {
		i.add(vps.CheckVPSGone, "", "", detail, i.remediesGone(snapshots, "")...)
	}
}

// checkUnrecorded finds a VPS that has, or speaks of, a snapshot without a record.
func (i *inspection) checkUnrecorded(ctx context.Context) {
	if !adoption.Speaks(i.dom) {
		return
	}
	i.read(ctx) // a deletion may have ended since the list was made
	if !i.present || !adoption.Speaks(i.dom) {
		return
	}
	if i.checkOutdated(ctx) {
		return
	}
	r, err := i.d.adopter.Reconstruct(ctx, i.dom)
	if err != nil {
		i.add(vps.CheckUnreachable, "", "", "the files of a snapshot of which there is no record cannot be looked at: "+err.Error())
		return
	}
	switch known, err := i.d.store.Snapshot(ctx, r.Snap.ID); {
	case err == nil && adoption.MovedAway(known) && i.dom.State == hypervisor.Off:
		return // what a migration has left behind
	case err == nil && known.VPS != i.id && len(adoption.OurImages(i.dom)) > 0:
		// A repair was offered, which can only refuse: the snapshot is the other's.
		other := i.d.inventory.Name(known.VPS)
		i.add(vps.CheckUnrecordedSnapshot, "", "", "the VPS's definition was copied from the VPS "+other+" ("+known.VPS+
			"), and names the files of its snapshot "+known.ID, remedy(vps.RemedyRead,
			"never start both: give this one disks of its own, or undefine it without removing its storage"))
		return
	}
	detail := "the VPS has the snapshot " + r.Snap.ID + ", of which there is no record"
	switch {
	case !r.Exists:
		detail = "the VPS's definition speaks of a snapshot that is not there: " + r.Why
	case r.Hopeless:
		detail = "the VPS has, or had, a snapshot of which there is no record, and none can be made: " + r.Why
	case r.Snap.State != vps.SnapshotAvailable:
		detail += "; recorded anew it is " + string(r.Snap.State) + ", because " + r.Why
	}
	switch {
	case r.Hopeless:
		i.add(vps.CheckUnrecordedSnapshot, "", "", detail, i.remedyUnrecorded())
		return
	case !r.Exists && !r.Leftover:
		i.add(vps.CheckUnrecordedSnapshot, "", "", detail, i.remedyMetadata())
		return
	}
	i.add(vps.CheckUnrecordedSnapshot, "", "", detail, remedyRepair())
	i.findings[len(i.findings)-1].Snapshot = r.Snap.ID
	i.repairable()
}

// checkOutdated finds a definition from the time of a snapshot that is gone by the
// record: it names files that were merged away, with old data in them.
func (i *inspection) checkOutdated(ctx context.Context) bool {
	for path, id := range adoption.OurImages(i.dom) {
		gone, err := i.d.store.Snapshot(ctx, id)
		if err != nil || !adoption.MergedAway(gone) {
			continue
		}
		for _, disk := range gone.Disks {
			if pathname.Same(disk.Overlay, path) {
				// A boot would silently bring back data from before the deletion.
				i.add(
					vps.CheckStaleOverlay,
					disk.Target,
					path,
					"the disk's definition names a file of a snapshot that is gone: "+path+
						"; the present data is in "+disk.Base,
					i.remedyUseBase(disk),
				)
				return true
			}
		}
	}
	return false
}

// remedyUseBase: the definition names what was merged away.
func (i *inspection) remedyUseBase(disk vps.SnapshotDisk) vps.Remedy {
	w := remedy(vps.RemedyUseBase, "keep both files, and let the definition name "+disk.Base+" ("+disk.BaseFormat+
		") again; the VPS must be off for that, or it goes on with old data")
	if i.on() {
		w.Commands = append(w.Commands, argv("virsh", "shutdown", i.id))
	}
	w.Commands = append(w.Commands, argv("virsh", "edit", i.id))
	return w
}

// remedyMetadata takes metadata away of which nobody can say what it is worth.
func (i *inspection) remedyMetadata() vps.Remedy {
	return remedy(vps.RemedyRemoveMetadata, "if nobody needs what it says, take it away",
		argv("virsh", "metadata", i.id, hypervisor.MetadataURI, "--config"),
		argv("virsh", "metadata", i.id, hypervisor.MetadataURI, "--config", "--remove"))
}

// remedyUnrecorded merges by hand what no record can be made of.
func (i *inspection) remedyUnrecorded() vps.Remedy {
	// Nothing destructive among the commands: which file is the newest is for a person
	// to find out.
	w := remedy(
		vps.RemedyLookAtLayers, "keep all files; look at what each disk uses and what lies below it, and merge it into its base by hand "+
			"(virsh blockcommit, qemu-img commit)",
		argv("virsh", "domblklist", "--details", i.id),
	)
	for path := range adoption.OurImages(i.dom) {
		w.Commands = append(w.Commands, argv("qemu-img", "info", "-U", "-f", "qcow2", path))
	}
	return w
}
