package daemon

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vpssnapd/hypervisor"
)

// TestChangesOfOneDomain: an event wakes who waits for its domain, and nobody else.
func TestChangesOfOneDomain(t *testing.T) {
	v := newInventory(nil, nil, nil)
	woken := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	web1, again, web2, all := v.changes("web1"), v.changes("web1"), v.changes("web2"), v.changes("")
	v.note(hypervisor.Event{Kind: hypervisor.EventJob, Domain: "web1"})
	if !woken(web1) || !woken(again) || woken(web2) || woken(all) {
		t.Error("an event of web1 does not wake those who wait for it, and only them")
	}
	web1 = v.changes("web1")
	if woken(web1) {
		t.Error("who waits anew is woken by what was before")
	}
	v.note(hypervisor.Event{Kind: hypervisor.EventDisconnected})
	if !woken(web1) || !woken(web2) || !woken(all) {
		t.Error("the loss of the connection does not wake everybody")
	}
}

// slowHost answers when it is allowed to.
type slowHost struct {
	hypervisor.Host
	asked, answer chan struct{}
}

func (h slowHost) Domain(_ context.Context, id string) (hypervisor.Domain, error) {
	h.asked <- struct{}{}
	<-h.answer
	return hypervisor.Domain{ID: id}, nil
}

// TestRefreshesAreGathered: what is asked for while one reading is under way needs one
// more, which begins after all of them had asked.
func TestRefreshesAreGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := slowHost{asked: make(chan struct{}), answer: make(chan struct{})}
		v := newInventory(h, nil, func(...hypervisor.Domain) {})
		var done sync.WaitGroup
		done.Go(func() { v.refresh(t.Context(), "web1") })
		<-h.asked
		for range 5 {
			done.Go(func() { v.refresh(t.Context(), "web1") })
		}
		synctest.Wait() // all five have asked
		h.answer <- struct{}{}
		<-h.asked
		h.answer <- struct{}{}
		done.Wait() // a third reading would wait for ever, and fail the test
		if _, known := v.find("web1"); !known {
			t.Error("the domain that was read is not known")
		}
	})
}

// TestAnEventWaitsForAReading: one that an operation begins after it serves it; one
// that was under way, or of another VPS, or that got no answer, does not.
func TestAnEventWaitsForAReading(t *testing.T) {
	for what, read := range map[string]struct {
		id            string
		before, fails bool
		more          int
	}{
		"begun after the event":  {id: "web1", more: 0},
		"begun before the event": {id: "web1", before: true, more: 1},
		"of another VPS":         {id: "web2", more: 1},
		"without an answer":      {id: "web1", fails: true, more: 1},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &countingHost{answer: make(chan error)}
				v := newInventory(h, nil, func(...hypervisor.Domain) {})
				var done sync.WaitGroup
				operation := func() { done.Go(func() { _, _ = v.domain(t.Context(), read.id) }) }
				event := func() { done.Go(func() { v.refreshSoon(t.Context(), "web1") }) }
				first, second := event, operation
				if read.before {
					first, second = operation, event
				}
				first()
				synctest.Wait()
				second()
				synctest.Wait()
				var answer error
				if read.fails {
					answer = hypervisor.ErrUnavailable
				}
				h.answer <- answer
				asked := h.asked.Load()
				time.Sleep(2 * refreshLag)
				synctest.Wait()
				if more := int(h.asked.Load() - asked); more != read.more {
					t.Errorf("the event made %d readings, not %d", more, read.more)
				}
				close(h.answer)
				done.Wait()
			})
		})
	}
}

// countingHost counts who asks, and answers each when it is told what.
type countingHost struct {
	hypervisor.Host
	asked  atomic.Int32
	answer chan error
}

func (h *countingHost) Domain(_ context.Context, id string) (hypervisor.Domain, error) {
	h.asked.Add(1)
	return hypervisor.Domain{ID: id}, <-h.answer
}
