package daemon_test

import (
	"testing"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

// TestSettingsChangeWhileItWorks: a headroom, a price and a limit of merges that are
// changed count from then on, also for who waits already.
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
