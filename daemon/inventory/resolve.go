package inventory

import (
	"context"
	"errors"
	"time"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

const (
	// AnswerWithin is how long a request waits for a VPS to be read from the host.
	AnswerWithin = 10 * time.Second
	// ShowWithin is how long a request waits that can do with what was known last.
	ShowWithin = 3 * time.Second
	// HostRead is how long one reading of the host may take.
	HostRead = 30 * time.Second
)

// Resolve finds a VPS by id or name and reads it again from the host.
// Codes: not_found, vps_changed, hypervisor_unavailable.
func (v *Inventory) Resolve(ctx context.Context, ref string) (hypervisor.Domain, error) {
	known, err := v.Look(ctx, ref)
	if err != nil {
		return known, err
	}
	// Whatever the picture says: something is about to be promised or changed.
	dom, err := v.ReadFull(ctx, known.ID)
	if errors.Is(err, hypervisor.ErrNotFound) || err == nil && !bears(dom, ref) {
		// What the picture said is over, and the picture knows it now.
		if known, err = v.Look(ctx, ref); err != nil {
			return known, err
		}
		dom, err = v.ReadFull(ctx, known.ID)
	}
	switch {
	case errors.Is(err, hypervisor.ErrNotFound):
		return dom, fault.NoVPS()
	case errors.Is(err, hypervisor.ErrUnavailable) && v.Ready():
		return known, fault.Silent(known).Because(err)
	case err != nil:
		return dom, fault.Explain("cannot read the VPS", err)
	}
	return dom, nil
}

// bears reports whether ref names a domain, by id or by name.
func bears(dom hypervisor.Domain, ref string) bool {
	return dom.Name == ref || vps.ReadID(ref) == dom.ID
}

// Look finds a VPS as last known. Libvirt is asked before it says that there is none:
// somebody may have defined it, or renamed it, a moment ago (FAULTS.md row 43).
// Codes: not_found, vps_changed, hypervisor_unavailable.
func (v *Inventory) Look(ctx context.Context, ref string) (hypervisor.Domain, error) {
	dom, known := v.Find(ref)
	if !known {
		var err error
		if dom, err = v.Ask(ctx, ref); err != nil {
			return dom, err
		}
	}
	return dom, v.CheckName(ctx, ref, dom)
}

// Ask finds a VPS on the host, and takes it into the picture.
// Codes: not_found, hypervisor_unavailable.
func (v *Inventory) Ask(ctx context.Context, ref string) (hypervisor.Domain, error) {
	if !v.Ready() {
		return hypervisor.Domain{}, fault.Disconnected()
	}
	ctx, cancel := context.WithTimeout(ctx, ShowWithin)
	defer cancel()
	err := hypervisor.ErrNotFound
	var dom hypervisor.Domain
	if id := vps.ReadID(ref); id != "" {
		dom, err = v.Read(ctx, id)
	}
	if errors.Is(err, hypervisor.ErrNotFound) {
		var id string
		if id, err = v.host.Named(ctx, ref); err == nil {
			dom, err = v.Read(ctx, id)
		}
	}
	switch {
	case errors.Is(err, hypervisor.ErrNotFound):
		return dom, fault.NoVPS()
	case err != nil:
		return dom, fault.Explain("cannot look for the VPS", err)
	}
	return dom, nil
}

// IDOf finds a VPS's id; libvirt is asked only when it is not known. The record of a
// VPS that is gone can still be named by its id.
// Codes: not_found, vps_changed, hypervisor_unavailable.
func (v *Inventory) IDOf(ctx context.Context, ref string) (string, error) {
	if _, present := v.Find(ref); !present {
		if id := vps.ReadID(ref); v.names.knows(id) {
			return id, nil
		}
	}
	dom, err := v.Look(ctx, ref)
	return dom.ID, err
}

// IDNow is IDOf for a call that changes something: whoever has a name in the picture is
// looked at first, since the name may be another VPS's by now.
func (v *Inventory) IDNow(ctx context.Context, ref string) (string, error) {
	if known, ok := v.Find(ref); ok && v.Ready() && vps.ReadID(ref) != known.ID {
		reading, cancel := context.WithTimeout(ctx, ShowWithin)
		defer cancel()
		if _, err := v.Read(reading, known.ID); err != nil {
			v.logger.Debug("domain not read", "vps", known.ID, "error", err) // what was known last must do
		}
	}
	return v.IDOf(ctx, ref)
}

// Lock takes the lock of a VPS, under which nobody else changes what is recorded of
// it. Waiting ends with ctx: the holder may be stuck in a call of libvirt.
func (v *Inventory) Lock(ctx context.Context, id string) (release func(), err error) {
	return v.locks.Lock(ctx, id)
}

// LockUsers counts who holds the lock of a VPS or waits for it.
func (v *Inventory) LockUsers(id string) int { return v.locks.Users(id) }

// LockAndRead takes the lock of a VPS and reads it. Each may take AnswerWithin: who was
// far behind in the queue for the lock has the whole time for the host.
// Codes: not_found, vps_changed, hypervisor_unavailable.
func (v *Inventory) LockAndRead(ctx context.Context, ref string) (release func(), dom hypervisor.Domain, err error) {
	for {
		id, err := v.IDOf(ctx, ref)
		if err != nil {
			return nil, dom, err
		}
		release, err = v.lockWithin(ctx, id, AnswerWithin)
		if err != nil {
			return nil, dom, vps.Errorf(
				vps.CodeHypervisorUnavailable, "another request for %s waits for its host", v.Name(id),
			).WithRemedy("try again in a while").Because(err)
		}
		dom, err = v.resolveWithin(ctx, ref, AnswerWithin)
		if err == nil && dom.ID == id {
			return release, dom, nil
		}
		release()
		if err != nil {
			return nil, dom, err
		}
		// Its name went to another VPS while the lock was waited for.
	}
}

func (v *Inventory) lockWithin(ctx context.Context, id string, limit time.Duration) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return v.Lock(ctx, id)
}

func (v *Inventory) resolveWithin(ctx context.Context, ref string, limit time.Duration) (hypervisor.Domain, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return v.Resolve(ctx, ref)
}
