package daemon_test

import (
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// TestSettingsChangeWhileItWorks: a headroom, a price and a limit of merges that are
// changed count from then on, also for waiters.
func TestSettingsChangeWhileItWorks(t *testing.T) {
	var settings daemon.Settings
	w := newWorld(t, func(c *daemon.Config) {
		c.Settings.Merge.Limit, c.Settings.Space.Headroom = 1, 1<<30
		settings = c.Settings
	})
	first, second := w.vps("web1", hypervisor.Running), w.vps("web2", hypervisor.Running)
	w.host.SetFree(1<<30 - 1)
	_, err := w.daemon.Snapshots.Take(ctx, first, vps.TakeRequest{}, operator)
	w.refuses(vps.CodeInsufficientSpace, err)

	settings.Space.Headroom, settings.Offer.Price.Amount = 1<<20, 499
	w.daemon.Apply(settings)
	w.take(first, vps.TakeRequest{})
	w.take(second, vps.TakeRequest{})
	if offers := w.daemon.Options.Offers(); offers[0].Price.Amount != 499 {
		t.Errorf("the offer is still %+v", offers[0].Price)
	}
	w.host.MergeReadyAfter(fake.Never)
	running, err := w.daemon.Snapshots.Delete(ctx, first, operator)
	w.must(err)
	w.eventually("the only place is taken", func() bool { return w.domain(first).Disks[0].Job })
	waiting, err := w.daemon.Snapshots.Delete(ctx, second, operator)
	w.must(err)
	if op, err := w.daemon.Operations.Operation(ctx, waiting.ID); err != nil || op.Status.Final() {
		t.Fatalf("%+v %v", op, err)
	}
	settings.Merge.Limit = 2
	w.daemon.Apply(settings)
	w.eventually("the second merge has a place, too", func() bool { return w.domain(second).Disks[0].Job })

	settings.Merge.Limit = 1 // both keep theirs
	w.daemon.Apply(settings)
	for id, op := range map[string]vps.Operation{first: running, second: waiting} {
		w.must(w.host.FinishMerge(id, "vda"))
		w.done(op, nil)
	}
}

// TestRetention (FAULTS row 45): what is over goes when the settings say so, and nothing else:
// a VPS keeps its option, its snapshot and its name.
func TestRetention(t *testing.T) {
	w := newWorld(t, func(c *daemon.Config) {
		c.Settings.Retention = store.Retention{
			Operations:    24 * time.Hour,
			Snapshots:     24 * time.Hour,
			OptionHistory: 24 * time.Hour,
			Events:        24 * time.Hour,
		}
	})
	w.setClock(time.Now())
	id := w.vps("web1", hypervisor.Running)
	old := w.take(id, vps.TakeRequest{})
	w.delete(id)
	w.take(id, vps.TakeRequest{Description: "kept"})
	w.setClock(time.Now().Add(48 * time.Hour))
	w.must(w.daemon.Prune(ctx))
	_, err := w.daemon.Operations.Operation(ctx, old.ID)
	w.refuses(vps.CodeNotFound, err)
	if s := w.snapshot(id); s.Description != "kept" || s.State != vps.SnapshotAvailable {
		t.Errorf("the snapshot is %+v", s)
	}
	if o, err := w.daemon.Options.Option(ctx, id); err != nil || o.State != vps.OptionActive {
		t.Errorf("the option is %+v (%v)", o, err)
	}
	page, err := w.daemon.Journal.Messages(ctx, vps.MessageQuery{VPS: id})
	if err != nil || len(page.Messages) < 6 {
		t.Errorf("%d messages are left, which are kept for ever (%v)", len(page.Messages), err)
	}
	w.write(id, "vda", 0, 'b')
	w.restore(id)
	w.delete(id)
	w.clean(id)
}
