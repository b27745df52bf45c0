package fake

import (
	"context"
	"errors"
	"fmt"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// SwitchToOverlays makes all named disks write to their overlays.
func (h *Host) SwitchToOverlays(ctx context.Context, id string, disks []hypervisor.DiskSwitch) error {
	if err := h.switchToOverlays(ctx, id, disks); err != nil {
		return fmt.Errorf("cannot switch domain %s to overlays: %w", id, err)
	}
	return nil
}

func (h *Host) switchToOverlays(ctx context.Context, id string, disks []hypervisor.DiskSwitch) error {
	if err := h.reach(ctx, "SwitchToOverlays.before", id); err != nil {
		return err
	}
	var before []hypervisor.Disk
	err := h.update(id, func(d *domain) error {
		if d.State == hypervisor.Suspended {
			return fmt.Errorf("%w: the guest is asleep", hypervisor.ErrUnsupported)
		}
		// Kept for the second half: by then the live disks name the overlays.
		before = d.shown().Disks
		// All are looked at before the first is changed: QEMU's transaction switches all
		// or none.
		for _, s := range disks {
			if err := h.switchable(d, before, s); err != nil {
				return err
			}
		}
		if !d.active() {
			return nil
		}
		for _, s := range disks {
			disk, err := find(d.Disks, s.Target)
			if err != nil {
				return err
			}
			if err := putOverlay(disk, s.Overlay); err != nil {
				return err
			}
		}
		return d.reopen()
	})
	if err != nil {
		return err
	}
	// Seen when libvirtd dies in the call (FAULTS.md, row 44): the guest writes to
	// overlays that no definition on disk names.
	if err := h.reach(ctx, "SwitchToOverlays.half", id); err != nil {
		return err
	}
	err = h.update(id, func(d *domain) error {
		if !d.active() {
			d.tell(hypervisor.EventDefined)
		}
		return d.saveOverlays(before, disks)
	})
	if err != nil {
		return err
	}
	return h.reach(ctx, "SwitchToOverlays.after", id)
}

// switchable says why a disk cannot take its overlay. libvirt checks only that the file
// exists and has the stated type; the fake is stricter, so that tests find what the real
// host would let pass.
func (h *Host) switchable(d *domain, disks []hypervisor.Disk, s hypervisor.DiskSwitch) error {
	disk, err := find(disks, s.Target)
	if err != nil {
		return err
	}
	if _, busy := d.Jobs[s.Target]; busy {
		return fmt.Errorf("%w: %s has a block job", hypervisor.ErrBusy, s.Target)
	}
	if disk.Type != "file" || disk.Device != "disk" || disk.ReadOnly || disk.Shareable || disk.Transient {
		return fmt.Errorf("%w: disk %s", hypervisor.ErrUnsupported, s.Target)
	}
	l, err := readLayer(s.Overlay, "qcow2")
	if err != nil {
		return err
	}
	if !pathname.Same(l.header.Backing, disk.Path) || l.header.BackingFormat != disk.Format {
		return fmt.Errorf("%s is not an overlay of %s", s.Overlay, disk.Path)
	}
	return h.unused("", s.Overlay)
}

// putOverlay lays an overlay on a disk of a definition that states its chain.
func putOverlay(disk *hypervisor.Disk, overlay string) error {
	chain, err := layers(disk)
	if err != nil {
		return err
	}
	disk.Path, disk.Format = overlay, "qcow2"
	disk.Chain, disk.ChainKnown = chain, true
	return nil
}

// saveOverlays brings the switch into the persistent definition. As in libvirt
// the chain is stated there only after a switch of a running guest, and a disk
// that was defined again meanwhile is left alone.
func (d *domain) saveOverlays(before []hypervisor.Disk, disks []hypervisor.DiskSwitch) error {
	for _, s := range disks {
		was, err := find(before, s.Target)
		if err != nil {
			return err
		}
		disk, err := find(d.PersistentDisks, s.Target)
		if errors.Is(err, hypervisor.ErrNotFound) || disk.Path != was.Path {
			continue
		}
		if err := putOverlay(disk, s.Overlay); err != nil {
			return err
		}
		// Off, libvirt drops the stated chain and trusts the header.
		if !d.active() {
			disk.Chain, disk.ChainKnown = nil, false
		}
	}
	return nil
}
