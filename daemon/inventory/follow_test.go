package inventory

import (
	"slices"
	"testing"

	"vpssnapd/hypervisor"
)

// TestFollowersLoseNoEvent: what comes while the same is being dealt with is dealt with
// once more, after it, and by the same goroutine.
func TestFollowersLoseNoEvent(t *testing.T) {
	f := newFollowers()
	add := func(kind hypervisor.EventKind, id string) bool {
		return f.add(hypervisor.Event{Kind: kind, Domain: id})
	}
	if !add(hypervisor.EventJob, "web1") || !add(hypervisor.EventJob, "web2") {
		t.Error("nobody begins with the first event of a domain")
	}
	begun, _ := f.next("web1")
	for _, kind := range []hypervisor.EventKind{hypervisor.EventChanged, hypervisor.EventJob, hypervisor.EventChanged} {
		if add(kind, "web1") {
			t.Error("two deal with one domain")
		}
	}
	dealt := []hypervisor.EventKind{begun}
	for kind, some := f.next("web1"); some; kind, some = f.next("web1") {
		dealt = append(dealt, kind)
	}
	if want := []hypervisor.EventKind{hypervisor.EventJob, hypervisor.EventChanged, hypervisor.EventJob}; !slices.Equal(
		dealt, want,
	) {
		t.Errorf("dealt with %q instead of %q", dealt, want)
	}
	if !add(hypervisor.EventDefined, "web1") {
		t.Error("nobody begins with an event after all were dealt with")
	}
}
