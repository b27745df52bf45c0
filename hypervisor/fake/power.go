package fake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// Suspend stops the guest's processors.
func (h *Host) Suspend(ctx context.Context, id string) error {
	return h.call(ctx, "Suspend", id, func(d *domain) error {
		switch d.State {
		case hypervisor.Off:
			return hypervisor.ErrOff
		// Any other state has no processors that run; that is no error.
		case hypervisor.Running:
			d.State, d.PauseReason = hypervisor.Paused, hypervisor.PausedByUser
			d.tell(hypervisor.EventChanged)
		}
		return nil
	})
}

// Resume lets them run again.
func (h *Host) Resume(ctx context.Context, id string) error {
	return h.call(ctx, "Resume", id, func(d *domain) error {
		switch d.State {
		case hypervisor.Off:
			return hypervisor.ErrOff
		case hypervisor.Paused:
			d.State, d.PauseReason = hypervisor.Running, ""
			// Told whoever resumed it: the daemon cannot tell its own from others by the
			// event.
			d.tell(hypervisor.EventChanged, hypervisor.EventResumed)
		case hypervisor.Suspended, hypervisor.Crashed:
			return fmt.Errorf("%w: the domain is %s", hypervisor.ErrUnsupported, d.State)
		}
		return nil
	})
}

// PowerOff ends the QEMU process.
func (h *Host) PowerOff(ctx context.Context, id string) error {
	return h.call(ctx, "PowerOff", id, func(d *domain) error {
		if d.active() {
			d.off()
		}
		return nil
	})
}

// Start boots the domain, without any managed save image.
func (h *Host) Start(ctx context.Context, id string, paused bool) error {
	return h.call(ctx, "Start", id, func(d *domain) error {
		if d.active() {
			return nil
		}
		return h.boot(d, paused)
	})
}

func (h *Host) boot(d *domain, paused bool) error {
	live := slices.Clone(d.PersistentDisks)
	// libvirt completes the chain from the headers at each start.
	for i := range live {
		disk := &live[i]
		chain, err := layers(disk)
		if err != nil {
			return err
		}
		if len(chain) > 0 {
			disk.Chain, disk.ChainKnown = chain[1:], true
		}
	}
	d.Disks = live
	if err := d.reopen(); err != nil {
		return err
	}
	if err := h.lockable(d); err != nil {
		return err
	}
	d.ManagedSave, d.MigratedAway = false, false
	// By this a test tells a reboot from a guest that ran on.
	d.Guest.Boots++
	d.State, d.PauseReason = hypervisor.Running, ""
	d.tell(hypervisor.EventChanged)
	if paused {
		d.State, d.PauseReason = hypervisor.Paused, hypervisor.PausedByUser
	} else {
		d.tell(hypervisor.EventResumed)
	}
	return nil
}

// CheckStart looks for the images.
func (h *Host) CheckStart(ctx context.Context, id string) error {
	return h.call(ctx, "CheckStart", id, func(d *domain) error {
		for _, disk := range d.PersistentDisks {
			if disk.Type != "file" || disk.Path == "" {
				continue
			}
			if _, err := inodeOf(disk.Path); errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%w: %s is missing", hypervisor.ErrNoStart, disk.Path)
			}
		}
		return nil
	})
}

// lockable is ErrBusy when QEMU's image locks would refuse the start: a disk
// written by two, a base written by another, or a merge off-line under way.
func (h *Host) lockable(d *domain) error {
	all, err := h.loadAll()
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.ID == d.ID {
			continue
		}
		for p := range d.Open {
			if _, shared := o.Open[p]; shared && (d.writes(p) || o.writes(p)) {
				return fmt.Errorf("%w: %s has %s open", hypervisor.ErrBusy, o.Name, p)
			}
		}
	}
	held, err := hold(unix.LOCK_SH, slices.Collect(maps.Keys(d.Open))...)
	letGo(held)
	return err
}

// writes reports whether the guest, or a merge under it, writes to path alone. Shareable
// disks have no lock.
func (d *domain) writes(path string) bool {
	for _, j := range d.Jobs {
		if pathname.Same(j.Base, path) {
			return true
		}
	}
	return slices.ContainsFunc(d.Disks, func(disk hypervisor.Disk) bool {
		return disk.Is(path) && !disk.ReadOnly && !disk.Shareable
	})
}

// reads reports whether an image lies below one that the guest writes to.
func (d *domain) reads(path string) bool {
	return slices.ContainsFunc(d.Disks, func(disk hypervisor.Disk) bool {
		return slices.ContainsFunc(disk.Chain, func(l hypervisor.Layer) bool { return pathname.Same(l.Path, path) })
	})
}

// RemoveManagedSave removes the memory image that a start would resume.
func (h *Host) RemoveManagedSave(ctx context.Context, id string) error {
	return h.call(ctx, "RemoveManagedSave", id, func(d *domain) error {
		d.ManagedSave = false
		return nil
	})
}
