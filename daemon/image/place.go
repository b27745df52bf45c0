package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// Policy says where the files may lie that disks of VPSes lie on.
type Policy struct {
	// Templates are directories, with all below them. None: the directories of the host's
	// storage pools and of the VPSes' own disks, without what is below them.
	Templates []string
}

// places are the files that one disk may lie on. What is asked of the host for that is
// asked when the first layer is met: most disks lie on none.
type places struct {
	i           *Images
	ctx         context.Context //nolint:containedctx // it lives as long as one call
	vps, target string
	top         string // the disk's own image

	read  bool
	own   map[pathname.ID]bool // layers of the VPS's own snapshots
	taken map[pathname.ID]bool // what others write to, and the layers of their snapshots
	dirs  map[pathname.ID]bool // of the VPSes' own disks
}

func (i *Images) placesFor(ctx context.Context, vpsID, target, top string) *places {
	return &places{i: i, ctx: ctx, vps: vpsID, target: target, top: top}
}

// putRight is what an operator does about a backing file in the wrong place.
const putRight = "put the template into a directory of [images] templates (vpssnapd-config(5)), or let the disk " +
	"stand for itself (qemu-img rebase -b \"\", with the VPS off)"

// check gives an Unfit unless the disk may lie on a file: a regular one, in one of the
// directories, that nobody writes to and that is not of another VPS's snapshot. It is
// judged where it really lies, whatever links lead there.
func (p *places) check(path string) error {
	real, err := pathname.Real(path)
	kind := pathname.Kind("")
	if err == nil {
		kind, err = pathname.KindOf(real)
	}
	switch {
	case errors.Is(err, pathname.ErrSilent):
		return fmt.Errorf("%w: %w", hypervisor.ErrUnavailable, err)
	case errors.Is(err, fs.ErrNotExist):
		return unfit(err, "a template cannot be read")
	case err != nil:
		return unfit(err, "a template cannot be read")
	case kind != pathname.Regular:
		return unfit(fmt.Errorf("%s is a %s", path, kind), "its template is not a regular file")
	}
	if err := p.readOnce(); err != nil {
		return err
	}
	file, ok := pathname.Of(real)
	if p.own[file] {
		return nil
	}
	if !ok || p.taken[file] {
		return p.refuse(path, vps.Say("its template belongs to another VPS or to another disk"))
	}
	within, err := p.within(real)
	if err != nil || within {
		return err
	}
	return p.refuse(path, vps.Say("its template does not lie in a directory for templates"))
}

func (p *places) refuse(path string, why vps.Words) error {
	return &Unfit{Why: why, Remedy: vps.Say(putRight), cause: fmt.Errorf("disk %s lies on %s", p.target, path)}
}

// within reports whether a file, by its name without links, lies where backing files may.
func (p *places) within(real string) (bool, error) {
	dir := filepath.Dir(real)
	if templates := p.i.policy().Templates; len(templates) > 0 {
		allowed := idsOf(templates)
		for ; ; dir = filepath.Dir(dir) {
			if id, ok := pathname.Of(dir); ok && allowed[id] {
				return true, nil
			}
			if dir == filepath.Dir(dir) {
				return false, nil
			}
		}
	}
	id, ok := pathname.Of(dir)
	if ok && p.dirs[id] {
		return true, nil
	}
	pools, err := p.i.host.Pools(p.ctx)
	if err != nil {
		return false, fmt.Errorf("the directories of the storage pools are not known: %w", err)
	}
	return ok && idsOf(pools)[id], nil
}

func idsOf(paths []string) map[pathname.ID]bool {
	ids := map[pathname.ID]bool{}
	for _, path := range paths {
		if id, ok := pathname.Of(path); ok {
			ids[id] = true
		}
	}
	return ids
}

// readOnce reads who uses which image.
func (p *places) readOnce() error {
	if p.read {
		return nil
	}
	snapshots, err := p.i.store.Snapshots(p.ctx)
	if err != nil {
		return err
	}
	taken, dirs, own := []string{}, []string{filepath.Dir(p.top)}, []string{}
	p.i.inventory.Each(func(dom *hypervisor.Domain) {
		for _, disks := range [][]hypervisor.Disk{dom.Disks, dom.PersistentDisks} {
			for _, disk := range disks {
				if disk.Type != "file" || disk.Path == "" || disk.Device != "disk" {
					continue
				}
				dir, _ := filepath.Split(disk.Path)
				dirs = append(dirs, dir)
				if !disk.ReadOnly && (dom.ID != p.vps || disk.Target != p.target) {
					taken = append(taken, disk.Path)
				}
			}
		}
		if dom.ID != p.vps && dom.NVRAM != "" {
			taken = append(taken, dom.NVRAM)
		}
	})
	for _, snap := range snapshots {
		for _, disk := range snap.Disks {
			if layers := []string{disk.Base, disk.Overlay, disk.Undo}; snap.VPS == p.vps && disk.Target == p.target {
				own = append(own, layers...)
			} else {
				taken = append(taken, layers...)
			}
		}
	}
	p.own, p.taken, p.dirs, p.read = idsOf(own), idsOf(taken), idsOf(dirs), true
	return nil
}
