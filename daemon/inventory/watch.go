package inventory

import (
	"context"
	"time"

	"vpssnapd/hypervisor"
)

// Watcher is told what happens on the host: each function on a goroutine that may
// wait, after those of the watchers that subscribed before. nil: not told.
type Watcher struct {
	// Connected: everything was read since libvirt answers (again).
	Connected func(context.Context)
	// Defined: somebody defined the VPS, perhaps again.
	Defined func(ctx context.Context, id string)
	// Changed: its state or its devices changed; it may have come from another host.
	Changed func(ctx context.Context, id string)
	// Job: a block job of it became ready, ended or failed.
	Job func(ctx context.Context, id string)
	// Departed: it was migrated to another host.
	Departed func(ctx context.Context, id string)
	// Undefined: its definition was removed.
	Undefined func(ctx context.Context, id string)
}

// Subscribe adds a watcher; not once Watch runs.
func (v *Inventory) Subscribe(w Watcher) { v.watchers = append(v.watchers, w) }

// tell calls one function of every watcher.
func (v *Inventory) tell(ctx context.Context, id string, which func(Watcher) func(context.Context, string)) {
	for _, w := range v.watchers {
		if told := which(w); told != nil {
			told(ctx, id)
		}
	}
}

// Watch keeps the picture by the host's events until ctx ends. It waits for nobody: what
// an event asks for is done beside it.
func (v *Inventory) Watch(ctx context.Context) {
	events := v.host.Events()
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			v.note(e)
			v.react(e)
		}
	}
}

// react begins what an event asks for.
func (v *Inventory) react(e hypervisor.Event) {
	switch e.Kind {
	case hypervisor.EventConnected:
		v.group.Go(v.readHost)
	case hypervisor.EventDisconnected:
		v.logger.Warn("libvirt does not answer any more")
	case hypervisor.EventDefined:
		v.group.Go(func(ctx context.Context) {
			v.tell(ctx, e.Domain, func(w Watcher) func(context.Context, string) { return w.Defined })
		})
	case hypervisor.EventDeparted:
		v.group.Go(func(ctx context.Context) {
			v.tell(ctx, e.Domain, func(w Watcher) func(context.Context, string) { return w.Departed })
		})
	case hypervisor.EventUndefined:
		v.group.Go(func(ctx context.Context) {
			v.refreshWithin(ctx, e.Domain) // at once: its name may be given away
			v.tell(ctx, e.Domain, func(w Watcher) func(context.Context, string) { return w.Undefined })
		})
	case hypervisor.EventChanged, hypervisor.EventJob:
		v.follow(e)
	}
}

// follow deals soon with an event that a domain changed, or a job of it.
func (v *Inventory) follow(e hypervisor.Event) {
	if !v.followers.add(e) {
		return
	}
	v.group.Go(func(ctx context.Context) {
		for kind, some := v.followers.next(e.Domain); some; kind, some = v.followers.next(e.Domain) {
			v.refreshLater(ctx, e.Domain)
			which := func(w Watcher) func(context.Context, string) { return w.Job }
			if kind == hypervisor.EventChanged {
				which = func(w Watcher) func(context.Context, string) { return w.Changed }
			}
			v.tell(ctx, e.Domain, which)
		}
	})
}

// readHost reads every domain, trying until it works or the connection is lost
// again: the next connection begins again. That libvirt did not answer in time is no loss.
func (v *Inventory) readHost(ctx context.Context) {
	for losses := v.TimesLost(); ; {
		reading, cancel := context.WithTimeout(ctx, HostRead)
		err := v.Reload(reading)
		cancel()
		if err == nil {
			v.logger.Info("libvirt answers", "domains", len(v.All()))
			for _, w := range v.watchers {
				if w.Connected != nil {
					w.Connected(ctx)
				}
			}
			return
		}
		if ctx.Err() != nil || v.TimesLost() != losses {
			return
		}
		v.logger.Warn("domains not read", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// RefreshDefined reads a domain that somebody has defined. Beside an operation that
// is mostly the operation's own work, of which it reads the outcome itself while the
// guest is paused: then it can wait.
func (v *Inventory) RefreshDefined(ctx context.Context, id string) {
	if v.workedOn(ctx, id) {
		v.RefreshSoon(ctx, id, refreshLagBeside)
		return
	}
	v.Refresh(ctx, id)
}

// refreshLater reads a domain after an event, unless somebody else does.
func (v *Inventory) refreshLater(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, HostRead)
	defer cancel()
	lag := refreshLag
	if v.workedOn(ctx, id) {
		lag = refreshLagBeside
	}
	v.RefreshSoon(ctx, id, lag)
}

// workedOn reports whether an operation of that VPS is under way.
func (v *Inventory) workedOn(ctx context.Context, id string) bool {
	_, err := v.store.ActiveOperation(ctx, id)
	return err == nil
}

func (v *Inventory) refreshWithin(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, HostRead)
	defer cancel()
	v.Refresh(ctx, id)
}

// AskSilent reads the VPSes again that did not answer: no event tells that one does.
// Once at a time for each: the call may hang as long as its QEMU does.
func (v *Inventory) AskSilent(ctx context.Context) {
	for _, id := range v.silentOnes() {
		v.group.Once("read "+id, func(context.Context) { v.refreshWithin(ctx, id) })
	}
}
