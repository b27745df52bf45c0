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
