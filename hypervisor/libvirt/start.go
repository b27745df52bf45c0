package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
)

// CheckStart looks for what a start would miss: an ISO that was deleted, or a network that
// was stopped, while the domain runs is noticed by nobody until its next start.
func (h *Host) CheckStart(ctx context.Context, id string) error {
	var files, links []string
	err := do(ctx, h, ordinary, "check the start of", id, func(d *libvirt.Domain) error {
		next, err := readDefinition(d, libvirt.DOMAIN_XML_INACTIVE)
		if err != nil {
			return err
		}
		files, links = next.neededFiles(), next.neededLinks()
		return checkNetworks(d, next.neededNetworks())
	})
	if err != nil {
		return err
	}
	for _, path := range files {
		if h.missing(ctx, path) {
			return fmt.Errorf("%w: %s is missing", hypervisor.ErrNoStart, path)
		}
	}
	for _, link := range links {
		if h.missing(ctx, filepath.Join("/sys/class/net", link)) {
			return fmt.Errorf("%w: there is no network device %s", hypervisor.ErrNoStart, link)
		}
	}
	return nil
}

func (h *Host) missing(ctx context.Context, path string) bool {
	_, err := h.Stat(ctx, filepath.Clean(path))
	return errors.Is(err, fs.ErrNotExist)
}

// neededFiles are the local files without which QEMU does not start. libvirt leaves an
// optional medium out (domain XML format, startupPolicy).
func (d *definition) neededFiles() (files []string) {
	for _, e := range d.devices("disk") {
		if attr(e, "source", "startupPolicy") != "optional" {
			files = append(files, filePath(e))
		}
	}
	if system := d.domain.SelectElement("os"); system != nil {
		for _, tag := range []string{"loader", "kernel", "initrd", "dtb"} {
			if e := system.SelectElement(tag); e != nil {
				files = append(files, strings.TrimSpace(e.Text()))
			}
		}
	}
	var named []string
	for _, path := range files {
		if filepath.IsAbs(path) {
			named = append(named, path)
		}
	}
	return named
}

// neededLinks are the host's bridges and network devices that the domain is connected to.
func (d *definition) neededLinks() (links []string) {
	for _, e := range d.devices("interface") {
		link := ""
		switch e.SelectAttrValue("type", "") {
		case "bridge":
			link = attr(e, "source", "bridge")
		case "direct":
			link = attr(e, "source", "dev")
		}
		// Of Open vSwitch's bridges the kernel need not know.
		if link != "" && attr(e, "virtualport", "type") != "openvswitch" && !strings.Contains(link, "/") {
			links = append(links, link)
		}
	}
	return links
}

// neededNetworks are libvirt's own networks that the domain is connected to.
func (d *definition) neededNetworks() (networks []string) {
	for _, e := range d.devices("interface") {
		if name := attr(e, "source", "network"); e.SelectAttrValue("type", "") == "network" && name != "" {
			networks = append(networks, name)
		}
	}
	return networks
}

func checkNetworks(d *libvirt.Domain, names []string) error {
	if len(names) == 0 {
		return nil
	}
	c, err := d.DomainGetConnect()
	if err != nil {
		return err
	}
	defer c.Close()
	for _, name := range names {
		if active, known := networkActive(c, name); known && !active {
			return fmt.Errorf("%w: network %s is not active (virsh net-start)", hypervisor.ErrNoStart, name)
		}
	}
	return nil
}

// networkActive asks libvirt's network driver, which may be missing: then nothing is known.
func networkActive(c *libvirt.Connect, name string) (active, known bool) {
	n, err := c.LookupNetworkByName(name)
	if err != nil {
		return false, hasCode(err, libvirt.ERR_NO_NETWORK)
	}
	defer n.Free()
	active, err = n.IsActive()
	return active, err == nil
}
