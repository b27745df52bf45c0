package feed

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"vpssnapd/hypervisor"
)

// drain fills a feed that nobody reads yet, and then reads it all.
func drain(t *testing.T, events ...hypervisor.Event) []hypervisor.Event {
	t.Helper()
	f := New()
	for _, e := range events {
		f.Put(e)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f.Put(hypervisor.Event{Kind: hypervisor.EventJob, Domain: "last"})
	go f.Deliver(ctx)
	var got []hypervisor.Event
	for e := range f.Events() {
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
