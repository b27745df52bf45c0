package inventory

import (
	"context"
	"time"

	"vpssnapd/hypervisor"
)

// note keeps what an event says. It comes before anybody is told of the event, so that a
// waiter that wakes sees it counted.
func (v *Inventory) note(e hypervisor.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch e.Kind {
	case hypervisor.EventDisconnected:
		v.connected, v.read = false, false
		v.losses++
	case hypervisor.EventResumed:
		// Of a domain that is not in the picture nobody counts: who works on one has read it.
		if _, known := v.domains[e.Domain]; known {
			v.resumed[e.Domain]++
		}
	}
	if e.Domain == "" {
		v.wakeAllLocked()
		return
	}
	v.wakeLocked(e.Domain)
}

// waiters wait for the next event of one domain.
type waiters struct {
	woken chan struct{}
	n     int
}

// changes returns a channel that is closed at the next event of a domain, or of the
// connection, or when all was read; with "" only at the latter two. The events of
// others wake nobody: a hundred operations at once, each of which reads its domain
// when it is woken, read each domain a hundred times. A waiter that goes before it is
// woken calls leave.
func (v *Inventory) changes(id string) <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.changed[id] == nil {
		v.changed[id] = &waiters{woken: make(chan struct{})}
	}
	v.changed[id].n++
	return v.changed[id].woken
}

// leave gives up one wait for a channel of changes. The last one takes the channel with
// it: of a domain that is gone no event would.
func (v *Inventory) leave(id string, woken <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	w := v.changed[id]
	if w == nil || w.woken != woken {
		return // woken meanwhile
	}
	if w.n--; w.n == 0 {
		delete(v.changed, id)
	}
}

func (v *Inventory) wakeLocked(id string) {
	if w := v.changed[id]; w != nil {
		close(w.woken)
		delete(v.changed, id)
	}
}

func (v *Inventory) wakeAllLocked() {
	for id := range v.changed {
		v.wakeLocked(id)
	}
}

// TimesResumed counts how often a domain's processors began to run.
func (v *Inventory) TimesResumed(id string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.resumed[id]
}

// eventLag is how far events may be behind what is read of a domain.
const eventLag = 500 * time.Millisecond

// ResumedSince reports whether a domain was resumed since it had been so many times.
func (v *Inventory) ResumedSince(ctx context.Context, id string, times int) bool {
	ctx, cancel := context.WithTimeout(ctx, eventLag)
	defer cancel()
	return v.Await(ctx, id, 0, func() (bool, error) { return v.TimesResumed(id) != times, nil }) == nil
}

// Await returns when cond is true or fails, or with ctx's error. It asks cond now, at
// each event of the domain or of the connection (with "" only of the connection), and
// every so often besides; 0: at events only.
func (v *Inventory) Await(ctx context.Context, id string, every time.Duration, cond func() (bool, error)) error {
	for {
		if met, err := v.awaitOnce(ctx, id, every, cond); met || err != nil {
			return err
		}
	}
}

// awaitOnce asks cond, and while it is not met waits for the time to ask it again.
func (v *Inventory) awaitOnce(
	ctx context.Context, id string, every time.Duration, cond func() (bool, error),
) (bool, error) {
	changed := v.changes(id)
	defer v.leave(id, changed)
	if met, err := cond(); met || err != nil {
		return met, err
	}
	var again <-chan time.Time
	if every > 0 {
		again = time.After(every)
	}
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-changed:
	case <-again:
	}
	return false, nil
}
