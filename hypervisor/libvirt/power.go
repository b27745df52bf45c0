package libvirt

import (
	"context"

	"libvirt.org/go/libvirt"

	"vpssnapd/hypervisor"
)

// Suspend stops the guest's processors. It has places of its own, as has Resume: what
// ends a guest's standstill must not queue behind calls that hang.
func (h *Host) Suspend(ctx context.Context, id string) error {
	return do(ctx, h, processors, "suspend", id, func(d *libvirt.Domain) error {
		return unlessState(d, libvirt.DOMAIN_PAUSED, d.Suspend())
	})
}

// Resume lets the guest's processors run.
func (h *Host) Resume(ctx context.Context, id string) error {
	return do(ctx, h, processors, "resume", id, func(d *libvirt.Domain) error {
		return unlessState(d, libvirt.DOMAIN_RUNNING, d.Resume())
	})
}

// unlessState drops an error when the domain is in the wanted state already.
func unlessState(d *libvirt.Domain, want libvirt.DomainState, err error) error {
	if err == nil {
		return nil
	}
	if state, _, e := d.GetState(); e == nil && state == want {
		return nil
	}
	return err
}

// PowerOff ends the QEMU process. libvirt answers when that is gone; an error
// means that even SIGKILL did not end it in time.
func (h *Host) PowerOff(ctx context.Context, id string) error {
	return do(ctx, h, ordinary, "power off", id, func(d *libvirt.Domain) error {
		// Not gracefully: a restore throws away what the guest would still write.
		err := d.Destroy()
		if hasCode(err, libvirt.ERR_NO_DOMAIN) {
			return nil // a transient domain that ended by itself
		}
		if active, e := d.IsActive(); err != nil && e == nil && !active {
			return nil
		}
		return err
	})
}

// Start boots the domain. FORCE_BOOT drops a managed save inside libvirt, where
// none can be made in between.
func (h *Host) Start(ctx context.Context, id string, paused bool) error {
	flags := libvirt.DOMAIN_START_FORCE_BOOT
	if paused {
		flags |= libvirt.DOMAIN_START_PAUSED
	}
	return do(ctx, h, ordinary, "start", id, func(d *libvirt.Domain) error {
		// A start that fails takes away what libvirt could know the running QEMU by again,
		// and one that does not makes a second QEMU: not all storage has locks.
		domain, err := h.readDomain(d)
		if err == nil && domain.Astray != nil {
			err = &hypervisor.AstrayError{Domain: domain}
		}
		if err != nil {
			return err
		}
		err = d.CreateWithFlags(flags)
		if active, e := d.IsActive(); hasCode(err, libvirt.ERR_OPERATION_INVALID) && e == nil && active {
			return nil
		}
		return err
	})
}

// RemoveManagedSave removes the memory image that a start would resume.
func (h *Host) RemoveManagedSave(ctx context.Context, id string) error {
	return do(ctx, h, ordinary, "remove the managed save of", id, func(d *libvirt.Domain) error {
		// Asked first, because to remove none is an error of a general code.
		if saved, err := d.HasManagedSaveImage(0); err != nil || !saved {
			return err
		}
		return d.ManagedSaveRemove(0)
	})
}
