package bus

import (
	"context"
	"time"

	"github.com/godbus/dbus/v5"

	"vpssnapd/daemon/vps"
)

// Events tells what happens.
type Events interface {
	Events(ctx context.Context, after int64) (vps.EventPage, error)
}

// progressEvery is how often the progress of operations is told.
const progressEvery = time.Second

// follower tells a bus what happens.
type follower struct {
	*server
	ctx  context.Context
	conn *dbus.Conn
	// running are the operations that are not finished, with what was told of them last.
	running map[string]vps.Progress
}

// follow tells the bus what happens, until ctx or the connection ends.
func (s *server) follow(ctx context.Context, conn *dbus.Conn) error {
	f := &follower{server: s, ctx: ctx, conn: conn, running: map[string]vps.Progress{}}
	// First, so that an operation that begins while the list is read comes as an event.
	page, err := s.Services.Events.Events(ctx, vps.FromNow)
	if err != nil {
		return err
	}
	// Without progress being told, a page that was open over a restart would freeze.
	for _, status := range []vps.Status{vps.StatusPending, vps.StatusRunning} {
		begun, err := s.Services.Operations.Operations(ctx, vps.OperationQuery{Status: status, Limit: mostListed})
		if err != nil {
			return err
		}
		for _, op := range begun.Operations {
			f.running[op.ID] = op.Progress
		}
	}
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		after := page.After
		// A gap (Missed) needs no care: properties are sent as they are now.
		if len(page.Events) > 0 {
			after = page.Events[len(page.Events)-1].ID
		}
		if err := f.tell(page.Events); err != nil {
			return err
		}
		if len(page.Events) == 0 {
			if err := f.await(page.Changed, tick); err != nil {
				return err
			}
		}
		if page, err = s.Services.Events.Events(ctx, after); err != nil {
			return err
		}
	}
}

// await returns when there are more events. Meanwhile it tells of progress.
func (f *follower) await(changed <-chan struct{}, tick *time.Ticker) error {
	for {
		select {
		case <-changed:
			return nil
		case <-f.ctx.Done():
			return f.ctx.Err()
		case <-f.conn.Context().Done():
			return errBusGone
		case <-tick.C:
			if err := f.progress(); err != nil {
				return err
			}
		}
	}
}

// progress tells of the operations that have got on. One that has ended without an event, or
// whose event was missed, is told of for the last time.
func (f *follower) progress() error {
	// Only what changed is told: a quiet operation costs the bus nothing.
	for id, told := range f.running {
		op, err := f.Services.Operations.Operation(f.ctx, id)
		if vps.CodeOf(err) == vps.CodeNotFound { // ended so long ago that it is kept no more
			delete(f.running, id)
			continue
		}
		if err != nil {
			return err
		}
		now, over := op.Progress, ended(op.Status)
		if over || now.Percent != told.Percent || now.DoneBytes != told.DoneBytes || now.Note != told.Note {
			if err := f.changed(operationPath(id), operationInterface, operationProperties(op)); err != nil {
				return err
			}
			f.running[id] = now
		}
		if over {
			delete(f.running, id)
		}
	}
	return nil
}

// ended reports whether an operation gets on no further by itself.
func ended(s vps.Status) bool { return s.Final() || s == vps.StatusNeedsAttention }

// tell tells of events. An object that has several of them is told of once. Properties
// are read after the events, so they are as new as the last of them.
func (f *follower) tell(events []vps.Event) error {
	known, operations := map[string]bool{}, map[string]bool{}
	for _, e := range events {
		if e.VPS != "" && e.Type != vps.EventMessage {
			known[e.VPS] = true
		}
		if e.Operation != nil {
			operations[e.Operation.ID] = true
		}
		if err := f.signal(e); err != nil {
			return err
		}
	}
	for id := range operations {
		op, err := f.Services.Operations.Operation(f.ctx, id)
		if vps.CodeOf(err) == vps.CodeNotFound {
			continue // kept no more
		}
		if err != nil {
			return err
		}
		if err := f.changed(operationPath(id), operationInterface, operationProperties(op)); err != nil {
			return err
		}
	}
	for id := range known {
		// As last known: a VPS whose QEMU hangs must not hold up the signals of all
		// others.
		v, err := f.Services.Overview.KnownVPS(f.ctx, id)
		if err != nil {
			continue // it has gone, or libvirt has
		}
		if err := f.changed(vpsPath(id), vpsInterface, vpsProperties(v)); err != nil {
			return err
		}
	}
	return nil
}

// signal sends the signal of an event, if it has one.
func (f *follower) signal(e vps.Event) error {
	if o := e.Operation; o != nil {
		if ended(o.Status) {
			delete(f.running, o.ID)
		} else {
			// Not what the event says, so that the first progress is told in any case.
			f.running[o.ID] = vps.Progress{}
		}
		return f.conn.Emit(managerPath, managerInterface+".OperationChanged", operationPath(o.ID), vpsPath(e.VPS),
			text(e.VPSName), string(o.Kind), string(o.Status), text(o.Step))
	}
	if p := e.Space; p != nil {
		return f.conn.Emit(managerPath, managerInterface+".SpaceAlarm", string(p.Level), text(p.Path),
			bytes(p.TotalBytes), bytes(p.FreeBytes), bytes(p.FullInSeconds))
	}
	return nil
}

// changed tells the properties of an object that are told of at all. With values and not
// as invalidated, which saves every client a call.
func (f *follower) changed(path dbus.ObjectPath, iface string, all dict) error {
	told := dict{}
	for _, p := range emitted(iface) {
		told[p] = all[p]
	}
	return f.conn.Emit(path, propertiesInterface+".PropertiesChanged", iface, told, []string{})
}
