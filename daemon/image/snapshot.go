package image

import (
	"slices"
	"strings"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Files are the files that a snapshot consists of, apart from the bases, which
// are the VPS's own.
func Files(s vps.Snapshot) []string {
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

// Bases are what the merges of a snapshot write to.
func Bases(snap vps.Snapshot) []string {
	var files []string
	for _, disk := range snap.Disks {
		files = append(files, disk.Base)
	}
	return files
}

// A disk of a snapshot is known by its image. Its name is the definition's: a panel that
// changes the bus makes vda hda, and two disks may swap their names.

// Live returns a disk of a snapshot as the VPS uses it now.
func Live(dom hypervisor.Domain, disk vps.SnapshotDisk) (hypervisor.Disk, bool) {
	return known(dom.Disks, disk)
}

// Next returns a disk of a snapshot as the next boot will use it.
func Next(dom hypervisor.Domain, disk vps.SnapshotDisk) (hypervisor.Disk, bool) {
	return known(dom.PersistentDisks, disk)
}

// known finds a disk by its images. Only where none uses one of them, as when it was given
// another image, the name is what is left to go by.
func known(disks []hypervisor.Disk, disk vps.SnapshotDisk) (hypervisor.Disk, bool) {
	for _, is := range []func(hypervisor.Disk) bool{
		func(d hypervisor.Disk) bool { return d.Is(disk.Overlay) },
		func(d hypervisor.Disk) bool { return d.LiesOn(disk.Overlay) },
		func(d hypervisor.Disk) bool { return d.Is(disk.Base) },
		func(d hypervisor.Disk) bool { return d.LiesOn(disk.Base) },
		func(d hypervisor.Disk) bool { return d.Target == disk.Target },
	} {
		if i := slices.IndexFunc(disks, is); i >= 0 {
			return disks[i], true
		}
	}
	return hypervisor.Disk{}, false
}

// LiveName is the name that the running VPS has for a disk of a snapshot.
func LiveName(dom hypervisor.Domain, disk vps.SnapshotDisk) string {
	if live, ok := Live(dom, disk); ok {
		return live.Target
	}
	return disk.Target
}

// Renamed returns a snapshot with the names that its disks have now. changed reports whether
// the record has others. Names of disks that do not use an image of the snapshot stay.
func Renamed(dom hypervisor.Domain, snap vps.Snapshot) (_ vps.Snapshot, changed bool) {
	snap.Disks = slices.Clone(snap.Disks)
	taken := map[string]bool{}
	for i, disk := range snap.Disks {
		name := LiveName(dom, disk)
		changed = changed || name != disk.Target
		if taken[name] {
			return snap, false // two disks of the record under one name: neither is certain
		}
		taken[name], snap.Disks[i].Target = true, name
	}
	slices.SortFunc(snap.Disks, func(a, b vps.SnapshotDisk) int { return strings.Compare(a.Target, b.Target) })
	return snap, changed
}

// OnOverlay points a disk of the next boot at its overlay.
func OnOverlay(dom hypervisor.Domain, disk vps.SnapshotDisk) hypervisor.DiskSource {
	return hypervisor.DiskSource{Target: nextName(dom, disk), Path: disk.Overlay, Format: "qcow2"}
}

// OnBase points a disk of the next boot at its base.
func OnBase(dom hypervisor.Domain, disk vps.SnapshotDisk) hypervisor.DiskSource {
	return hypervisor.DiskSource{Target: nextName(dom, disk), Path: disk.Base, Format: disk.BaseFormat}
}

func nextName(dom hypervisor.Domain, disk vps.SnapshotDisk) string {
	if next, ok := Next(dom, disk); ok {
		return next.Target
	}
	return disk.Target
}

// OverlaySources are the disks of a snapshot on their overlays.
func OverlaySources(dom hypervisor.Domain, snap vps.Snapshot) []hypervisor.DiskSource {
	var s []hypervisor.DiskSource
	for _, disk := range snap.Disks {
		s = append(s, OnOverlay(dom, disk))
	}
	return s
}

// BaseSources are the disks of a snapshot on their bases.
func BaseSources(dom hypervisor.Domain, snap vps.Snapshot) []hypervisor.DiskSource {
	var s []hypervisor.DiskSource
	for _, disk := range snap.Disks {
		s = append(s, OnBase(dom, disk))
	}
	return s
}

// OverlayOf is the overlay of the disk with that target, "" if the snapshot has none.
func OverlayOf(snap vps.Snapshot, target string) string {
	for _, disk := range snap.Disks {
		if disk.Target == target {
			return disk.Overlay
		}
	}
	return ""
}

// OverlayOfDisk is the file that the VPS writes to.
func OverlayOfDisk(disk vps.SnapshotDisk) string { return disk.Overlay }

// BaseOfDisk is the file that is the snapshot.
func BaseOfDisk(disk vps.SnapshotDisk) string { return disk.Base }
