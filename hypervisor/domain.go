package hypervisor

// Disk returns the disk with this target that the domain uses now.
func (d *Domain) Disk(target string) (Disk, bool) { return diskOf(d.Disks, target) }

// NextDisk returns the disk with this target that the next boot will use.
func (d *Domain) NextDisk(target string) (Disk, bool) { return diskOf(d.PersistentDisks, target) }

func diskOf(disks []Disk, target string) (Disk, bool) {
	for _, disk := range disks {
		if disk.Target == target {
			return disk, true
		}
	}
	return Disk{}, false
}

// Uses reports whether the domain refers to a file anywhere in its definitions.
func (d *Domain) Uses(path string) bool {
	for _, disks := range [][]Disk{d.Disks, d.PersistentDisks} {
		for _, disk := range disks {
			if disk.Path == path || disk.LiesOn(path) {
				return true
			}
		}
	}
	return path != "" && d.NVRAM == path
}

// LiesOn reports whether the definition names a file below the disk's image.
func (d *Disk) LiesOn(path string) bool {
	for _, layer := range d.Chain {
		if layer.Path == path {
			return true
		}
	}
	return false
}
