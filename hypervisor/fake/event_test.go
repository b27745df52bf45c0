package fake_test

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// drain reads what waits in the channel, up to an event of the last kind.
func drain(t *testing.T, h *fake.Host, last hypervisor.EventKind) []hypervisor.EventKind {
	t.Helper()
	var kinds []hypervisor.EventKind
	late := time.After(10 * time.Second)
	for {
		select {
		case e := <-h.Events():
			kinds = append(kinds, e.Kind)
			if e.Kind == last {
				return kinds
			}
		case <-late:
			t.Fatalf("no event %q came after %v", last, kinds)
		}
	}
}

func TestSlowConsumerLosesNoKind(t *testing.T) {
	v := newVPS(t)
	for range 1000 {
		must(t, v.Suspend(v.ctx, v.id))
		must(t, v.Resume(v.ctx, v.id))
	}
	v.Disconnect()
	v.Connect()
	v.Disconnect()
	kinds := drain(t, v.Host, hypervisor.EventDisconnected)
	if len(kinds) > 8 {
		t.Errorf("%d events waited", len(kinds))
	}
	for _, k := range []hypervisor.EventKind{hypervisor.EventDefined, hypervisor.EventChanged, hypervisor.EventResumed, hypervisor.EventConnected} {
		if !slices.Contains(kinds, k) {
			t.Errorf("no event %q among %v", k, kinds)
		}
	}
}

func TestOthersAreSeen(t *testing.T) {
	v := newVPS(t)
	operator, err := fake.Open(v.dir)
	must(t, err)
	defer func() { must(t, operator.Close()) }()
	must(t, v.Suspend(v.ctx, v.id))
	drain(t, v.Host, hypervisor.EventChanged)
	must(t, operator.Resume(v.ctx, v.id))
	drain(t, v.Host, hypervisor.EventResumed)
	must(t, v.Edit(v.id, func(d *hypervisor.Domain) {
		d.State, d.PauseReason = hypervisor.Paused, hypervisor.PausedByIO
	}))
	drain(t, v.Host, hypervisor.EventChanged)
	if d := v.domain(); d.PauseReason != hypervisor.PausedByIO {
		t.Errorf("got %+v", d)
	}
}

func TestManyAtOnce(t *testing.T) {
	v := newVPS(t)
	other, err := fake.Open(v.dir)
	must(t, err)
	defer func() { must(t, other.Close()) }()
	v.take()
	const workers, rounds = 8, 15
	errs := make([]error, workers)
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			h := []*fake.Host{v.Host, other}[w%2]
			for n := range int64(rounds) {
				_, err := h.Domain(v.ctx, v.id)
				err = errors.Join(err,
					h.Write(v.id, "vda", (int64(w)*rounds+n)*block, byte(w+1), block),
					h.SetMetadata(v.ctx, v.id, "<a/>"),
					h.PointDisks(v.ctx, v.id, nil))
				errs[w] = errors.Join(errs[w], err)
			}
		})
	}
	all.Wait()
	must(t, errors.Join(errs...))
	for n := range int64(workers * rounds) {
		v.sees(n, byte(n/rounds+1))
	}
}

func BenchmarkSuspendResume(b *testing.B) {
	h, err := fake.Open(b.TempDir())
	must(b, err)
	defer func() { must(b, h.Close()) }()
	id, err := h.Define("web1", hypervisor.Disk{Target: "vda", SizeBytes: size})
	must(b, err)
	must(b, h.Start(b.Context(), id, false))
	for b.Loop() {
		must(b, h.Suspend(b.Context(), id))
		must(b, h.Resume(b.Context(), id))
	}
}
