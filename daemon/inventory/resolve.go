package inventory

import (
	"context"
	"errors"
	"strings"
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
	known, ok := v.Find(ref)
	if !ok {
		if !v.Ready() {
			return known, fault.Disconnected()
		}
		return known, fault.NoVPS()
	}
	if err := v.CheckName(ctx, ref, known); err != nil {
		return known, err
	}
	// Whatever the picture says: something is about to be promised or changed.
	dom, err := v.ReadFull(ctx, known.ID)
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

// IDOf finds a VPS's id without asking libvirt. The record of a VPS that is gone can
// still be named by its id. Codes: not_found, vps_changed, hypervisor_unavailable.
func (v *Inventory) IDOf(ctx context.Context, ref string) (string, error) {
	if dom, ok := v.Find(ref); ok {
		return dom.ID, v.CheckName(ctx, ref, dom)
	}
	if id := strings.ToLower(ref); v.names.knows(id) {
		return id, nil
	}
	if !v.Ready() {
		return "", fault.Disconnected()
	}
	return "", fault.NoVPS()
}

// Lock takes the lock of a VPS, under which nobody else changes what is recorded of
// it. Waiting ends with ctx: the holder may be stuck in a call of libvirt.
func (v *Inventory) Lock(ctx context.Context, id string) (release func(), err error) {
	return v.locks.Lock(ctx, id)
}

// LockUsers counts who holds the lock of a VPS or waits for it.
func (v *Inventory) LockUsers(id string) int { return v.locks.Users(id) }

// LockAndRead takes the lock of a VPS and reads it, within AnswerWithin.
// Codes: not_found, hypervisor_unavailable.
func (v *Inventory) LockAndRead(ctx context.Context, id string) (release func(), dom hypervisor.Domain, err error) {
	ctx, cancel := context.WithTimeout(ctx, AnswerWithin)
	defer cancel()
	release, err = v.Lock(ctx, id)
	if err != nil {
		return nil, dom, vps.Errorf(vps.CodeHypervisorUnavailable, "another request for %s waits for its host", v.Name(id)).
			WithRemedy("try again in a while").Because(err)
	}
	if dom, err = v.Resolve(ctx, id); err != nil {
		release()
	}
	return release, dom, err
}
