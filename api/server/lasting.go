package server

import (
	"context"
	"sync"

	"vpssnapd/daemon/vps"
)

// lastingOfOne is how many calls that stay open, streams of events and waits for
// operations, a caller may have at a time. Each has a connection: the rest of what an
// address may have is for others who call from there.
const lastingOfOne = connsOfOne * 3 / 4

// lasting counts the calls that stay open, by caller.
type lasting struct {
	mu sync.Mutex
	of map[string]int
}

// enter counts one in. Root is not held to the limit. Codes: rate_limited.
func (l *lasting) enter(ctx context.Context) (leave func(), err error) {
	who := callerOf(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.of[who.id]; n >= lastingOfOne && !who.root {
		return nil, vps.Errorf(vps.CodeRateLimited, "%d streams and waits of %s are open already", n, who.actor.Name).
			WithRemedy("end some of them: one stream of events tells of all VPS that a token sees")
	}
	if l.of == nil {
		l.of = map[string]int{}
	}
	l.of[who.id]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.of[who.id]--; l.of[who.id] == 0 {
			delete(l.of, who.id)
		}
	}, nil
}
