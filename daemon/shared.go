package daemon

import (
	"context"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// An image that two VPS use, one of them perhaps as what its linked clone lies
// on, must not be merged into, and a snapshot of it is none.

// sharedDisk names the disk (by target) whose image another VPS of this host
// uses too, as far as libvirt states it; "" when there is none. images is by path.
func (d *Daemon) sharedDisk(dom hypervisor.Domain, images map[string]string) string {
	for _, disk := range d.othersDisks(dom) {
		if target := images[disk.Path]; target != "" {
			return target
		}
		for _, layer := range disk.Chain {
			if target := images[layer.Path]; target != "" {
				return target
			}
		}
	}
	return ""
}

// sharedBelow does the same for what libvirt does not state: the chains of VPS
// that are off stand in the headers of their images.
func (d *Daemon) sharedBelow(ctx context.Context, dom hypervisor.Domain, images map[string]string) string {
	others := d.othersDisks(dom)
	known := map[string]bool{}
	for _, disk := range others {
		known[disk.Path] = known[disk.Path] || disk.ChainKnown
	}
	for _, disk := range others {
		if known[disk.Path] || disk.Type != "file" || disk.Format != "qcow2" {
			continue
		}
		known[disk.Path] = true
		for _, path := range d.below(ctx, disk.Path) {
			if target := images[path]; target != "" {
				return target
			}
		}
	}
	return ""
}

// below are the images that a qcow2 image lies on, as far as headers can be
// read: what cannot be read cannot be started either.
func (d *Daemon) below(ctx context.Context, path string) []string {
	var paths []string
	for format := "qcow2"; format == "qcow2" && len(paths) < maxChain; {
		img, err := d.Config.Host.Inspect(ctx, path, format)
		if err != nil || img.Backing == "" {
			break
		}
		path, format = besideOf(path, img.Backing), img.BackingFormat
		paths = append(paths, path)
	}
	return paths
}

// othersDisks are the disks of all other VPS, as they are and as they will be.
func (d *Daemon) othersDisks(dom hypervisor.Domain) []hypervisor.Disk {
	var disks []hypervisor.Disk
	for _, other := range d.inventory.all() {
		if other.ID != dom.ID {
			disks = append(append(disks, other.Disks...), other.PersistentDisks...)
		}
	}
	return disks
}

// imagesOf are the images of a snapshot, by path.
func imagesOf(snap vps.Snapshot) map[string]string {
	images := map[string]string{}
	for _, disk := range snap.Disks {
		images[disk.Base], images[disk.Overlay] = disk.Target, disk.Target
	}
	return images
}
