package image

import (
	"context"
	"fmt"
	"time"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// An image that two VPS use, one of them perhaps as what its linked clone lies
// on, must not be merged into, and a snapshot of it is none.

// SharedDisk names the disk (by target) whose image another VPS of this host
// uses too, as far as libvirt states it, perhaps by another name; "" when there is
// none. images is by path.
func (i *Images) SharedDisk(ctx context.Context, dom hypervisor.Domain, images map[string]string) (target string) {
	others := map[string]bool{}
	i.othersDisks(dom, func(disk *hypervisor.Disk) {
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
	return i.sharedFile(ctx, images, others)
}

// sharedWait is how long the files of other VPSes may take to tell which they are.
const sharedWait = 2 * time.Second

// sharedFile finds what is the same file by another name, through a link of either
// kind. Where the storage of another VPS hangs, this one must not wait for it.
func (i *Images) sharedFile(ctx context.Context, images map[string]string, others map[string]bool) string {
	found := make(chan string, 1)
	go func() { found <- sharedName(images, others) }()
	late := time.NewTimer(sharedWait)
	defer late.Stop()
	select {
	case target := <-found:
		return target
	case <-late.C:
		i.logger.Warn("not known whether an image has two names: the storage of a VPS does not answer")
	case <-ctx.Done():
	}
	return ""
}

// sharedName does so, and waits as long as it takes. images is by path.
func sharedName(images map[string]string, others map[string]bool) string {
	own := map[pathname.ID]string{}
	for path, target := range images {
		if id, ok := pathname.Of(path); ok {
			own[id] = target
		}
	}
	for path := range others {
		if id, ok := pathname.Of(path); ok && own[id] != "" {
			return own[id]
		}
	}
	return ""
}

// sharedBelow does the same for what libvirt does not state: the chains of VPS
// that are off stand in the headers of their images, and an image may be named by
// another path, through a link.
func (i *Images) sharedBelow(ctx context.Context, dom hypervisor.Domain, images map[string]string) (string, error) {
	known, used := map[string]bool{}, map[string]bool{}
	i.othersDisks(dom, func(disk *hypervisor.Disk) {
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
		lower, err := i.below(ctx, path)
		if err != nil {
			return "", err
		}
		for _, path := range lower {
			used[path] = true
		}
	}
	for path := range used {
		if target := images[path]; target != "" {
			return target, nil // also where its file system does not answer
		}
	}
	return sharedName(images, used), nil
}

// othersDisks shows the disks of all other VPS, as they are and as they will be.
func (i *Images) othersDisks(dom hypervisor.Domain, see func(*hypervisor.Disk)) {
	i.inventory.Each(func(other *hypervisor.Domain) {
		if other.ID == dom.ID {
			return
		}
		for n := range other.Disks {
			see(&other.Disks[n])
		}
		for n := range other.PersistentDisks {
			see(&other.PersistentDisks[n])
		}
	})
}

// Of are the images of a snapshot, by path.
func Of(snap vps.Snapshot) map[string]string {
	images := map[string]string{}
	for _, disk := range snap.Disks {
		images[disk.Base], images[disk.Overlay] = disk.Target, disk.Target
	}
	return images
}

// comparedAtOnce is how many deletions compare their images with those of all other
// VPSes at the same time, which takes a process for each image that was not asked yet:
// of a hundred that began at once, that was a third of the heap. An image that does
// not answer holds up all the same who must ask it, and that is every deletion.
const comparedAtOnce = 4

// CheckUnshared makes sure that no other VPS uses what is about to be merged.
func (i *Images) CheckUnshared(ctx context.Context, dom hypervisor.Domain, images map[string]string) error {
	if err := i.comparing.Acquire(ctx, 1); err != nil {
		return err
	}
	defer i.comparing.Release(1)
	target := i.SharedDisk(ctx, dom, images)
	var err error
	if target == "" {
		target, err = i.sharedBelow(ctx, dom, images)
	}
	if err != nil {
		return fmt.Errorf("what the images of other VPSes lie on is not known: %w", err)
	}
	if target == "" {
		return nil
	}
	return vps.Errorf(vps.CodeVPSChanged,
		"cannot merge disk %s of %s: another VPS of this host uses an image of the snapshot, and would change with it",
		target, dom.Name).
		WithRemedy("give the other VPS a disk of its own (virsh domblklist), then ask for the same again")
}
