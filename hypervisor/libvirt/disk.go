package libvirt

import (
	"fmt"

	"github.com/beevik/etree"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// A <disk> says how the guest sees it, which stays whatever its image, and some things of
// the image itself: libvirt keeps those for each image of a chain, and drops them where a
// disk goes over to an image of which they are not said (found on real hosts: the size of
// qcow2's cache and the labels were gone after a snapshot).

// trimmings is what a <disk> says of its image besides path and format.
type trimmings struct {
	cache  *etree.Element   // <metadata_cache> in <driver>, or in a layer's <format>
	source []*etree.Element // what <source> holds, such as <seclabel>
}

// trimmingsOf reads them from a <disk> or from a <backingStore>.
func trimmingsOf(e *etree.Element) trimmings {
	var t trimmings
	for _, tag := range []string{"driver", "format"} {
		if options := e.SelectElement(tag); options != nil && t.cache == nil {
			t.cache = options.SelectElement("metadata_cache")
		}
	}
	if source := e.SelectElement("source"); source != nil {
		t.source = source.ChildElements()
	}
	return t
}

// putOn adds copies of them where nothing of their kind is said yet.
func (t trimmings) putOn(options, source *etree.Element) {
	if t.cache != nil && options.SelectElement("metadata_cache") == nil {
		options.AddChild(t.cache.Copy())
	}
	said := map[string]bool{}
	for _, e := range source.ChildElements() {
		said[e.Tag] = true
	}
	for _, e := range t.source {
		if !said[e.Tag] {
			source.AddChild(e.Copy())
		}
	}
}

// replace makes an image say these and nothing else. changed reports whether it did not.
func (t trimmings) replace(options, source *etree.Element) (changed bool) {
	before := flat(options) + flat(source)
	if cache := options.SelectElement("metadata_cache"); cache != nil {
		options.RemoveChild(cache)
	}
	for _, e := range source.ChildElements() {
		source.RemoveChild(e)
	}
	t.putOn(options, source)
	return before != flat(options)+flat(source)
}

// flat is an element as text, whatever white space it is laid out with.
func flat(e *etree.Element) string {
	doc := etree.NewDocumentWithRoot(e.Copy())
	doc.Indent(etree.NoIndent)
	text, _ := doc.WriteToString() // into memory, so it cannot fail
	return text
}

// pointDisk makes a disk name another image and keeps all else that is said of it. below is
// what the image lies on by its header, "" for nothing. What was said of an image goes below
// the one that is put over it, in the form that libvirt gives a running chain, and comes
// back with it; a layer that is no longer in the chain is dropped, as what the definition
// states overrides the header.
func (d *definition) pointDisk(s hypervisor.DiskSource, below string) error {
	e := d.disk(s.Target)
	if e == nil {
		return fmt.Errorf("%w: %s", hypervisor.ErrNotFound, s.Target)
	}
	source := e.SelectElement("source")
	if e.SelectAttrValue("type", "") != "file" || source == nil {
		return fmt.Errorf("%w: %s does not use a file", hypervisor.ErrUnsupported, s.Target)
	}
	driver, stated := driverOf(e, source), e.SelectElement("backingStore")
	switch back := find(stated, s.Path); {
	case s.Path != "" && back != nil:
		trimmingsOf(back).putOn(driver, source)
		stated = back.SelectElement("backingStore")
	case pathname.Same(filePath(e), s.Path):
		stated = find(stated, below)
	case below == "":
		stated = nil
	default:
		if stated = find(asLayer(e), below); stated != nil && !saysMore(stated) {
			stated = nil // the header says as much
		}
	}
	setBelow(e, source, stated)
	source.CreateAttr("file", s.Path)
	driver.CreateAttr("type", s.Format)
	if cache := driver.SelectElement("metadata_cache"); cache != nil && s.Format != "qcow2" {
		driver.RemoveChild(cache) // libvirt refuses it for other formats
	}
	return nil
}

// driverOf returns the <driver> of a disk, made before its source when there is none.
func driverOf(e, source *etree.Element) *etree.Element {
	driver := e.SelectElement("driver")
	if driver == nil {
		driver = etree.NewElement("driver")
		driver.CreateAttr("name", "qemu")
		e.InsertChildAt(source.Index(), driver)
	}
	return driver
}

// find finds the layer with an image in a chain; with path "" the chain's end.
func find(layer *etree.Element, path string) *etree.Element {
	for ; layer != nil; layer = layer.SelectElement("backingStore") {
		switch end := len(layer.ChildElements()) == 0; {
		case path == "" && end, path != "" && pathname.Same(filePath(layer), path):
			return layer
		}
	}
	return nil
}

// asLayer is a disk's present image, with the chain below it, as what another lies on.
func asLayer(e *etree.Element) *etree.Element {
	layer := etree.NewElement("backingStore")
	layer.CreateAttr("type", "file")
	format := layer.CreateElement("format")
	format.CreateAttr("type", attr(e, "driver", "type"))
	source := layer.CreateElement("source")
	source.CreateAttr("file", filePath(e))
	trimmingsOf(e).putOn(format, source)
	if below := e.SelectElement("backingStore"); below != nil {
		layer.AddChild(below.Copy())
	}
	return layer
}

// saysMore reports whether a layer says more of its image than the header that names it.
func saysMore(layer *etree.Element) bool {
	t := trimmingsOf(layer)
	return t.cache != nil || len(t.source) > 0 || layer.SelectElement("backingStore") != nil
}

// stateBase makes a disk that states nothing below its image state the base of a merge.
// changed reports whether it did not.
func (d *definition) stateBase(m hypervisor.Merge, format string) (changed bool) {
	e := d.disk(m.Target)
	if e == nil || filePath(e) != m.Top || e.SelectElement("backingStore") != nil {
		return false
	}
	base := etree.NewElement("backingStore")
	base.CreateAttr("type", "file")
	base.CreateElement("format").CreateAttr("type", format)
	base.CreateElement("source").CreateAttr("file", m.Base)
	setBelow(e, e.SelectElement("source"), base)
	return true
}

// setBelow makes a disk state this chain below its image, or none.
func setBelow(e, source, chain *etree.Element) {
	old := e.SelectElement("backingStore")
	if old == chain {
		return
	}
	if old != nil {
		e.RemoveChild(old)
	}
	if chain != nil {
		e.InsertChildAt(source.Index()+1, chain)
	}
}

// takeTrimmings makes switched disks say of their overlays what another definition says of
// the images below. It reports whether they did not.
func (d *definition) takeTrimmings(from *definition, disks []hypervisor.DiskSwitch) (changed bool) {
	for _, s := range disks {
		e, was := d.disk(s.Target), from.disk(s.Target)
		if e == nil || was == nil || filePath(e) != s.Overlay {
			continue // the next boot has another disk there
		}
		source := e.SelectElement("source")
		changed = trimmingsOf(was).replace(driverOf(e, source), source) || changed
	}
	return changed
}
