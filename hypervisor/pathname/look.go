package pathname

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// lookLimit is how long a file system may take to tell about a file. One that is
	// alive takes microseconds, a sick array seconds, a dead NFS mount for ever.
	lookLimit = 5 * time.Second
	// lookPatience is how long a look must have taken before its directory counts as
	// hung although its caller, not the limit, gave up.
	lookPatience = time.Second
)

// ErrSilent means that a file system does not answer.
var ErrSilent = errors.New("the file system does not answer")

// all are the looks of this process: each that hangs has one of its threads.
var all looks

// looks are the calls on file systems that somebody gave up waiting for, by directory.
// While one hangs the next callers are told at once.
type looks struct {
	mu   sync.Mutex
	hung map[string]int
}

func (l *looks) hangs(dir string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hung[dir] > 0
}

// giveUp counts a call until it returns after all.
func (l *looks) giveUp(dir string, returned <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hung == nil {
		l.hung = map[string]int{}
	}
	l.hung[dir]++
	go func() {
		<-returned
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.hung[dir]--; l.hung[dir] == 0 {
			delete(l.hung, dir)
		}
	}()
}

// Look asks the file system of dir for something, which changes nothing, and waits for no
// longer than lookLimit and ctx. ErrSilent, with the directory's name, when it does not
// answer: a dead mount must not stop those who watch all the others (FAULTS row 46).
func Look[T any](ctx context.Context, dir string, ask func() (T, error)) (T, error) {
	var answer T
	if all.hangs(dir) {
		return answer, fmt.Errorf("%w for a while: %q", ErrSilent, dir)
	}
	var err error
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		answer, err = ask()
	}()
	began, limit := time.Now(), time.NewTimer(lookLimit)
	defer limit.Stop()
	select {
	case <-returned:
		return answer, err
	case <-limit.C:
		all.giveUp(dir, returned)
	case <-ctx.Done():
		if time.Since(began) < lookPatience {
			var none T
			return none, fmt.Errorf("the file system of %q was not waited for: %w", dir, context.Cause(ctx))
		}
		all.giveUp(dir, returned)
	}
	var none T
	return none, fmt.Errorf("%w: %q", ErrSilent, dir)
}
