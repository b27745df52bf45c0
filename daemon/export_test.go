package daemon

import "context"

// LookAtSpace looks at the file systems once, as watchSpace does by itself.
func (d *Daemon) LookAtSpace(ctx context.Context) { d.lookAtSpace(ctx) }

// Waiting counts who has the lock of a VPS, or waits for it.
func (d *Daemon) Waiting(id string) int {
	d.locks.mu.Lock()
	defer d.locks.mu.Unlock()
	if l := d.locks.held[id]; l != nil {
		return l.users
	}
	return 0
}

// AllEventsRead says that listeners can have every event there is.
func (d *Daemon) AllEventsRead(ctx context.Context) bool {
	last, err := d.store.LastEvent(ctx)
	return err == nil && d.events.newest() == last
}
