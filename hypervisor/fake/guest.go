package fake

import (
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"vpssnapd/hypervisor"
)

var (
	// ErrFrozen: the guest's file systems are frozen; its write waits.
	ErrFrozen = errors.New("the guest is frozen")
	// ErrStopped: the guest's processors are stopped; it writes nothing.
	ErrStopped = errors.New("the guest is stopped")
)

// Guest is what a guest would tell of itself.
type Guest struct {
	Frozen  bool
	Freezes int // how often it was frozen in all
	Boots   int
}

// Define makes a persistent domain that is off and returns its id. Of each disk it reads
// Target and SizeBytes, and where set Format (qcow2 when not), Device, Type, Path,
// ReadOnly, Shareable, Transient, and of Chain the first layer, on which the image is
// made. A disk of type file without a Path gets a new image, unless its size is 0: then
// it is empty. It is an operator's hand, not a call of the daemon: no fault meets it.
func (h *Host) Define(name string, disks ...hypervisor.Disk) (string, error) {
	id := newID()
	return id, h.DefineAs(id, name, disks...)
}

// DefineAs is Define with an id that the caller has chosen.
func (h *Host) DefineAs(id, name string, disks ...hypervisor.Disk) error {
	d := &domain{Domain: hypervisor.Domain{
		ID: id, Name: name, State: hypervisor.Off, Persistent: true,
	}}
	err := h.locked(func() error {
		all, err := h.loadAll()
		if err != nil {
			return err
		}
		// libvirt refuses two domains of one name too.
		if slices.ContainsFunc(all, func(o *domain) bool { return o.Name == name }) {
			return errors.New("the name is taken")
		}
		for _, disk := range disks {
			if err := h.equip(d, disk); err != nil {
				return err
			}
		}
		// What a panel keeps in its own database does not learn of overlays: see
		// Redefine.
		d.Panel = slices.Clone(d.PersistentDisks)
		return h.save(d)
	})
	if err != nil {
		return fmt.Errorf("cannot define fake domain %s: %w", name, err)
	}
	h.emit([]hypervisor.Event{{Kind: hypervisor.EventDefined, Domain: d.ID, Name: name}})
	return nil
}

// equip gives a new domain a disk, and the disk its image.
func (h *Host) equip(d *domain, disk hypervisor.Disk) error {
	if disk.Type == "" {
		disk.Type = "file"
	}
	if disk.Device == "" {
		disk.Device = "disk"
	}
	if disk.Format == "" {
		disk.Format = "qcow2"
	}
	if disk.Type == "file" && disk.Path == "" && disk.SizeBytes > 0 {
		disk.Path = filepath.Join(h.ImageDir(), d.Name+"-"+disk.Target+"."+disk.Format)
		header := record{Format: disk.Format, Size: disk.SizeBytes}
		if len(disk.Chain) > 0 {
			header.Backing, header.BackingFormat = disk.Chain[0].Path, disk.Chain[0].Format
		}
		if err := createLayer(disk.Path, 0o600, header); err != nil {
			return err
		}
	}
	// An off-line definition of libvirt states no chain either.
	disk.Chain, disk.ChainKnown = nil, false
	d.PersistentDisks = append(d.PersistentDisks, disk)
	return nil
}

// newID makes a random UUID.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Redefine defines the domain again as a panel does from its own database: the disks are
// those of Define, our metadata is gone. Seen on libvirt 9.0: a definition from outside
// wipes our metadata and points the disks at the bases.
func (h *Host) Redefine(id string) error {
	return h.update(id, func(d *domain) error {
		d.PersistentDisks = slices.Clone(d.Panel)
		d.Metadata = ""
		d.Persistent = true
		d.tell(hypervisor.EventDefined)
		return nil
	})
}

// RedefineWith defines the domain anew with other disks, as a panel that builds a definition
// of its own; our metadata is gone.
func (h *Host) RedefineWith(id string, disks []hypervisor.Disk) error {
	return h.update(id, func(d *domain) error {
		d.PersistentDisks, d.Metadata = slices.Clone(disks), ""
		d.tell(hypervisor.EventDefined)
		return nil
	})
}

// Undefine removes the persistent definition; the images stay.
func (h *Host) Undefine(id string) error {
	return h.update(id, func(d *domain) error {
		d.Persistent = false
		d.PersistentDisks, d.Metadata = nil, ""
		// A running domain becomes transient, and is gone when it goes off.
		d.gone = !d.active()
		d.tell(hypervisor.EventUndefined)
		return nil
	})
}

// DefineAgain puts the persistent definition of a domain back that was undefined
// while it was off.
func (h *Host) DefineAgain(dom hypervisor.Domain) error {
	d := &domain{Domain: dom, Panel: slices.Clone(dom.PersistentDisks)}
	d.Disks = nil
	if err := h.locked(func() error { return h.save(d) }); err != nil {
		return fmt.Errorf("cannot define fake domain %s again: %w", dom.Name, err)
	}
	h.emit([]hypervisor.Event{{Kind: hypervisor.EventDefined, Domain: dom.ID, Name: dom.Name}})
	return nil
}

// Edit changes anything of a domain behind everybody's back: pause it by an I/O error,
// give it NVRAM or a TPM, another state. Disks are the live ones. Its caller keeps the
// picture consistent; nothing is checked.
func (h *Host) Edit(id string, change func(d *hypervisor.Domain)) error {
	return h.update(id, func(d *domain) error {
		change(&d.Domain)
		d.tell(hypervisor.EventChanged)
		return nil
	})
}

// SetAgent gives the guest an agent of some mind.
func (h *Host) SetAgent(id string, mind AgentMind) error {
	return h.update(id, func(d *domain) error {
		d.Mind = mind
		d.tell(hypervisor.EventChanged)
		return nil
	})
}

// Guest asks the guest itself.
func (h *Host) Guest(id string) (Guest, error) {
	var g Guest
	err := h.look(id, func(d *domain) error {
		g = d.Guest
		return nil
	})
	return g, err
}

// KillGuest ends the QEMU process, as a crash or the guest's own power-off does.
func (h *Host) KillGuest(id string) error {
	return h.update(id, func(d *domain) error {
		if !d.active() {
			return hypervisor.ErrOff
		}
		d.off()
		return nil
	})
}

// Depart lets the running guest migrate to another host; the definition stays. With
// shared storage the files stay in use, by the other host.
func (h *Host) Depart(id string) error {
	return h.update(id, func(d *domain) error {
		if !d.active() {
			return hypervisor.ErrOff
		}
		d.off()
		d.MigratedAway = true
		d.tell(hypervisor.EventDeparted, hypervisor.EventChanged)
		return nil
	})
}

// Arrive lets a guest that departed come back, with the definition that it left.
func (h *Host) Arrive(id string) error {
	return h.update(id, func(d *domain) error {
		if err := h.boot(d, false); err != nil {
			return err
		}
		d.tell(hypervisor.EventDefined)
		return nil
	})
}

// ManagedSave saves the guest's memory and ends its QEMU process.
func (h *Host) ManagedSave(id string) error {
	return h.update(id, func(d *domain) error {
		if !d.active() {
			return hypervisor.ErrOff
		}
		d.off()
		// Start drops it, as FORCE_BOOT does on the real host.
		d.ManagedSave = true
		return nil
	})
}

// ForeignJob starts a block job that is not a merge, such as a backup.
// FailMerge ends it.
func (h *Host) ForeignJob(id, target string) error {
	return h.update(id, func(d *domain) error {
		if _, err := d.live(target); err != nil {
			return err
		}
		if d.Jobs == nil {
			d.Jobs = map[string]job{}
		}
		d.Jobs[target] = job{Foreign: true, Left: Never}
		return nil
	})
}

// FinishMerge makes a merge ready, or ends it in the middle of a chain.
func (h *Host) FinishMerge(id, target string) error {
	return h.update(id, func(d *domain) error {
		if _, ok := d.Jobs[target]; !ok {
			return hypervisor.ErrNotFound
		}
		return d.finish(target)
	})
}

// FailMerge ends a job, a merge as an error in the base does: the overlay stays whole.
// What was copied stays in the base (FAULTS.md, fact 1).
func (h *Host) FailMerge(id, target string) error {
	return h.update(id, func(d *domain) error {
		delete(d.Jobs, target)
		d.tell(hypervisor.EventJob)
		return nil
	})
}

// Write writes pattern over a range of a disk, as a running guest, or as an operator
// while the domain is off. It goes to the top layer of what the guest has open, so a
// stale definition shows as data that went astray.
func (h *Host) Write(id, target string, offset int64, pattern byte, length int64) error {
	return h.write(id, target, offset, pattern, length, func(*domain) bool { return true })
}

// GuestWrite is Write by the guest itself: while the domain is off it is ErrStopped.
func (h *Host) GuestWrite(id, target string, offset int64, pattern byte, length int64) error {
	return h.write(id, target, offset, pattern, length, (*domain).active)
}

func (h *Host) write(id, target string, offset int64, pattern byte, length int64, possible func(*domain) bool) error {
	err := h.look(id, func(d *domain) error {
		switch {
		case !possible(d):
			return ErrStopped
		case d.Guest.Frozen:
			return ErrFrozen
		case d.active() && d.State != hypervisor.Running:
			return ErrStopped
		}
		chain, err := d.view(target)
		if err != nil {
			return err
		}
		top, err := readLayer(chain[0].Path, chain[0].Format)
		if err != nil {
			return err
		}
		if offset < 0 || length < 0 || offset+length > top.header.Size {
			return errors.New("beyond the end of the disk")
		}
		return appendTo(chain[0].Path, record{Offset: offset, Length: length, Pattern: pattern})
	})
	if err != nil {
		return fmt.Errorf("cannot write to %s of fake domain %s: %w", target, id, err)
	}
	return nil
}

// Read returns what the guest reads from a disk.
func (h *Host) Read(id, target string, offset, length int64) (data []byte, err error) {
	err = h.look(id, func(d *domain) error {
		chain, err := d.view(target)
		if err != nil {
			return err
		}
		data, err = readChain(chain, offset, length)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read %s of fake domain %s: %w", target, id, err)
	}
	return data, nil
}

// view returns the layers that the guest sees. An image that was exchanged or
// removed under a running guest is an error: its QEMU has the old file still.
func (d *domain) view(target string) ([]hypervisor.Layer, error) {
	disks := d.PersistentDisks
	if d.active() {
		disks = d.Disks
	}
	disk, err := find(disks, target)
	if err != nil {
		return nil, err
	}
	if lost, ok := d.Stray[target]; ok {
		disk = &lost.Disk
	}
	chain, err := layers(disk)
	if err != nil {
		return nil, err
	}
	if len(chain) == 0 {
		return nil, errors.New("there is no image")
	}
	if !d.active() {
		return chain, nil
	}
	for _, l := range chain {
		inode, err := inodeOf(l.Path)
		if err != nil {
			return nil, err
		}
		// A test that read the new file here would call a guest restored that still runs
		// on the old disk.
		if inode != d.Open[l.Path] {
			return nil, fmt.Errorf("%s was replaced while the guest has it open", l.Path)
		}
	}
	return chain, nil
}

// ReadImage returns what a guest would read from an image and its backing files.
func (h *Host) ReadImage(path, format string, offset, length int64) (data []byte, err error) {
	err = h.locked(func() error {
		chain, err := headerChain(path, format)
		if err != nil {
			return err
		}
		data, err = readChain(chain, offset, length)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read image %s: %w", path, err)
	}
	return data, nil
}
