package daemontest

import (
	"context"
	"errors"
	"slices"

	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// At has something done, once, when the next call comes to a point of the fake host
// (fake.Hook). An error is that of the call.
func (h *Host) At(point string, do func(ctx context.Context) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at[point] = append(h.at[point], do)
}

// reached is the hook of the fake host.
func (h *Host) reached(ctx context.Context, point, _ string) error {
	h.mu.Lock()
	todo, err := h.at[point], h.broken[point]
	if len(todo) == 0 || err != nil {
		h.mu.Unlock()
		return err
	}
	h.at[point] = todo[1:]
	h.mu.Unlock()
	return todo[0](ctx)
}

// Break lets every call fail that comes to a point, until mend is called.
func (h *Host) Break(point string, err error) (mend func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken[point] = err
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.broken, point)
	}
}

// Where operations can be held: when they run, and can still be cancelled.
const (
	InTake   = "CreateOverlay.before"
	InDelete = "AllowMerge.before"
)

// Hold keeps the next operation that comes to a point there, until release is called,
// it is cancelled or the daemon stops. reached is closed when it is there.
func (h *Host) Hold(point string) (reached <-chan struct{}, release func()) {
	there, free := make(chan struct{}), make(chan struct{})
	h.At(point, func(ctx context.Context) error {
		close(there)
		select {
		case <-free:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return there, func() { close(free) }
}

// FillUp lets the next take fail: there is no room for its overlay.
func (h *Host) FillUp() {
	h.At(InTake, func(context.Context) error { return hypervisor.ErrNoSpace })
}

// CancelNext has the next take cancelled while it runs.
func (h *Host) CancelNext() {
	h.At(InTake, func(ctx context.Context) error {
		page, err := h.Daemon.Operations.Operations(ctx, vps.OperationQuery{Status: vps.StatusRunning, Limit: 1})
		if err != nil || len(page.Operations) == 0 {
			return errors.Join(err, errors.New("no operation runs"))
		}
		if _, err := h.Daemon.Operations.CancelOperation(ctx, page.Operations[0].ID, panel); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	})
}

// ParkNext lets the next deletion, of the snapshot of a VPS that is off, wait for an
// operator: somebody has saved the VPS's memory meanwhile. Cure ends that.
func (h *Host) ParkNext(id string) {
	h.At(InDelete, func(context.Context) error { return h.saveMemory(id, true) })
}

// Cure drops the saved memory of a VPS.
func (h *Host) Cure(id string) error { return h.saveMemory(id, false) }

func (h *Host) saveMemory(id string, saved bool) error {
	return h.Edit(id, func(d *hypervisor.Domain) { d.ManagedSave = saved })
}

// LoseMetadata takes our copy of the record out of a VPS's definition.
func (h *Host) LoseMetadata(id string) error {
	return h.Edit(id, func(d *hypervisor.Domain) { d.Metadata = "" })
}

// GiveAway removes a VPS from the host and gives its name to another one.
func (h *Host) GiveAway(name string) error {
	v, err := h.Daemon.Overview.ShowVPS(context.Background(), name)
	if err != nil {
		return err
	}
	if err := errors.Join(h.KillGuest(v.ID), h.Undefine(v.ID)); err != nil {
		return err
	}
	if _, err = h.define(name, "vdb"); err != nil { // the image of the other is still there
		return err
	}
	return Eventually(v.ID+" is gone", func() bool {
		list, err := h.Daemon.Overview.ListVPS(context.Background())
		return err == nil && !slices.ContainsFunc(list, func(other vps.VPS) bool { return other.ID == v.ID })
	})
}

// AddVPS adds one with an active option, which is off.
func (h *Host) AddVPS(name string) (id string, err error) {
	if id, err = h.define(name, "vda"); err != nil {
		return id, err
	}
	return id, h.Order(id, "order-1")
}

// define adds a VPS and waits until the daemon knows it.
func (h *Host) define(name, target string) (id string, err error) {
	id, err = h.Define(name, hypervisor.Disk{Target: target, SizeBytes: DiskBytes})
	if err != nil {
		return id, err
	}
	return id, Eventually(id+" is known", func() bool {
		_, err := h.Daemon.Overview.ShowVPS(context.Background(), id)
		return err == nil
	})
}
