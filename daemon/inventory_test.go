package daemon

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"

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
