package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/durable"
	"vpssnapd/hypervisor/pathname"
)

// switchFlags: QUIESCE is missing on purpose (see Freeze). NO_METADATA leaves no
// snapshot object behind, which would forbid migration and undefine.
const switchFlags = libvirt.DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.DOMAIN_SNAPSHOT_CREATE_ATOMIC |
	libvirt.DOMAIN_SNAPSHOT_CREATE_NO_METADATA | libvirt.DOMAIN_SNAPSHOT_CREATE_REUSE_EXT

const secureInactive = libvirt.DOMAIN_XML_INACTIVE | libvirt.DOMAIN_XML_SECURE

// SwitchToOverlays makes all named disks write to their overlays. Either all of them
// switch or none: QEMU does it in one transaction, and off it is one definition.
func (h *Host) SwitchToOverlays(ctx context.Context, id string, disks []hypervisor.DiskSwitch) error {
	return do(ctx, h, ordinary, "switch the disks of", id, func(d *libvirt.Domain) error {
		active, err := d.IsActive()
		if err != nil {
			return err
		}
		if !active {
			return h.switchOff(ctx, d, disks)
		}
		return h.switchOn(d, disks)
	})
}

// switchOn switches the disks of a running domain. libvirt gives the next boot's definition
// the overlays of the running one; what only the next boot's says of its images, as after an
// edit that waits for it, is put back.
func (h *Host) switchOn(d *libvirt.Domain, disks []hypervisor.DiskSwitch) error {
	live, next, err := readBoth(d)
	if err != nil {
		return err
	}
	text, err := live.snapshotXML(disks)
	if err != nil {
		return err
	}
	snapshot, err := d.CreateSnapshotXML(text, switchFlags)
	for try := 1; isNameTaken(err) && try < maxTakenNames; try++ {
		h.log.Warn("libvirt gave out the name of an image that QEMU has open", "disks", len(disks), "error", err)
		snapshot, err = d.CreateSnapshotXML(text, switchFlags)
	}
	if err != nil {
		err = h.unlessSwitched(d, disks, err)
	} else {
		err = snapshot.Free()
	}
	if err == nil && next != nil {
		h.putBack(d, disks, next)
	}
	return err
}

// maxTakenNames is more names than a switch that was cut off can have left behind: libvirt
// opens each overlay under one number.
const maxTakenNames = 100

// isNameTaken reports whether libvirt gave QEMU a name for an image which one had that a
// libvirt before it opened, and then died. Each try gives out the next name.
func isNameTaken(err error) bool {
	return err != nil && strings.Contains(err.Error(), "Duplicate nodes with node-name")
}

// readBoth reads the definition of a running domain and that of its next boot, nil for a
// transient one.
func readBoth(d *libvirt.Domain) (live, next *definition, err error) {
	if live, err = readDefinition(d, 0); err != nil {
		return nil, nil, err
	}
	if persistent, err := d.IsPersistent(); err != nil || !persistent {
		return live, nil, err
	}
	next, err = readDefinition(d, secureInactive)
	return live, next, err
}

// putBack makes the next boot's definition say of its disks what it said before a switch.
// The disks are switched by then: where it cannot be saved, that is only told.
func (h *Host) putBack(d *libvirt.Domain, disks []hypervisor.DiskSwitch, before *definition) {
	after, err := readDefinition(d, secureInactive)
	if err == nil && after.takeTrimmings(before, disks) {
		err = h.define(d, after)
	}
	if err != nil {
		h.log.Warn("the options of a disk's image are not in the definition any more", "error", err)
	}
}

// unlessSwitched drops the error of a switch that has happened: libvirt fails
// too when the guest writes to the overlays and only the definition could not be
// saved. SyncDefinition tells of that.
func (h *Host) unlessSwitched(d *libvirt.Domain, disks []hypervisor.DiskSwitch, failure error) error {
	live, err := readDefinition(d, 0)
	if err != nil || !live.active() {
		return fmt.Errorf(
			"%w: it is unknown whether the disks were switched: %w", hypervisor.ErrUnavailable,
			errors.Join(failure, err),
		)
	}
	// One disk that did not switch means that none did.
	for _, s := range disks {
		if disk := live.disk(s.Target); disk == nil || !pathname.Same(filePath(disk), s.Overlay) {
			return failure
		}
	}
	h.log.Warn("libvirt switched disks and then failed", "error", failure)
	return nil
}

// switchOff switches the disks of a domain that is off, by its definition. Not
// by libvirt's snapshot call: when that cannot save the definition, it fails but
// keeps the overlays in memory, and the next start writes to them.
func (h *Host) switchOff(ctx context.Context, d *libvirt.Domain, disks []hypervisor.DiskSwitch) error {
	// With secrets: what is defined again without the VNC password has lost it
	// (FAULTS.md, row 12).
	before, err := readDefinition(d, secureInactive)
	if err != nil {
		return err
	}
	after := before.copy()
	for _, s := range disks {
		overlay, err := h.Inspect(ctx, s.Overlay, "qcow2")
		if err != nil {
			return err
		}
		source := hypervisor.DiskSource{Target: s.Target, Path: s.Overlay, Format: "qcow2"}
		if err := after.pointDisk(source, backing(overlay)); err != nil {
			return err
		}
	}
	if err := h.define(d, after); err != nil {
		return err
	}
	// It may have been started in between, on either definition.
	if active, err := d.IsActive(); err != nil || !active {
		return err
	}
	return h.settleSwitch(d, before, after)
}

// settleSwitch finds out what a start in the middle of switchOff has used. If it
// came first, the switch is taken back: it would happen at the next boot.
func (h *Host) settleSwitch(d *libvirt.Domain, before, after *definition) error {
	live, err := readDefinition(d, 0)
	if err != nil {
		return err
	}
	if live.sameSources(after) {
		return nil
	}
	// The definition is as before the call then, which the caller takes as "not
	// switched".
	if err := h.define(d, before); err != nil {
		return fmt.Errorf(
			"%w: it was started meanwhile, and its definition is in doubt: %w", hypervisor.ErrUnavailable, err,
		)
	}
	return fmt.Errorf("%w: it was started meanwhile", hypervisor.ErrBusy)
}

// PointDisks rewrites the named disks' sources in the persistent definition. It is
// durable when this returns; ErrPersistence when libvirt or the disk could not keep it.
func (h *Host) PointDisks(ctx context.Context, id string, disks []hypervisor.DiskSource) error {
	return do(ctx, h, ordinary, "change the definition of", id, func(d *libvirt.Domain) error {
		if err := mustBePersistent(d); err != nil {
			return err
		}
		next, err := readDefinition(d, secureInactive)
		if err != nil {
			return err
		}
		before, err := next.text()
		if err != nil {
			return err
		}
		for _, s := range disks {
			if err := next.pointDisk(s, h.below(ctx, s)); err != nil {
				return err
			}
		}
		after, err := next.text()
		if err != nil {
			return err
		}
		// A definition that is right already need not be one that libvirt takes; it is
		// defined again only where libvirt could not save it.
		if after == before && h.sync(d) == nil {
			return nil
		}
		if err := h.define(d, next); err != nil {
			return err
		}
		return h.sync(d)
	})
}

// SaveDefinition defines the domain as it is. libvirt looks for the emulator and the machine
// type then, and writes the file anew.
func (h *Host) SaveDefinition(ctx context.Context, id string) error {
	return do(ctx, h, ordinary, "save the definition of", id, func(d *libvirt.Domain) error {
		if err := mustBePersistent(d); err != nil {
			return err
		}
		next, err := readDefinition(d, secureInactive)
		if err != nil {
			return err
		}
		if err := h.define(d, next); err != nil {
			return err
		}
		return h.sync(d)
	})
}

// below is what an image lies on by its header. Of one that cannot be read nothing is
// known: then the definition states nothing.
func (h *Host) below(ctx context.Context, s hypervisor.DiskSource) string {
	if s.Format == "raw" {
		return ""
	}
	image, err := h.Inspect(ctx, s.Path, s.Format)
	if err != nil {
		h.log.Warn("not known what an image lies on", "error", err)
		return unknownFile
	}
	return backing(image)
}

// unknownFile is no file's name.
const unknownFile = "\x00"

// backing is the file that an image lies on, "" for none.
func backing(image hypervisor.Image) string {
	below, local := image.Below()
	if !local {
		return unknownFile
	}
	return below
}

// SyncDefinition makes the persistent definition durable.
func (h *Host) SyncDefinition(ctx context.Context, id string) error {
	return do(ctx, h, ordinary, "make durable the definition of", id, func(d *libvirt.Domain) error {
		if err := mustBePersistent(d); err != nil {
			return err
		}
		return h.sync(d)
	})
}

// mustBePersistent refuses a transient domain, which defining would make persistent.
func mustBePersistent(d *libvirt.Domain) error {
	persistent, err := d.IsPersistent()
	if err == nil && !persistent {
		return fmt.Errorf("%w: it is transient", hypervisor.ErrPersistence)
	}
	return err
}

// define makes libvirt save a definition; when it cannot, it keeps the old one.
func (h *Host) define(d *libvirt.Domain, def *definition) error {
	text, err := def.text()
	if err != nil {
		return err
	}
	// On the call's own connection, which is the one that was lent for it.
	c, err := d.DomainGetConnect()
	if err != nil {
		return err
	}
	defer c.Close()
	// Without VALIDATE: an older definition need not pass the schema of today.
	defined, err := c.DomainDefineXMLFlags(text, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", hypervisor.ErrPersistence, err)
	}
	return defined.Free()
}

// sync makes the definition on disk durable: libvirt syncs the file that it
// renames into place, and not the directory. It also saves some changes without
// telling when that failed, so the file must say what libvirt says.
func (h *Host) sync(d *libvirt.Domain) error {
	name, err := d.GetName()
	if err != nil {
		return err
	}
	next, err := readDefinition(d, libvirt.DOMAIN_XML_INACTIVE)
	if err != nil {
		return err
	}
	if err := syncDefinition(h.configDir, name, next); err != nil {
		return fmt.Errorf("%w: %w", hypervisor.ErrPersistence, err)
	}
	return nil
}

// syncDefinition makes libvirt's own file of the definition durable, once it is seen to
// name the right images: libvirt does not sync it, and after a power cut an overlay could
// be in use by a definition that is gone.
func syncDefinition(dir, name string, want *definition) error {
	if name != filepath.Base(name) {
		return fmt.Errorf("%q cannot be a file's name", name)
	}
	path := filepath.Join(dir, name+".xml")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	saved, err := parseDefinition(string(text))
	if err != nil {
		return err
	}
	if !saved.sameSources(want) {
		return fmt.Errorf("%s does not name the disks' present images", path)
	}
	for _, p := range []string{path, dir} {
		if err := durable.Sync(p); err != nil {
			return err
		}
	}
	return nil
}

// SetMetadata stores our XML element in the domain's definition; "" removes it.
func (h *Host) SetMetadata(ctx context.Context, id, xml string) error {
	return do(ctx, h, ordinary, "store the metadata of", id, func(d *libvirt.Domain) error {
		active, err := d.IsActive()
		if err != nil {
			return err
		}
		persistent, err := d.IsPersistent()
		if err != nil {
			return err
		}
		// Both: a migration takes the live definition along, and the persistent one is
		// left after a power-off.
		var impact libvirt.DomainModificationImpact
		if active {
			impact |= libvirt.DOMAIN_AFFECT_LIVE
		}
		if persistent {
			impact |= libvirt.DOMAIN_AFFECT_CONFIG
		}
		return d.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, xml, metadataPrefix, hypervisor.MetadataURI, impact)
	})
}
