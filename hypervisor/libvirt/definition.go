package libvirt

import (
	"errors"
	"fmt"
	"strings"

	"github.com/beevik/etree"

	"vpssnapd/hypervisor"
)

const (
	// metadataPrefix is the short form of hypervisor.MetadataURI.
	metadataPrefix = "vpssnap"

	agentChannel = "org.qemu.guest_agent.0"
)

// definition is a domain's XML as a tree. Types of our own, or libvirtxml's,
// would lose what a newer libvirt writes when a definition is put back.
type definition struct {
	// Tree and document are one: an edit of domain is an edit of doc.
	doc    *etree.Document
	domain *etree.Element
}

// parseDefinition keeps the whole document, also what we do not understand: it may be given
// back to libvirt, and nothing of it may be lost.
func parseDefinition(text string) (*definition, error) {
	doc := etree.NewDocument()
	// A line break in an attribute is kept only as a character reference.
	doc.WriteSettings = etree.WriteSettings{CanonicalText: true, CanonicalAttrVal: true}
	if err := doc.ReadFromString(text); err != nil {
		return nil, fmt.Errorf("a domain's definition is no XML: %w", err)
	}
	domain := doc.Root()
	if domain == nil || domain.FullTag() != "domain" {
		return nil, errors.New("a domain's definition has no <domain>")
	}
	return &definition{doc: doc, domain: domain}, nil
}

// copy returns a definition to edit apart from d.
func (d *definition) copy() *definition {
	doc := d.doc.Copy()
	return &definition{doc: doc, domain: doc.Root()}
}

func (d *definition) text() (string, error) { return d.doc.WriteToString() }

// active reports whether this is the definition of a domain in use.
func (d *definition) active() bool { return d.domain.SelectAttr("id") != nil }

// devices returns the devices with a tag.
func (d *definition) devices(tag string) []*etree.Element {
	if devices := d.domain.SelectElement("devices"); devices != nil {
		return devices.SelectElements(tag)
	}
	return nil
}

// disk returns the element of a disk, nil when there is none.
func (d *definition) disk(target string) *etree.Element {
	for _, e := range d.devices("disk") {
		if attr(e, "target", "dev") == target {
			return e
		}
	}
	return nil
}

// disks reads all disks.
func (d *definition) disks() []hypervisor.Disk {
	var disks []hypervisor.Disk
	for _, e := range d.devices("disk") {
		disk := readDisk(e)
		disk.LookAt()
		disks = append(disks, disk)
	}
	return disks
}

// readDisk takes from a <disk> what we use. The format is what the definition states; it is
// never probed, as a guest can write any header into a raw disk.
func readDisk(e *etree.Element) hypervisor.Disk {
	source := e.SelectElement("source")
	disk := hypervisor.Disk{
		Target:    attr(e, "target", "dev"),
		Device:    e.SelectAttrValue("device", "disk"),
		Type:      e.SelectAttrValue("type", ""),
		Path:      filePath(e),
		Format:    attr(e, "driver", "type"),
		ReadOnly:  e.SelectElement("readonly") != nil,
		Shareable: e.SelectElement("shareable") != nil,
		Transient: e.SelectElement("transient") != nil,
		Encrypted: e.SelectElement("encryption") != nil,
		Job:       e.SelectElement("mirror") != nil,

		SnapshotNo: e.SelectAttrValue("snapshot", "") == "no",
	}
	if source != nil {
		disk.Encrypted = disk.Encrypted || source.SelectElement("encryption") != nil
		disk.Slice = source.SelectElement("slices") != nil
	}
	disk.Chain, disk.ChainKnown = readChain(e)
	return disk
}

// readChain reads what lies below a disk. The chain is known when its end is
// stated, by an empty <backingStore/>.
func readChain(e *etree.Element) (chain []hypervisor.Layer, known bool) {
	// An off-line definition mostly states none; then the headers are all there is
	// (image.Chain).
	for below := e.SelectElement("backingStore"); below != nil; below = below.SelectElement("backingStore") {
		if len(below.ChildElements()) == 0 {
			return chain, true
		}
		chain = append(chain, hypervisor.Layer{Path: filePath(below), Format: attr(below, "format", "type")})
	}
	return chain, false
}

// filePath is the file that a <disk>, <backingStore> or <nvram> names, "" for other sources.
func filePath(e *etree.Element) string {
	if e.SelectAttrValue("type", "") != "file" {
		return ""
	}
	return attr(e, "source", "file")
}

// attr reads an attribute of a child, "" when either is missing.
func attr(e *etree.Element, child, name string) string {
	if c := e.SelectElement(child); c != nil {
		return c.SelectAttrValue(name, "")
	}
	return ""
}

// layer is an image of a disk's chain, as block jobs name it: by number, since
// libvirt finds a path only in the very spelling that it has itself.
type layer struct{ path, name string }

// layers returns a disk's image and what lies below it.
func (d *definition) layers(target string) ([]layer, error) {
	e := d.disk(target)
	if e == nil {
		return nil, fmt.Errorf("%w: %s", hypervisor.ErrNotFound, target)
	}
	var layers []layer
	// The numbers exist only while the domain runs, which is when a merge is asked for.
	number := attr(e, "source", "index")
	for e != nil {
		layers = append(layers, layer{filePath(e), fmt.Sprintf("%s[%s]", target, number)})
		if e = e.SelectElement("backingStore"); e != nil {
			number = e.SelectAttrValue("index", "")
		}
	}
	return layers, nil
}

// agent reads the state of the guest agent's channel.
func (d *definition) agent() hypervisor.AgentState {
	for _, channel := range d.devices("channel") {
		target := channel.SelectElement("target")
		if target == nil || target.SelectAttrValue("name", "") != agentChannel {
			continue
		}
		// libvirt notices an agent by its opening of the channel; whether it answers,
		// only a question tells.
		if target.SelectAttrValue("state", "") == "connected" {
			return hypervisor.AgentConnected
		}
		return hypervisor.AgentDisconnected
	}
	return hypervisor.AgentNone
}

// nvram reads where the UEFI variables are. other reports whether there are some, or
// will be at the next start, without a plain local file to name.
func (d *definition) nvram() (path string, other bool) {
	system := d.domain.SelectElement("os")
	if system == nil {
		return "", false
	}
	if system.SelectElement("varstore") != nil {
		return "", true
	}
	loader, nvram := system.SelectElement("loader"), system.SelectElement("nvram")
	if loader != nil && loader.SelectAttrValue("stateless", "") == "yes" {
		return "", false
	}
	if nvram == nil {
		// libvirt makes the file at the first start, in a place of its own choice.
		flash := loader != nil && loader.SelectAttrValue("type", "") == "pflash" &&
			loader.SelectAttrValue("readonly", "") == "yes"
		return "", flash || system.SelectAttrValue("firmware", "") == "efi"
	}
	if nvram.SelectAttr("type") != nil {
		path = filePath(nvram)
	} else {
		path = strings.TrimSpace(nvram.Text())
	}
	return path, path == ""
}

// tpm reports whether there is a TPM whose state is kept outside the disks.
func (d *definition) tpm() bool {
	for _, tpm := range d.devices("tpm") {
		switch attr(tpm, "backend", "type") {
		case "emulator", "external":
			return true
		}
	}
	return false
}

// metadata returns our element, without the name space that libvirt adds.
func (d *definition) metadata() (string, error) {
	all := d.domain.SelectElement("metadata")
	if all == nil {
		return "", nil
	}
	for _, e := range all.ChildElements() {
		if e.NamespaceURI() != hypervisor.MetadataURI {
			continue
		}
		// A copy: the document may still be given back to libvirt.
		own := etree.NewDocumentWithRoot(e.Copy())
		stripNamespace(own.Root(), e.Space)
		return own.WriteToString()
	}
	return "", nil
}

// stripNamespace makes our metadata read the same under whatever prefix libvirt gives it.
func stripNamespace(e *etree.Element, prefix string) {
	if e.Space == prefix {
		e.Space = ""
	}
	e.RemoveAttr("xmlns:" + prefix)
	for _, child := range e.ChildElements() {
		stripNamespace(child, prefix)
	}
}

// snapshotXML asks for overlays on the named disks, with what the definition says of their
// images. Every other disk is listed too: libvirt makes an overlay of its own for one that
// is not.
func (d *definition) snapshotXML(switches []hypervisor.DiskSwitch) (string, error) {
	doc := etree.NewDocument()
	doc.WriteSettings = d.doc.WriteSettings
	snapshot := doc.CreateElement("domainsnapshot")
	// Disks only. With memory the guest would be paused while all of it is written.
	snapshot.CreateElement("memory").CreateAttr("snapshot", "no")
	list := snapshot.CreateElement("disks")
	overlays := map[string]string{}
	for _, s := range switches {
		if d.disk(s.Target) == nil {
			return "", fmt.Errorf("%w: %s", hypervisor.ErrNotFound, s.Target)
		}
		overlays[s.Target] = s.Overlay
	}
	for _, disk := range d.disks() {
		e := list.CreateElement("disk")
		e.CreateAttr("name", disk.Target)
		overlay, named := overlays[disk.Target]
		if !named {
			e.CreateAttr("snapshot", "no")
			continue
		}
		e.CreateAttr("snapshot", "external")
		e.CreateAttr("type", "file")
		driver, source := e.CreateElement("driver"), e.CreateElement("source")
		driver.CreateAttr("type", "qcow2")
		source.CreateAttr("file", overlay)
		trimmingsOf(d.disk(disk.Target)).putOn(driver, source)
	}
	return doc.WriteToString()
}

// sameSources reports whether two definitions give their disks the same images. Of
// an empty drive only the persistent definition states a format.
func (d *definition) sameSources(other *definition) bool {
	mine, others := d.disks(), other.disks()
	if len(mine) != len(others) {
		return false
	}
	for i := range mine {
		a, b := mine[i], others[i]
		if a.Target != b.Target || a.Type != b.Type || a.Path != b.Path || a.Path != "" && a.Format != b.Format {
			return false
		}
	}
	return true
}
