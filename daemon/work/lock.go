package work

import (
	"context"
	"sync"
)

// KeyedLock is one lock per key, as one per VPS. Waiting for it ends with the
// waiter's context: the holder may be stuck in a call of libvirt. Its zero value is
// ready for use.
type KeyedLock struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	taken chan struct{} // has one entry while somebody holds the lock
	users int
}

// Lock locks key and returns the unlock, or ctx's error.
func (k *KeyedLock) Lock(ctx context.Context, key string) (release func(), err error) {
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

// Users counts who holds the lock of a key or waits for it.
func (k *KeyedLock) Users(key string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l := k.held[key]; l != nil {
		return l.users
	}
	return 0
}

func (k *KeyedLock) leave(key string, l *keyLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.held, key)
	}
}
