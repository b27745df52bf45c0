package daemon

import (
	"context"
	"sync"
)

// keyedMutex is one lock per VPS. Waiting for it ends with the waiter's context:
// who holds it may be stuck in a call of libvirt.
type keyedMutex struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	taken chan struct{} // holds one word while somebody has the lock
	users int
}

// acquire locks key and returns the unlock, or ctx's error.
func (k *keyedMutex) acquire(ctx context.Context, key string) (release func(), err error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*keyLock{}
	}
	l := k.held[key]
	if l == nil {
		l = &keyLock{taken: make(chan struct{}, 1)}
		k.held[key] = l
	}
	l.users++
	k.mu.Unlock()
	select {
	case l.taken <- struct{}{}:
		return func() { <-l.taken; k.leave(key, l) }, nil
	case <-ctx.Done():
		k.leave(key, l)
		return nil, ctx.Err()
	}
}

func (k *keyedMutex) leave(key string, l *keyLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.held, key)
	}
}
