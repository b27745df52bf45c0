package libvirt

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"vpssnapd/hypervisor"
)

// drain fills a queue that nobody reads yet, and then reads it all.
func drain(t *testing.T, events ...hypervisor.Event) []hypervisor.Event {
	t.Helper()
	q := newQueue()
	for _, e := range events {
		q.put(e)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	q.put(hypervisor.Event{Kind: hypervisor.EventJob, Domain: "last"})
	go q.deliver(ctx)
	var got []hypervisor.Event
	for e := range q.out {
		if e.Domain == "last" {
			cancel()
			continue
		}
		got = append(got, e)
	}
	return got
}

func TestEventsOfOneKindAreMergedAndNoneIsLost(t *testing.T) {
	var events, want []hypervisor.Event
	for i := range 300 {
		e := hypervisor.Event{Kind: hypervisor.EventChanged, Domain: fmt.Sprint(i % 3)}
		r := hypervisor.Event{Kind: hypervisor.EventResumed, Domain: fmt.Sprint(i % 3)}
		if events = append(events, e, r); i < 3 {
			want = append(want, e, r)
		}
	}
	if got := drain(t, events...); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestTheLastWordOnTheConnectionIsTheTrueOne(t *testing.T) {
	up, down := hypervisor.Event{Kind: hypervisor.EventConnected}, hypervisor.Event{Kind: hypervisor.EventDisconnected}
	for _, c := range []struct{ events, want []hypervisor.Event }{
		{[]hypervisor.Event{up, down}, []hypervisor.Event{up, down}},
		{[]hypervisor.Event{up, down, up}, []hypervisor.Event{down, up}},
		{[]hypervisor.Event{down, up, down}, []hypervisor.Event{up, down}},
	} {
		if got := drain(t, c.events...); !slices.Equal(got, c.want) {
			t.Errorf("%v came as %v", c.events, got)
		}
	}
}
