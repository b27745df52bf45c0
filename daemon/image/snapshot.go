package image

import (
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

// OverlaySources are the disks of a snapshot on their overlays.
func OverlaySources(snap vps.Snapshot) []hypervisor.DiskSource {
	var s []hypervisor.DiskSource
	for _, disk := range snap.Disks {
		s = append(s, hypervisor.DiskSource{Target: disk.Target, Path: disk.Overlay, Format: "qcow2"})
	}
	return s
}

// BaseSources are the disks of a snapshot on their bases.
func BaseSources(snap vps.Snapshot) []hypervisor.DiskSource {
	var s []hypervisor.DiskSource
	for _, disk := range snap.Disks {
		s = append(s, hypervisor.DiskSource{Target: disk.Target, Path: disk.Base, Format: disk.BaseFormat})
	}
	return s
}
