// Package adoption makes records of what the definition and the files of a VPS tell: of a
// snapshot that no record knows, that has come with its VPS from another host, or whose
// database was lost. What leaves the host it lets go.
package adoption

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/integrity"
	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/metadata"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/work"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// Adopter makes records for one host.
type Adopter struct {
	host      hypervisor.Host
	inventory *inventory.Inventory
	store     *store.Store
	integrity *integrity.Integrity
	images    *image.Images
	logger    *slog.Logger
	group     *work.Group
	cutOff    func(vpsID, why string)
	onMoved   func()
}

// New makes an adopter that follows what happens on the host. cutOff ends those who read
// the disks of a VPS that has left; onMoved is called when a record came or went with its
// VPS.
func New(
	host hypervisor.Host, inv *inventory.Inventory, db *store.Store, ops *operation.Operations, in *integrity.Integrity,
	images *image.Images, cutOff func(vpsID, why string), onMoved func(), group *work.Group, logger *slog.Logger,
) *Adopter {
	a := &Adopter{host: host, inventory: inv, store: db, integrity: in, images: images, logger: logger, group: group,
		cutOff: cutOff, onMoved: onMoved}
	inv.Subscribe(
		inventory.Watcher{
			Connected: a.reviewDefinitions,
			Defined:   a.definitionChanged,
			Changed:   a.cameAlong,
			Departed:  a.Departed,
		},
	)
	// Somebody may have defined it while it was left to the operation.
	ops.OnOver(func(op vps.Operation) { a.definitionChanged(group.Context(), op.VPS) })
	return a
}

// Reconstruction is what a VPS's definition and files tell of a snapshot that no
// record knows.
type Reconstruction struct {
	// Exists: there is one, whole or not. Otherwise at most leftovers.
	Exists bool
	// Snap is the record to be made of it. It is available only where the files
	// prove it.
	Snap vps.Snapshot
	// Why says why it is not available, or what the leftovers are.
	Why string
	// Hopeless: no record can be made of it.
	Hopeless bool
	// Leftover: there is none, and the metadata tells nothing that is not known otherwise.
	Leftover bool
}

// Speaks reports whether a definition has our metadata or names a file of ours.
func Speaks(dom hypervisor.Domain) bool {
	return dom.Metadata != "" || len(OurImages(dom)) > 0
}

// OurImages are the images of a VPS that are named as ours, with the snapshot's id. Only
// names are looked at: whether a file is what its name says, Reconstruct finds out.
func OurImages(dom hypervisor.Domain) map[string]string {
	found := map[string]string{}
	for _, disk := range slices.Concat(dom.Disks, dom.PersistentDisks) {
		if id := image.SnapshotOf(disk.Path); id != "" {
			found[disk.Path] = id
		}
	}
	return found
}

// Reconstruct reads what is there. It changes nothing. An error means that not all could
// be looked at now: of what a mount holds that does not answer nothing is known, least
// of all that it is missing.
func (a *Adopter) Reconstruct(ctx context.Context, dom hypervisor.Domain) (Reconstruction, error) {
	if !dom.Persistent {
		return Reconstruction{Exists: true, Hopeless: true, Why: "the VPS is not persistent"}, nil
	}
	m, err := metadata.Parse(dom.Metadata)
	if err == nil && m.Snapshot.VPS != dom.ID {
		err = fmt.Errorf("it is of another VPS, %s, whose definition was copied", m.Snapshot.VPS)
	}
	images := OurImages(dom)
	// Metadata alone, with no file of ours in use, still tells of a deletion or of a
	// leftover.
	mine := err == nil && len(images) == 0
	for _, id := range images {
		mine = mine || err == nil && id == m.Snapshot.ID
	}
	switch {
	case mine:
		return a.fromMetadata(ctx, dom, m)
	case len(images) == 0:
		_, unknown := a.store.Snapshot(ctx, m.Snapshot.ID)
		return Reconstruction{Leftover: m.Snapshot.ID != "" && unknown == nil,
			Why: "its metadata cannot be taken up (" + err.Error() + ") and it uses no file of ours"}, nil
	}
	why := "its definition has no metadata of it"
	if dom.Metadata != "" {
		why = "the metadata in its definition is of another snapshot or cannot be read"
	}
	return a.fromFileNames(ctx, dom, images, why)
}

// fromFileNames makes a record from file names and headers alone. Whether the base
// was written since cannot be told, so it is never available.
func (a *Adopter) fromFileNames(
	ctx context.Context, dom hypervisor.Domain, images map[string]string, why string,
) (Reconstruction, error) {
	r := Reconstruction{Exists: true, Why: why + ", so whether its data is still that of its moment cannot be proven"}
	now := a.store.Now()
	r.Snap = vps.Snapshot{
		VPS:         dom.ID,
		State:       vps.SnapshotBroken,
		Reason:      r.Why,
		Consistency: vps.ConsistencyCrash,
		CreatedAt:   now,
		UpdatedAt:   now,
	}
	for _, use := range dom.PersistentDisks {
		id, ok := images[use.Path]
		if !ok {
			continue
		}
		img, err1 := a.host.Inspect(ctx, use.Path, "qcow2")
		overlay, err2 := a.host.Stat(ctx, use.Path)
		basePath, err3 := baseOf(img)
		base, err4 := a.host.Stat(ctx, basePath)
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return Reconstruction{
				Exists:   true,
				Hopeless: true,
				Why:      fmt.Sprintf("the files of disk %s cannot be read: %v", use.Target, err),
			}, notAsked(ctx, err)
		}
		// The name holds base and snapshot; one that does not fit its own disk was moved or
		// copied.
		if r.Snap.ID != "" && r.Snap.ID != id || !image.IsOverlay(use.Path, basePath, id) {
			return Reconstruction{
				Exists:   true,
				Hopeless: true,
				Why: "disk " + use.Target + " uses " + use.Path +
					", which does not go together with the other disks or with its base",
			}, nil
		}
		// Nothing tells when it was taken, only that it was after the last write to each
		// base.
		if base.Modified.Before(r.Snap.CreatedAt) {
			r.Snap.CreatedAt = base.Modified.UTC()
		}
		r.Snap.ID, r.Snap.SizeBytes = id, r.Snap.SizeBytes+img.VirtualSize
		r.Snap.Disks = append(
			r.Snap.Disks,
			vps.SnapshotDisk{Target: use.Target, Base: basePath, BaseFormat: img.BackingFormat,
				BaseInode: base.Inode,
				SizeBytes: img.VirtualSize, Overlay: image.OverlayPath(basePath, id, use.Target),
				OverlayInode: overlay.Inode},
		)
	}
	if len(r.Snap.Disks) == 0 {
		return Reconstruction{
			Exists:   true,
			Hopeless: true,
			Why:      "the running VPS uses a file of ours, and its definition does not",
		}, nil
	}
	return r, nil
}

// notAsked is err when it says nothing about a file: the host had no time for the
// question, or its storage does not answer.
func notAsked(ctx context.Context, err error) error {
	if fault.Unavailable(err) || ctx.Err() != nil {
		return err
	}
	return nil
}

// look is the file at a path. Only what the host says does not exist is not there.
func (a *Adopter) look(ctx context.Context, path string) (file hypervisor.File, there bool, err error) {
	file, err = a.host.Stat(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return file, false, nil
	}
	return file, err == nil, err
}

// liesOn reports whether the header of an image of ours names that base.
func (a *Adopter) liesOn(ctx context.Context, path, base, format string) (bool, error) {
	img, err := a.host.Inspect(ctx, path, "qcow2")
	return err == nil && img.LiesOn(base, format), notAsked(ctx, err)
}

// baseOf is the file that an overlay lies on by its header, as it goes on record.
func baseOf(overlay hypervisor.Image) (string, error) {
	below, local := overlay.Below()
	if !local || below == "" {
		return "", errors.New("its header names no file of this host to lie on")
	}
	return pathname.Plain(below)
}

// fromMetadata makes a record from the copy in the definition, as far as the
// files bear it out.
func (a *Adopter) fromMetadata(
	ctx context.Context, dom hypervisor.Domain, m metadata.Record,
) (Reconstruction, error) {
	r := Reconstruction{Exists: true, Snap: m.Snapshot}
	r.Snap.VPS, r.Snap.UpdatedAt, r.Snap.Disks = dom.ID, a.store.Now(), slices.Clone(m.Snapshot.Disks)
	state := r.Snap.State
	whole, err := a.undoIsWhole(ctx, r.Snap)
	if err != nil {
		return r, err
	}
	if state != vps.SnapshotAvailable || !whole {
		forgetUndo(&r.Snap)
	}
	if state == vps.SnapshotDeleting {
		return a.interruptedDelete(ctx, dom, r)
	}
	lacks, doubts, err := a.compareFiles(ctx, dom, &r.Snap)
	if err != nil {
		return r, err
	}
	if len(lacks) == len(m.Snapshot.Disks) && len(OurImages(dom)) == 0 {
		if gone, err := a.noneLeft(ctx, m.Snapshot); gone || err != nil {
			return Reconstruction{Leftover: gone, Why: "the snapshot " + m.Snapshot.ID +
				" that its metadata speaks of is gone"}, err
		}
	}
	switch {
	case len(doubts) > 0:
		r.broken(false, strings.Join(doubts, "; "))
	// A missing file may come back with its file system; a base that was written to
	// never heals.
	case len(lacks) > 0:
		r.broken(true, strings.Join(lacks, "; "))
	case state == vps.SnapshotRestoring:
		return r, a.restoreProgress(ctx, &r, m)
	default:
		r.Snap.State = vps.SnapshotAvailable
	}
	return r, nil
}

// undoIsWhole reports whether all disks from before the last restore are there and lie
// on their bases, so that it can still be undone.
func (a *Adopter) undoIsWhole(ctx context.Context, s vps.Snapshot) (bool, error) {
	if s.UndoUntil == nil {
		return false, nil
	}
	for _, disk := range s.Disks {
		if disk.Undo == "" {
			return false, nil
		}
		file, there, err := a.look(ctx, disk.Undo)
		if err != nil || !there || file.Inode != disk.UndoInode {
			return false, err
		}
		if lies, err := a.liesOn(ctx, disk.Undo, disk.Base, disk.BaseFormat); err != nil || !lies {
			return false, err
		}
	}
	if s.NVRAMUndo != "" {
		_, there, err := a.look(ctx, s.NVRAMUndo)
		return there, err
	}
	return true, nil
}

// forgetUndo leaves the files from before a restore to whoever finds them.
func forgetUndo(s *vps.Snapshot) {
	s.UndoUntil, s.NVRAMUndo = nil, ""
	for n := range s.Disks {
		s.Disks[n].Undo, s.Disks[n].UndoInode = "", 0
	}
}

// broken keeps the record and says why, instead of dropping it: with heals it becomes
// available by itself when what is missing is back.
func (r *Reconstruction) broken(heals bool, why string) {
	r.Snap.State, r.Snap.Heals, r.Snap.Reason, r.Why = vps.SnapshotBroken, heals, why, why
}

// noneLeft reports whether no overlay of a snapshot exists, where its bases do: an empty
// directory may be one on which nothing is mounted.
func (a *Adopter) noneLeft(ctx context.Context, s vps.Snapshot) (bool, error) {
	for _, disk := range s.Disks {
		if _, there, err := a.look(ctx, disk.Base); err != nil || !there {
			return false, err
		}
		if _, there, err := a.look(ctx, disk.Overlay); err != nil || there {
			return false, err
		}
	}
	return true, nil
}

// compareFiles takes the inodes of the files into the record and says what is
// missing, and what puts in doubt that the data is still that of the snapshot.
func (a *Adopter) compareFiles(
	ctx context.Context, dom hypervisor.Domain, s *vps.Snapshot,
) (lacks, doubts []string, err error) {
	for n := range s.Disks {
		lack, doubt, err := a.compareDisk(ctx, dom, &s.Disks[n])
		if err != nil {
			return nil, nil, err
		}
		if lack != "" {
			lacks = append(lacks, "disk "+s.Disks[n].Target+": "+lack)
		}
		if doubt != "" {
			doubts = append(doubts, "disk "+s.Disks[n].Target+": "+doubt)
		}
	}
	if s.NVRAMSaved != "" {
		_, there, err := a.look(ctx, s.NVRAMSaved)
		if err != nil {
			return nil, nil, err
		}
		if !there {
			lacks = append(lacks, "its copy of the UEFI variables is missing")
		}
	}
	return lacks, doubts, nil
}

// compareDisk does so for one disk. A copied file system gives other inodes; that
// the base was not written since is told by its time.
func (a *Adopter) compareDisk(
	ctx context.Context, dom hypervisor.Domain, disk *vps.SnapshotDisk,
) (lack, doubt string, err error) {
	base, there, err := a.look(ctx, disk.Base)
	if err != nil || !there {
		return "its base is missing", "", err
	}
	overlay, there, err := a.look(ctx, disk.Overlay)
	if err != nil || !there {
		return "its overlay is missing", "", err
	}
	// Compared before the record takes over the present inodes.
	same := base.Inode == disk.BaseInode
	disk.BaseInode, disk.OverlayInode = base.Inode, overlay.Inode
	// Earlier is no sign of a write (see damage), unless it is another file.
	written := base.Modified.After(disk.BaseModified) || base.Modified.Before(disk.BaseModified) && !same
	if disk.BaseModified.IsZero() || written {
		return "", "its base may have been written to since the snapshot", nil
	}
	if lies, err := a.liesOn(ctx, disk.Overlay, disk.Base, disk.BaseFormat); err != nil || !lies {
		return "", "its overlay does not lie on its base", err
	}
	if live, ok := image.Live(dom, *disk); ok && live.Job {
		return "", "a block job runs on it", nil
	}
	err = a.images.CheckChain(ctx, dom.ID, disk.Target, disk.Base, disk.BaseFormat)
	if why, ok := errors.AsType[*image.Unfit](err); ok {
		return "", why.Why.String(), nil
	}
	return "", "", err
}

// HalfRestored begins the reason of a snapshot whose VPS may have half of its disks.
const HalfRestored = "a restore was interrupted"

// restoreProgress looks how far a restore came. None or all of its exchanges give a
// whole VPS; in between the record demands the files that would complete it, and
// heals when they are in place.
func (a *Adopter) restoreProgress(ctx context.Context, r *Reconstruction, m metadata.Record) error {
	var done, todo, strange []string
	for _, disk := range r.Snap.Disks {
		was, _ := diskNamed(m.Snapshot, disk.Target)
		switch spare := m.Spares[disk.Target]; {
		case spare != 0 && disk.OverlayInode == spare:
			done = append(done, disk.Target)
		case disk.OverlayInode == was.OverlayInode:
			todo = append(todo, disk.Target)
		default:
			strange = append(strange, disk.Target)
		}
	}
	// They are exchanged last, so with them the restore had done all but its record.
	variables := m.NVRAMSpare == 0
	if !variables {
		file, there, err := a.look(ctx, r.Snap.NVRAM)
		if err != nil {
			return err
		}
		variables = there && file.Inode == m.NVRAMSpare
	}
	switch {
	case len(strange) > 0:
		r.broken(
			false,
			HalfRestored+", and disk "+strings.Join(strange, ", ")+" has a file that belongs to neither side of it",
		)
	case len(done) == 0, len(todo) == 0 && variables:
		r.Snap.State = vps.SnapshotAvailable
	case len(todo) == 0:
		r.broken(false, HalfRestored+" after the disks and before the UEFI variables, which are still from before it")
	default:
		// Named by the inode that is not there yet: Judge then calls it broken until the
		// exchange is finished by hand.
		for n := range r.Snap.Disks {
			r.Snap.Disks[n].OverlayInode = m.Spares[r.Snap.Disks[n].Target]
		}
		r.broken(
			true,
			fmt.Sprintf(
				HalfRestored+": disk %s is restored, disk %s is not yet; do not start the VPS before it is",
				strings.Join(done, ", "), strings.Join(todo, ", "),
			),
		)
	}
	return nil
}

// diskNamed finds a disk of the snapshot by its target; a disk that was added since has none.
func diskNamed(s vps.Snapshot, target string) (vps.SnapshotDisk, bool) {
	for _, disk := range s.Disks {
		if disk.Target == target {
			return disk, true
		}
	}
	return vps.SnapshotDisk{}, false
}

// interruptedDelete makes a record with which the deletion can be finished. What a
// running VPS writes to is the authority; of one that is off the definition's
// choice holds, because it was suspended across the pivot.
func (a *Adopter) interruptedDelete(
	ctx context.Context, dom hypervisor.Domain, r Reconstruction,
) (Reconstruction, error) {
	present, merged := image.Next, 0
	if dom.State != hypervisor.Off {
		present = image.Live
	}
	for n := range r.Snap.Disks {
		disk := &r.Snap.Disks[n]
		use, _ := present(dom, *disk)
		base, err := a.host.Stat(ctx, disk.Base)
		overlay, err2 := a.host.Stat(ctx, disk.Overlay)
		if err := notAsked(ctx, errors.Join(err, err2)); err != nil {
			return r, err
		}
		switch {
		case err != nil:
			return Reconstruction{
				Exists:   true,
				Hopeless: true,
				Why:      fmt.Sprintf("a deletion was interrupted, and of disk %s: %v", disk.Target, err),
			}, nil
		case use.Is(disk.Base):
			disk.Pivoted = true
			merged++
		case !use.Is(disk.Overlay) || err2 != nil:
			return Reconstruction{Exists: true, Hopeless: true,
				Why: fmt.Sprintf(
					"a deletion was interrupted, and disk %s uses %s (%v)", disk.Target, image.OrNone(use.Path), err2,
				)}, nil
		}
		disk.BaseInode = base.Inode
		if err2 == nil {
			disk.OverlayInode = overlay.Inode
		}
	}
	if merged == len(r.Snap.Disks) {
		gone, err := a.noneLeft(ctx, r.Snap)
		return Reconstruction{Leftover: gone,
			Why: "the snapshot " + r.Snap.ID + " is deleted, all but its leftovers"}, err
	}
	r.Why = "its deletion was interrupted"
	r.Snap.Reason = r.Why
	if dom.State == hypervisor.Paused {
		r.Why += "; the VPS is paused, perhaps by the deletion: finish that first, then virsh resume " + dom.ID
	}
	return r, nil
}

// MergedAway reports whether a snapshot is gone because it was deleted, so that its
// overlays are stale; and not given up, when they may be all that is left of a VPS.
func MergedAway(s vps.Snapshot) bool {
	for _, disk := range s.Disks {
		if !disk.Pivoted {
			return false
		}
	}
	return s.State == vps.SnapshotGone && len(s.Disks) > 0
}
