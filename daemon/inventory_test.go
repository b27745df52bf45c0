package daemon

import (
	"testing"

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
