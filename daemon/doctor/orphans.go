package doctor

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"vpssnapd/daemon/adoption"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// checkFiles finds files that are named as ours and that no record names, in all
// directories where disks lie. The directories are listed before the record is
// read: a file is recorded before it is made, and its record goes after it.
func (d *Doctor) checkFiles(ctx context.Context, domains []hypervisor.Domain, silent bool) ([]vps.Finding, error) {
	// Read first: a snapshot that is recorded while the directories are listed brings at
	// worst a file that is looked up again below.
	before, err1 := d.store.Snapshots(ctx)
	left, err2 := d.store.OverlaysLeft(ctx)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	var findings []vps.Finding
	listed := map[string]hypervisor.NamedFile{}
	for _, dir := range imageDirs(domains, before, left) {
		files, err := d.host.Files(ctx, dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			findings = append(
				findings,
				vps.Finding{Code: vps.CheckUnreachable, Path: dir,
					Detail: "the directory cannot be listed: " + err.Error()},
			)
		}
		for _, f := range files {
			if image.SnapshotOf(f.Name) != "" {
				listed[filepath.Join(dir, f.Name)] = f
			}
		}
	}
	// The record is read after the listing. In the other order a file made in between
	// would look like an orphan.
	named, err := d.namedFiles(ctx)
	if err != nil {
		return findings, err
	}
	who := &users{d: d, domains: domains, silent: silent}
	told := map[pathname.ID]bool{} // a directory may be listed by two names
	for _, path := range slices.Sorted(maps.Keys(listed)) {
		id := image.SnapshotOf(path)
		if named.has(path, listed[path].Inode) || named.busy[id] {
			continue
		}
		// Seen under the same inode twice, with the record read in between: it is not
		// one that was just being made.
		now, err := d.host.Stat(ctx, path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			findings = append(findings, vps.Finding{Code: vps.CheckUnreachable, Path: path,
				Detail: "a file that is named as one of ours cannot be looked at: " + err.Error()})
			continue
		}
		if err != nil || now.Inode != listed[path].Inode {
			continue // an operation that ended meanwhile has removed it
		}
		file, ok := pathname.Of(path)
		if ok && told[file] {
			continue
		}
		told[file] = true
		orphan, err := d.orphan(ctx, path, id, now.Inode, who)
		if err != nil {
			return findings, err
		}
		if orphan != nil {
			findings = append(findings, *orphan)
		}
	}
	return findings, nil
}

// imageDirs are the directories in which our files may lie.
func imageDirs(domains []hypervisor.Domain, snapshots []vps.Snapshot, others []string) []string {
	dirs := map[string]bool{}
	for _, path := range others {
		dirs[filepath.Dir(path)] = true
	}
	for _, dom := range domains {
		for _, disk := range slices.Concat(dom.Disks, dom.PersistentDisks) {
			// Overlays are made beside their base, so the directories of disks are
			// enough; no tree is walked.
			if disk.Type == "file" && filepath.IsAbs(disk.Path) && disk.Device == "disk" {
				dirs[filepath.Dir(disk.Path)] = true
			}
		}
		if filepath.IsAbs(dom.NVRAM) {
			dirs[filepath.Dir(dom.NVRAM)] = true
		}
	}
	for _, s := range snapshots {
		for _, path := range image.Files(s) {
			dirs[filepath.Dir(path)] = true
		}
	}
	return slices.Sorted(maps.Keys(dirs))
}

// named is which files the record accounts for: by whatever name they have, by their
// inode, or because an operation of their snapshot is not finished.
type named struct {
	paths  map[string]bool
	files  map[pathname.ID]bool
	inodes map[uint64]bool
	busy   map[string]bool // snapshot ids
}

// has reports whether a record names a file. An inode that one names is enough, although
// other file systems have it too: who moved a directory has moved what its VPSes write to,
// and nobody must be told to remove that (FAULTS row 33).
func (n named) has(path string, inode uint64) bool {
	if n.paths[path] || n.inodes[inode] {
		return true
	}
	file, ok := pathname.Of(path)
	return ok && n.files[file]
}

// add notes a file of a record; inode 0 is not known.
func (n named) add(path string, inode uint64) {
	n.paths[path] = true
	if inode != 0 {
		n.inodes[inode] = true
	}
	if file, ok := pathname.Of(path); ok {
		n.files[file] = true
	}
}

// namedFiles collects every file that a record names, and which snapshots an operation
// works on at present: their files come and go.
func (d *Doctor) namedFiles(ctx context.Context) (named, error) {
	n := named{
		paths: map[string]bool{}, files: map[pathname.ID]bool{}, inodes: map[uint64]bool{}, busy: map[string]bool{},
	}
	operations, err1 := d.store.ActiveOperations(ctx)
	snapshots, err2 := d.store.Snapshots(ctx)
	if err := errors.Join(err1, err2); err != nil {
		return n, err
	}
	working := map[string]bool{}
	for _, op := range operations {
		working[op.VPS] = true
	}
	for _, s := range snapshots {
		n.busy[s.ID] = working[s.VPS]
		for _, path := range image.Files(s) {
			n.add(path, 0)
		}
		// A base can have our name when a snapshot was given up: the VPS then runs on an
		// old overlay.
		for _, disk := range s.Disks {
			n.add(disk.Base, disk.BaseInode)
			n.add(disk.Overlay, disk.OverlayInode)
			if disk.Undo != "" {
				n.add(disk.Undo, disk.UndoInode)
			}
		}
	}
	return n, nil
}

// orphan says what a file is that no record names; nil when a VPS uses it as its
// disk, which is told with that VPS.
func (d *Doctor) orphan(ctx context.Context, path, id string, inode uint64, users *users) (*vps.Finding, error) {
	f := vps.Finding{Code: vps.CheckOrphanOverlay, Path: path, Snapshot: id,
		Detail:   "the file is named as one of ours, and no record names it: " + path,
		Remedies: []vps.Remedy{remedyOrphan("look at it, and remove it if nobody needs it", path)}}
	if users.direct(path) {
		return nil, nil
	}
	recorded, err := d.store.Snapshot(ctx, id)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	if err == nil && adoption.MovedAway(recorded) {
		return nil, nil // its VPS took it to another host
	}
	if err == nil {
		f.VPS, f.VPSName = recorded.VPS, d.inventory.Name(recorded.VPS)
	}
	user, sure := users.above(ctx, path)
	switch {
	case user != nil:
		f.Detail += "; an image of the VPS " + user.Name + " lies on it"
		f.Remedies = []vps.Remedy{remedy(vps.RemedyLeaveFile, "it is in use: leave it", argv("virsh", "domblklist", "--details", user.ID))}
	case err == nil && adoption.MergedAway(recorded) && recordedInode(recorded, path) == inode:
		f.Code = vps.CheckStaleOverlay
		f.Detail = "the file is left from a snapshot that is gone by the record: " + path
		f.Remedies = []vps.Remedy{
			remedyOrphan(
				"its data was merged into the disk below it. If disks or definitions were brought back from a backup "+
					"since, it may be the newest: compare first, and remove it if nobody needs it",
				path,
			),
		}
	case err == nil:
		f.Detail += "; its snapshot was given up, so it may be the newest data of " + f.VPSName
	}
	if !sure && user == nil {
		f.Detail += "; not every image of this host could be read, so one that lies on it may have been missed"
		f.Remedies = []vps.Remedy{remedy(vps.RemedyRead, "leave it until every VPS and every image of this host can be "+
			"read, then ask doctor again")}
	}
	return &f, nil
}

// recordedInode is the inode that a snapshot's record gives a file, 0 for none.
func recordedInode(s vps.Snapshot, path string) uint64 {
	for _, disk := range s.Disks {
		switch {
		case pathname.Same(path, disk.Overlay):
			return disk.OverlayInode
		case pathname.Same(path, disk.Undo):
			return disk.UndoInode
		}
	}
	return 0
}

// users tells which VPS uses a file.
type users struct {
	d       *Doctor
	domains []hypervisor.Domain
	// silent: libvirt did not answer, and any file may be in use.
	silent bool
	// stated are the files that definitions name; read when it is first needed.
	stated map[pathname.ID]bool
	// below is who lies on a file by the headers of images whose chain no
	// definition states; read when it is first needed. sure is set when all were read.
	below map[pathname.ID]*hypervisor.Domain
	sure  bool
}

// direct reports whether a definition names the file, by whatever name.
func (u *users) direct(path string) bool {
	if u.stated == nil {
		u.stated = map[pathname.ID]bool{}
		for _, dom := range u.domains {
			for _, name := range dom.Files() {
				if file, ok := pathname.Of(name); ok {
					u.stated[file] = true
				}
			}
		}
	}
	file, ok := pathname.Of(path)
	return ok && u.stated[file]
}

// above finds a VPS with an image that lies on the file by its header.
func (u *users) above(ctx context.Context, path string) (user *hypervisor.Domain, sure bool) {
	if u.below == nil {
		u.below, u.sure = map[pathname.ID]*hypervisor.Domain{}, !u.silent
		for i := range u.domains {
			u.readHeaders(ctx, &u.domains[i])
		}
	}
	file, ok := pathname.Of(path)
	return u.below[file], u.sure && ok
}

// readHeaders follows the backing chain in the files where libvirt gave none. A chain that
// cannot be read to its end makes us unsure, and then no removal is offered.
func (u *users) readHeaders(ctx context.Context, dom *hypervisor.Domain) {
	for _, disk := range slices.Concat(dom.Disks, dom.PersistentDisks) {
		if disk.ChainKnown || disk.Type != "file" || disk.Path == "" || disk.Device != "disk" {
			continue
		}
		chain, complete := u.d.images.Chain(ctx, disk.Path, disk.Format)
		u.sure = u.sure && complete
		for _, path := range chain {
			// The base of another VPS may carry our name, so every layer counts.
			if file, ok := pathname.Of(path); ok {
				u.below[file] = dom
			}
		}
	}
}
