package work_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"vpssnapd/daemon/work"
)

// TestOnceIsNotBegunTwice: what is under way for a key is not begun again, other keys are,
// and when it is over it can be.
func TestOnceIsNotBegunTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := work.NewGroup()
		hang := make(chan struct{})
		var begun atomic.Int32
		do := func(context.Context) { begun.Add(1); <-hang }
		for range 3 {
			g.Once("read web1", do)
			synctest.Wait()
		}
		g.Once("read web2", do)
		synctest.Wait()
		if n := begun.Load(); n != 2 {
			t.Errorf("%d were begun, not one of each", n)
		}
		close(hang)
		synctest.Wait()
		g.Once("read web1", do)
		g.Wait()
		if n := begun.Load(); n != 3 {
			t.Errorf("after its end it was begun %d times in all", n)
		}
	})
}

// TestStopEndsTheGroup: who works in it is told, and waited for.
func TestStopEndsTheGroup(t *testing.T) {
	g := work.NewGroup()
	ended := false
	g.Go(func(ctx context.Context) { <-ctx.Done(); ended = true })
	g.Stop()
	g.Wait()
	if !ended {
		t.Error("it was not waited for")
	}
}

// TestLockOfAKey: one holds it, others wait until it is free or their time is over, other
// keys are free, and nothing is kept of a key that nobody uses.
func TestLockOfAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lock work.KeyedLock
		release, err := lock.Lock(t.Context(), "web1")
		if err != nil {
			t.Fatal(err)
		}
		other, err := lock.Lock(t.Context(), "web2")
		if err != nil {
			t.Fatal(err)
		}
		other()
		impatient, leave := context.WithCancel(t.Context())
		failed, got := make(chan error, 1), make(chan error, 1)
		go func() { _, err := lock.Lock(impatient, "web1"); failed <- err }()
		go func() {
			release, err := lock.Lock(t.Context(), "web1")
			if err == nil {
				release()
			}
			got <- err
		}()
		synctest.Wait()
		if n := lock.Users("web1"); n != 3 {
			t.Errorf("%d use it, not 3", n)
		}
		leave()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("who gave up got %v", err)
		}
		release()
		if err := <-got; err != nil {
			t.Error(err)
		}
		if n := lock.Users("web1") + lock.Users("web2"); n != 0 {
			t.Errorf("%d use it in the end", n)
		}
	})
}

// TestSignalIsNotCounted: two wakes before the listener looks are one.
func TestSignalIsNotCounted(t *testing.T) {
	s := work.NewSignal()
	s.Wake()
	s.Wake()
	<-s
	select {
	case <-s:
		t.Error("it was counted")
	default:
	}
}
