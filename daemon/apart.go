package daemon

import (
	"context"
	"sync"
)

// apart remembers what is under way beside a loop that looks after all VPSes:
// one whose QEMU or storage hangs must not stall the others.
type apart struct {
	mu   sync.Mutex
	busy map[string]bool
}

// workApart does something for a VPS on a goroutine of its own, unless the same
// is under way for it still: the loop comes back.
func (d *Daemon) workApart(what, id string, work func()) {
	key := what + " " + id
	d.apart.mu.Lock()
	defer d.apart.mu.Unlock()
	if d.apart.busy[key] {
		return
	}
	if d.apart.busy == nil {
		d.apart.busy = map[string]bool{}
	}
	d.apart.busy[key] = true
	d.background(func(context.Context) {
		work()
		d.apart.mu.Lock()
		defer d.apart.mu.Unlock()
		delete(d.apart.busy, key)
	})
}
