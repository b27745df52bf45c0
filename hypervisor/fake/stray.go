package fake

import (
	"context"
	"fmt"
	"slices"

	"vpssnapd/hypervisor"
)

// stray is a disk of a guest that uses an overlay of which libvirt knows nothing.
type stray struct {
	Disk    hypervisor.Disk // as QEMU uses it
	Merging bool            // into what libvirt believes to be the disk
}

// ForgetSwitch makes libvirt forget a switch that QEMU has made: as if it had died before
// it could write it down. The guest goes on to use its overlays.
func (h *Host) ForgetSwitch(id string) error {
	return h.update(id, func(d *domain) error {
		d.Stray = map[string]stray{}
		for i, disk := range d.Disks {
			below, err := layers(&d.Disks[i])
			if err != nil {
				return err
			}
			if len(below) < 2 {
				continue
			}
			d.Stray[disk.Target] = stray{Disk: disk}
			d.Disks[i].Path, d.Disks[i].Format = below[1].Path, below[1].Format
			d.Disks[i].Chain, d.Disks[i].ChainKnown = below[2:], true
		}
		return nil
	})
}

// Forget makes libvirt take a running domain for off, as when it cannot read its own note
// of it; Remember makes it know the domain again.
func (h *Host) Forget(id string) error {
	return h.update(id, func(d *domain) error {
		if !d.active() {
			return hypervisor.ErrOff
		}
		d.Forgotten = true
		d.tell(hypervisor.EventChanged)
		return nil
	})
}

// Remember ends Forget.
func (h *Host) Remember(id string) error {
	return h.update(id, func(d *domain) error {
		d.Forgotten = false
		d.tell(hypervisor.EventChanged)
		return nil
	})
}

// forgottenPID stands for the process of a fake guest.
const forgottenPID = 4711

// forgotten is a domain as libvirt tells it that has forgotten that it runs.
func forgotten(d hypervisor.Domain) hypervisor.Domain {
	d.State, d.PauseReason, d.Disks = hypervisor.Unknown, "", d.PersistentDisks
	d.Astray = &hypervisor.Astray{PID: forgottenPID, Status: "/run/libvirt/qemu/" + d.Name + ".xml", Jobless: true}
	return d
}

// refuse is how a call ends for such a domain.
func (d *domain) refuse(call string) error {
	switch call {
	case "Start":
		return &hypervisor.AstrayError{Domain: forgotten(d.Domain)}
	case "PowerOff":
		return nil // it is off already
	}
	return hypervisor.ErrOff
}

// TakeBackSwitch takes back a switch of which libvirt knows nothing. A merge is ready at
// the next call.
func (h *Host) TakeBackSwitch(
	ctx context.Context, id string, disks []hypervisor.DiskSwitch, pivot bool,
) (hypervisor.Job, error) {
	var all hypervisor.Job
	err := h.call(ctx, "TakeBackSwitch", id, func(d *domain) error {
		if !d.active() {
			return hypervisor.ErrOff
		}
		for _, s := range disks {
			if err := d.expectStray(s); err != nil {
				return err
			}
		}
		all = hypervisor.Job{Ready: true}
		for _, s := range disks {
			job, err := d.takeBack(s.Target, pivot)
			if err != nil {
				return err
			}
			all.Found, all.Ready = all.Found || job.Found, all.Ready && (job.Ready || !job.Found)
		}
		all.Ready = all.Ready && all.Found
		return nil
	})
	if err != nil {
		return hypervisor.Job{}, err
	}
	return all, nil
}

// expectStray is ErrReplaced unless libvirt does not know of an overlay, and it is open at
// most as a switch that was forgotten leaves it.
func (d *domain) expectStray(s hypervisor.DiskSwitch) error {
	disk, err := d.live(s.Target)
	if err != nil {
		return err
	}
	_, open := d.Open[s.Overlay]
	used, lost := d.Stray[s.Target]
	if disk.Path == s.Overlay || lost && used.Disk.Path != s.Overlay || open && !lost {
		return fmt.Errorf("%w: disk %s", hypervisor.ErrReplaced, s.Target)
	}
	return nil
}

// takeBack does the next thing for one disk.
func (d *domain) takeBack(target string, pivot bool) (hypervisor.Job, error) {
	lost, found := d.Stray[target]
	if !found {
		return hypervisor.Job{}, nil
	}
	chain, err := layers(&lost.Disk)
	if err != nil {
		return hypervisor.Job{}, err
	}
	span := slices.Clone(chain[:2])
	switch {
	case !lost.Merging:
		lost.Merging = true
		d.Stray[target] = lost
		return hypervisor.Job{Found: true}, copyDown(span, 1, 2)
	case !pivot:
		return hypervisor.Job{Found: true, Ready: true}, nil
	}
	if err := copyDown(span, 1, 1); err != nil {
		return hypervisor.Job{}, err
	}
	delete(d.Stray, target)
	return hypervisor.Job{}, d.reopen()
}
