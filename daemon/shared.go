package daemon

import (
	"context"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// An image that two VPS use, one of them perhaps as what its linked clone lies
// on, must not be merged into, and a snapshot of it is none.

// sharedDisk names the disk (by target) whose image another VPS of this host
// uses too, as far as libvirt states it, perhaps by another name; "" when there is
// none. images is by path.
func (d *Daemon) sharedDisk(ctx context.Context, dom hypervisor.Domain, images map[string]string) (target string) {
	others := map[string]bool{}
	d.othersDisks(dom, func(disk *hypervisor.Disk) {
		others[disk.Path] = true
		for _, layer := range disk.Chain {
			others[layer.Path] = true
		}
	})
	for path, target := range images {
		if others[path] {
			return target
		}
	}
	return d.sharedFile(ctx, images, others)
}

// sharedWait is how long the files of other VPSes may take to tell which they are.
const sharedWait = 2 * time.Second

// sharedFile finds what is the same file by another name, through a link of either
// kind. Where the storage of another VPS hangs, this one must not wait for it.
func (d *Daemon) sharedFile(ctx context.Context, images map[string]string, others map[string]bool) string {
	found := make(chan string, 1)
	go func() { found <- sharedName(images, others) }()
	late := time.NewTimer(sharedWait)
	defer late.Stop()
	select {
	case target := <-found:
		return target
	case <-late.C:
		d.Logger.Warn("not known whether an image has two names: the storage of a VPS does not answer")
	case <-ctx.Done():
	}
	return ""
}

// sharedName does so, and waits as long as it takes. images is by path.
func sharedName(images map[string]string, others map[string]bool) string {
	own := map[fileID]string{}
	for path, target := range images {
		if id, ok := fileAt(path); ok {
			own[id] = target
		}
	}
	for path := range others {
		if id, ok := fileAt(path); ok && own[id] != "" {
			return own[id]
		}
	}
	return ""
}

// fileID tells files apart, whatever their names.
type fileID struct{ device, inode uint64 }

func fileAt(path string) (id fileID, ok bool) {
	var st unix.Stat_t
	if !filepath.IsAbs(path) || unix.Stat(path, &st) != nil {
		return id, false
	}
	return fileID{st.Dev, st.Ino}, true
}

// sharedBelow does the same for what libvirt does not state: the chains of VPS
// that are off stand in the headers of their images, and an image may be named by
// another path, through a link.
func (d *Daemon) sharedBelow(ctx context.Context, dom hypervisor.Domain, images map[string]string) (string, error) {
	known, used := map[string]bool{}, map[string]bool{}
	d.othersDisks(dom, func(disk *hypervisor.Disk) {
		used[disk.Path] = true
		for _, layer := range disk.Chain {
			used[layer.Path] = true
		}
		if disk.Type == "file" && disk.Format == "qcow2" {
			known[disk.Path] = known[disk.Path] || disk.ChainKnown
		}
	})
	for path, stated := range known {
		if stated {
			continue
		}
		lower, err := d.below(ctx, path)
		if err != nil {
			return "", err
		}
		for _, path := range lower {
			used[path] = true
		}
	}
	for path := range used {
		if target := images[filepath.Clean(path)]; target != "" {
			return target, nil
		}
	}
	return sharedName(images, used), nil
}

// below are the images that a qcow2 image lies on, as far as headers can be read.
func (d *Daemon) below(ctx context.Context, path string) (paths []string, err error) {
	for format := "qcow2"; format == "qcow2" && len(paths) < maxChain; {
		var next string
		if next, format, err = d.backing(ctx, path); next == "" || err != nil {
			break
		}
		path = besideOf(path, next)
		paths = append(paths, path)
	}
	return paths, err
}

// othersDisks shows the disks of all other VPS, as they are and as they will be.
func (d *Daemon) othersDisks(dom hypervisor.Domain, see func(*hypervisor.Disk)) {
	d.inventory.each(func(other *hypervisor.Domain) {
		if other.ID == dom.ID {
			return
		}
		for i := range other.Disks {
			see(&other.Disks[i])
		}
		for i := range other.PersistentDisks {
			see(&other.PersistentDisks[i])
		}
	})
}

// imagesOf are the images of a snapshot, by path.
func imagesOf(snap vps.Snapshot) map[string]string {
	images := map[string]string{}
	for _, disk := range snap.Disks {
		images[disk.Base], images[disk.Overlay] = disk.Target, disk.Target
	}
	return images
}
