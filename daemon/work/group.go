// Package work has what every part of the daemon needs to work beside others: a
// group of goroutines that end together, a lock per key, and a signal.
package work

import (
	"context"
	"sync"
)

// Group is the goroutines of one daemon. They share a context, which ends when the
// daemon stops.
type Group struct {
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
	once sync.Map // the keys of what is under way
}

// NewGroup makes a group without goroutines.
func NewGroup() *Group {
	ctx, stop := context.WithCancel(context.Background())
	return &Group{ctx: ctx, stop: stop}
}

// Context ends when the group is told to stop.
func (g *Group) Context() context.Context { return g.ctx }

// Go runs do on a goroutine of its own.
func (g *Group) Go(do func(context.Context)) { g.wg.Go(func() { do(g.ctx) }) }

// Once is Go, unless the same key is still under way: a loop that looks after all
// VPSes must not be stalled by one whose QEMU or storage hangs, and comes back.
// (singleflight would keep a waiter for every call meanwhile.)
func (g *Group) Once(key string, do func(context.Context)) {
	if _, busy := g.once.LoadOrStore(key, true); busy {
		return
	}
	g.Go(func(ctx context.Context) {
		defer g.once.Delete(key)
		do(ctx)
	})
}

// Stop tells every goroutine to end.
func (g *Group) Stop() { g.stop() }

// Wait returns when all have ended.
func (g *Group) Wait() { g.wg.Wait() }
