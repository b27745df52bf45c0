package hypervisor

import (
	"path/filepath"
	"slices"
	"strings"

	"vpssnapd/hypervisor/pathname"
)

// Is reports whether the disk uses the file with that name, whatever the definition calls it.
func (d *Disk) Is(path string) bool { return pathname.Same(d.Path, path) }

// LookAt notes what the disk's file source leads to, without opening it: libvirt itself
// hangs when it opens a named pipe, and an overlay of a device would lie in /dev, which is
// memory (FAULTS row 41).
func (d *Disk) LookAt() {
	d.NotFile = ""
	if d.Type != "file" || d.Path == "" {
		return
	}
	if kind, err := pathname.KindOf(d.Path); err == nil && kind != pathname.Regular {
		d.NotFile = string(kind)
	}
}

// LiesOn reports whether the definition names a file below the disk's image.
func (d *Disk) LiesOn(path string) bool {
	for _, layer := range d.Chain {
		if pathname.Same(layer.Path, path) {
			return true
		}
	}
	return false
}

// Files are all files that the domain refers to in its definitions, as they name them.
func (d *Domain) Files() []string {
	var names []string
	for _, disks := range [][]Disk{d.Disks, d.PersistentDisks} {
		for _, disk := range disks {
			names = append(names, disk.Path)
			for _, layer := range disk.Chain {
				names = append(names, layer.Path)
			}
		}
	}
	return slices.DeleteFunc(append(names, d.NVRAM), func(name string) bool { return name == "" })
}

// Uses reports whether the domain refers to a file anywhere in its definitions.
func (d *Domain) Uses(path string) bool {
	return slices.ContainsFunc(d.Files(), func(name string) bool { return pathname.Same(name, path) })
}

// Below is the backing file that an image's header names, as QEMU resolves the name: from
// the directory in the image's own name. "" when there is none. local is false when the
// header names no file, but json:, nbd:, rbd: or the like.
func (i *Image) Below() (path string, local bool) {
	if i.Backing == "" || filepath.IsAbs(i.Backing) {
		return i.Backing, true
	}
	// QEMU takes a colon before the first slash for a protocol.
	if first, _, _ := strings.Cut(i.Backing, "/"); strings.Contains(first, ":") {
		return "", false
	}
	dir, _ := filepath.Split(i.Path)
	return dir + i.Backing, true // not joined: that would take "x/.." away, which may lead elsewhere
}

// LiesOn reports whether the image's header names this file, in this format, as what it
// lies on.
func (i *Image) LiesOn(path, format string) bool {
	below, local := i.Below()
	return local && i.BackingFormat == format && pathname.Same(below, path)
}
