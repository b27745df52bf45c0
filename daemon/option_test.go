package daemon_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

var orders = vps.Actor{Name: "shop", Way: vps.WayOrder}

// put sends an order and fails unless the option is then in that state.
func (w *world) put(id string, o vps.OptionOrder, want vps.OptionState) vps.Option {
	w.t.Helper()
	option, err := w.daemon.Options.PutOption(ctx, id, o, orders)
	w.must(err)
	if option.State != want {
		w.t.Fatalf("the option is %s, want %s", option.State, want)
	}
	return option
}

// option is the open option, or one that is released.
func (w *world) option(id string) vps.Option {
	w.t.Helper()
	o, err := w.daemon.Options.Option(ctx, id)
	if vps.CodeOf(err) == vps.CodeNotFound {
		return vps.Option{State: vps.OptionReleased}
	}
	w.must(err)
	return o
}

// becomes wakes the daemon at the time it now is and waits for an option's state.
func (w *world) becomes(id string, want vps.OptionState) {
	w.t.Helper()
	w.close()
	w.open() // deadlines are looked at at once
	w.eventually("the option is "+string(want), func() bool { return w.option(id).State == want })
}

// changes counts the messages about the option.
func (w *world) changes(id string) int {
	w.t.Helper()
	page, err := w.daemon.Journal.Messages(ctx, vps.MessageQuery{VPS: id, Kind: vps.MessageOptionChanged})
	w.must(err)
	return len(page.Messages)
}

// newcomer is a VPS that never had an option, on a clock that is stopped.
func newcomer(t *testing.T) (w *world, id string, now time.Time) {
	w = newWorld(t, func(c *daemon.Config) { c.Settings.Notify.Grace = 24 * time.Hour })
	now = time.Now().UTC().Truncate(time.Second)
	w.setClock(now)
	id, err := w.host.Define("web1", hypervisor.Disk{Target: "vda", SizeBytes: 8 * mib})
	w.must(err)
	w.must(w.host.SetAgent(id, fake.AgentAnswers))
	w.must(w.host.Start(ctx, id, false))
	w.eventually("it is known", func() bool { _, err := w.daemon.Overview.ShowVPS(ctx, id); return err == nil })
	return w, id, now
}

func after(t time.Time, d time.Duration) *time.Time { t = t.Add(d); return &t }

// TestOptionLife: ordered, active, over, kept, deleted, released; and a new one.
func TestOptionLife(t *testing.T) {
	w, id, now := newcomer(t)
	w.put(id, vps.OptionOrder{State: vps.OptionOrdered, OrderRef: "A-1"}, vps.OptionOrdered)
	_, err := w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
	w.refuses(vps.CodeOptionRequired, err)
	o := w.put(id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "A-1", EndsAt: after(now, time.Hour)}, vps.OptionActive)
	if o.Price != (vps.Price{Amount: 299, Currency: "EUR", Period: vps.PeriodMonth}) || o.ActivatedAt == nil {
		t.Errorf("%+v", o)
	}
	w.write(id, "vda", 0, 'a')
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 0, 'b')

	w.setClock(now.Add(time.Hour))
	w.becomes(id, vps.OptionGrace)
	if g := w.option(id).GraceUntil; g == nil || !g.Equal(now.Add(25*time.Hour)) {
		t.Errorf("grace until %v", g)
	}
	_, err = w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{Replace: true}, operator)
	w.refuses(vps.CodeOptionRequired, err)
	w.restore(id)
	w.sees(id, "vda", 0, 'a')

	w.setClock(now.Add(25 * time.Hour))
	w.becomes(id, vps.OptionReleased)
	w.sees(id, "vda", 0, 'a')
	w.clean(id)
	w.put(id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "A-2"}, vps.OptionActive)
}

// TestOrdersMayBeSentAgain: the second time nothing happens, whatever became of
// the option in between.
func TestOrdersMayBeSentAgain(t *testing.T) {
	w, id, now := newcomer(t)
	end := now.Add(time.Hour + 123) // finer than is stored
	order := vps.OptionOrder{
		State:        vps.OptionActive,
		OrderRef:     "A-1",
		EndsAt:       &end,
		ContactEmail: "a@example.org",
		Locale:       "fr",
	}
	first := w.put(id, order, vps.OptionActive)
	same := func(what string, state vps.OptionState) {
		t.Helper()
		n := w.changes(id)
		again := w.put(id, order, state)
		if again.ID != first.ID || w.changes(id) != n {
			t.Errorf("%s: option %s instead of %s, %d messages instead of %d", what, again.ID, first.ID, w.changes(id), n)
		}
	}
	same("active", vps.OptionActive)
	w.put(id, vps.OptionOrder{State: vps.OptionOrdered, OrderRef: "A-1"}, vps.OptionActive)

	_, err := w.daemon.Options.CancelOption(ctx, id, false, orders)
	w.must(err)
	same("cancelled", vps.OptionGrace)
	n := w.changes(id)
	_, err = w.daemon.Options.CancelOption(ctx, id, false, orders)
	w.must(err)
	if w.changes(id) != n {
		t.Error("a second cancel is told again")
	}

	w.setClock(now.Add(48 * time.Hour))
	w.becomes(id, vps.OptionReleased)
	same("released, and its end in the past", vps.OptionReleased)
	if w.option(id).State != vps.OptionReleased {
		t.Error("an old order opened the option again")
	}
}

// TestRenewal in grace: by a new order, or a later end of the same one.
func TestRenewal(t *testing.T) {
	for name, order := range map[string]vps.OptionOrder{
		"new order":   {State: vps.OptionActive, OrderRef: "A-2"},
		"later end":   {State: vps.OptionActive, OrderRef: "A-1", EndsAt: after(time.Now(), 100*time.Hour)},
		"by operator": {State: vps.OptionActive},
	} {
		t.Run(name, func(t *testing.T) {
			w, id, now := newcomer(t)
			first := w.put(
				id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "A-1", EndsAt: after(now, time.Hour)},
				vps.OptionActive,
			)
			w.take(id, vps.TakeRequest{})
			w.setClock(now.Add(2 * time.Hour))
			w.becomes(id, vps.OptionGrace)
			// What is only ordered does not make the present option another.
			w.put(id, vps.OptionOrder{State: vps.OptionOrdered, OrderRef: "A-3"}, vps.OptionGrace)
			o := w.put(id, order, vps.OptionActive)
			if o.ID != first.ID || o.GraceUntil != nil || o.CancelledAt != nil {
				t.Errorf("%+v", o)
			}
			w.setClock(now.Add(26 * time.Hour)) // when the grace would have ended
			w.becomes(id, vps.OptionActive)
			if !hasSnapshot(w, id) {
				t.Error("the snapshot is gone")
			}
		})
	}
}

// TestRenewedAtTheLastMoment: the deletion waits for its turn when the renewal comes.
func TestRenewedAtTheLastMoment(t *testing.T) {
	w := newWorld(t, func(c *daemon.Config) { c.Settings.Merge.Limit = 1 })
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{})
	busy := w.vps("web2", hypervisor.Running)
	w.take(busy, vps.TakeRequest{})
	w.host.MergeReadyAfter(fake.Never)
	long, err := w.daemon.Snapshots.Delete(ctx, busy, operator)
	w.must(err)
	w.eventually("the only place is taken", func() bool { return w.domain(busy).Disks[0].Job })

	_, err = w.daemon.Options.CancelOption(ctx, id, true, orders)
	w.must(err)
	v, err := w.daemon.Overview.ShowVPS(ctx, id)
	w.must(err)
	if v.Operation == nil || v.Operation.Kind != vps.KindDelete {
		t.Fatalf("no deletion waits: %+v", v.Operation)
	}
	w.put(id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "A-2"}, vps.OptionActive)
	if op := w.ended(*v.Operation, nil); op.Status != vps.StatusCancelled {
		t.Errorf("the deletion is %s", op.Status)
	}
	if s := w.snapshot(id); s.State != vps.SnapshotAvailable {
		t.Errorf("the snapshot is %s", s.State)
	}
	w.must(w.host.FinishMerge(busy, "vda"))
	w.done(long, nil)
	w.restore(id)
}

// TestCancelNow deletes the snapshot and releases the option at once, also when
// a deletion has just failed.
func TestCancelNow(t *testing.T) {
	w := newWorld(t, func(c *daemon.Config) { c.Settings.Notify.Grace = 0 })
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{})
	w.must(w.host.Edit(id, func(d *hypervisor.Domain) { d.ForeignSnapshots = 1 }))
	_, err := w.daemon.Options.CancelOption(ctx, id, true, orders)
	w.must(err)
	if w.option(id).State != vps.OptionGrace || !hasSnapshot(w, id) {
		t.Fatal("a snapshot that cannot be deleted is gone")
	}
	w.must(w.host.Edit(id, func(d *hypervisor.Domain) { d.ForeignSnapshots = 0 }))
	_, err = w.daemon.Options.CancelOption(ctx, id, true, orders)
	w.must(err)
	w.eventually("all is over", func() bool { return w.option(id).State == vps.OptionReleased && !hasSnapshot(w, id) })
	w.clean(id)
}

// TestExpiryWaitsForAnOperation that runs when the grace ends.
func TestExpiryWaitsForAnOperation(t *testing.T) {
	w, id, now := newcomer(t)
	w.put(id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "A-1", EndsAt: after(now, time.Hour)}, vps.OptionActive)
	w.write(id, "vda", 0, 'a')
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 0, 'b')
	reached, ended := make(chan struct{}), make(chan struct{})
	w.host.SetHook(func(ctx context.Context, at, _ string) error {
		if at != "Exchange.before" {
			return nil
		}
		close(reached)
		<-ended
		return nil
	})
	op, err := w.daemon.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: w.snapshot(id).ID}, operator)
	w.must(err)
	<-reached
	w.setClock(now.Add(100 * time.Hour))
	_, err = w.daemon.Options.CancelOption(ctx, id, true, orders)
	w.must(err)
	if w.option(id).State != vps.OptionGrace {
		t.Error("released in the middle of a restore")
	}
	close(ended)
	w.done(op, nil)
	w.eventually("it is released after the restore", func() bool { return w.option(id).State == vps.OptionReleased })
	w.sees(id, "vda", 0, 'a')
	w.clean(id)
}

// TestClockSetForward: the grace begins when the end is noticed, not in the past.
func TestClockSetForward(t *testing.T) {
	w, id, now := newcomer(t)
	w.put(id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "A-1", EndsAt: after(now, 10*time.Hour)}, vps.OptionActive)
	w.write(id, "vda", 0, 'a')
	w.take(id, vps.TakeRequest{})
	w.write(id, "vda", 0, 'b')
	future := now.Add(10_000 * time.Hour)
	w.setClock(future)
	w.becomes(id, vps.OptionGrace)
	if until := w.option(id).GraceUntil; until == nil || !until.Equal(future.Add(24*time.Hour)) || !hasSnapshot(w, id) {
		t.Errorf("grace until %v, the clock says %v", until, future)
	}
	w.restore(id)
	w.sees(id, "vda", 0, 'a')
	w.setClock(future.Add(24 * time.Hour))
	w.becomes(id, vps.OptionReleased)
	w.clean(id)
}

// TestClockSetBack: everything lasts longer, and nothing is lost or comes back.
func TestClockSetBack(t *testing.T) {
	w, id, now := newcomer(t)
	w.put(id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "A-1", EndsAt: after(now, 10*time.Hour)}, vps.OptionActive)
	w.take(id, vps.TakeRequest{})
	w.setClock(now.Add(-1000 * time.Hour))
	w.becomes(id, vps.OptionActive)
	w.restore(id)
	w.done(w.daemon.Snapshots.UndoRestore(ctx, id, operator))

	w.setClock(now.Add(11 * time.Hour))
	w.becomes(id, vps.OptionGrace)
	until := *w.option(id).GraceUntil
	w.setClock(now)
	w.becomes(id, vps.OptionGrace)
	if again := w.option(id).GraceUntil; !again.Equal(until) || !hasSnapshot(w, id) {
		t.Errorf("grace until %v, was %v", again, until)
	}
	w.setClock(until)
	w.becomes(id, vps.OptionReleased)
	w.setClock(now)
	w.becomes(id, vps.OptionReleased)
	w.clean(id)
}

// TestOptionOutlivesItsVPS: the VPS is no longer on this host, perhaps migrated.
// Its files are not touched, its option ends, and the log does not go on about it.
func TestOptionOutlivesItsVPS(t *testing.T) {
	w, id, now := newcomer(t)
	w.put(id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "A-1", EndsAt: after(now, time.Hour)}, vps.OptionActive)
	w.take(id, vps.TakeRequest{})
	w.must(w.host.KillGuest(id))
	w.must(w.host.Undefine(id))
	w.eventually("it is gone", func() bool { _, err := w.daemon.Overview.ShowVPS(ctx, id); return err != nil })
	w.setClock(now.Add(100 * time.Hour))
	w.close()
	w.open()
	w.eventually("the end is noticed", func() bool {
		page, err := w.daemon.Journal.Messages(ctx, vps.MessageQuery{Kind: vps.MessageOptionChanged})
		return err == nil && page.Messages[0].Actor.Way == vps.WayExpiry
	})
	w.setClock(*w.option(id).GraceUntil)
	w.close()
	w.open()
	w.eventually("it is said", func() bool { return strings.Contains(w.log.String(), "ended option not deleted") })
	if o, err := w.daemon.Options.Option(ctx, id); err != nil || o.State != vps.OptionGrace {
		t.Errorf("at the first look the option is %+v, %v", o, err) // it may be defined anew just now
	}
	w.setClock(w.option(id).GraceUntil.Add(time.Hour))
	_, err := w.daemon.Options.CancelOption(ctx, id, false, orders) // it looks, too, unless somebody does
	w.must(err)
	w.becomes(id, vps.OptionReleased)
	if n := strings.Count(w.log.String(), "ended option not deleted"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
	if s := w.snapshot(id); s.State != vps.SnapshotAvailable {
		t.Errorf("the record of the snapshot is %s", s.State)
	}
	if len(w.files()) != 1 {
		t.Errorf("left: %v", w.files())
	}
}

func TestBadOrders(t *testing.T) {
	w, id, now := newcomer(t)
	for name, order := range map[string]vps.OptionOrder{
		"state":    {State: vps.OptionGrace},
		"released": {State: vps.OptionReleased},
		"past":     {State: vps.OptionActive, EndsAt: after(now, -time.Second)},
		"price":    {State: vps.OptionActive, Price: &vps.Price{Amount: -1, Currency: "EUR"}},
		"currency": {State: vps.OptionActive, Price: &vps.Price{Amount: 1, Currency: "EURO"}},
	} {
		if _, err := w.daemon.Options.PutOption(ctx, id, order, orders); vps.CodeOf(err) != vps.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := w.daemon.Options.CancelOption(ctx, id, true, orders)
	w.refuses(vps.CodeNotFound, err)
	_, err = w.daemon.Options.PutOption(ctx, "nobody", vps.OptionOrder{State: vps.OptionActive}, orders)
	w.refuses(vps.CodeNotFound, err)
}

// TestOptionEndsWhileATakeIsAskedFor: an option that is released because there
// is no snapshot yet must not leave one behind, which nothing would delete.
func TestOptionEndsWhileATakeIsAskedFor(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	var once sync.Once
	w.host.SetHook(func(_ context.Context, point, _ string) error {
		if point == "Stat.before" { // the take has looked at the option, and not yet written
			once.Do(func() {
				_, err := w.daemon.Options.CancelOption(ctx, id, true, operator)
				w.must(err)
			})
		}
		return nil
	})
	_, err := w.daemon.Snapshots.Take(ctx, id, vps.TakeRequest{}, operator)
	w.refuses(vps.CodeOptionRequired, err)
	if hasSnapshot(w, id) {
		t.Error("there is a snapshot without an option")
	}
	w.clean(id)
}

// TestExpiryThatFindsTheVPSBusy: the snapshot of an ended option goes as soon as
// what came before its deletion has ended, not only with the next regular try.
func TestExpiryThatFindsTheVPSBusy(t *testing.T) {
	w := newWorld(t, nil)
	id := w.vps("web1", hypervisor.Running)
	w.take(id, vps.TakeRequest{})
	snap := w.snapshot(id)
	w.eventually("nobody looks at it any more", func() bool { return w.daemon.Waiting(id) == 0 })
	asking, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	type asker struct{}
	w.host.SetHook(func(ctx context.Context, point, _ string) error {
		if ctx.Value(asker{}) != nil && point == "Stat.before" { // the restore has the lock, and is not recorded yet
			once.Do(func() { close(asking); <-goOn })
		}
		return nil
	})
	var both sync.WaitGroup
	both.Go(func() {
		op, err := w.daemon.Snapshots.Restore(
			context.WithValue(ctx, asker{}, true), id, vps.RestoreRequest{Confirm: snap.ID}, operator,
		)
		if err != nil {
			t.Errorf("the restore %s: %v", op.ID, err)
		}
	})
	<-asking
	before := w.daemon.Waiting(id)
	both.Go(func() {
		if _, err := w.daemon.Options.CancelOption(ctx, id, true, operator); err != nil {
			t.Error(err)
		}
	})
	w.eventually("the deletion waits for its turn", func() bool { return w.daemon.Waiting(id) > before })
	close(goOn)
	both.Wait()
	w.eventually("the snapshot is deleted", func() bool { return !hasSnapshot(w, id) })
}

// TestOptionHistory: every change of every option of a VPS is there, with what it
// was, who made it, and page by page.
func TestOptionHistory(t *testing.T) {
	w, id, now := newcomer(t)
	price := vps.Price{Amount: 499, Currency: "CHF", Period: vps.PeriodYear}
	w.put(id, vps.OptionOrder{State: vps.OptionOrdered, OrderRef: "A-1", ContactEmail: "jo@example.org"}, vps.OptionOrdered)
	w.put(
		id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "A-1", Price: &price, EndsAt: after(now, time.Hour)},
		vps.OptionActive,
	)
	w.put(id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "A-1"}, vps.OptionActive) // changes nothing
	first := w.put(
		id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "A-2", EndsAt: after(now, 2*time.Hour), Locale: "fr"},
		vps.OptionActive,
	)
	_, err := w.daemon.Options.CancelOption(ctx, id, true, operator)
	w.must(err)
	second := w.put(id, vps.OptionOrder{State: vps.OptionActive, OrderRef: "A-3"}, vps.OptionActive)
	var got []string
	q := vps.OptionQuery{VPS: id, Limit: 4}
	for {
		page, err := w.daemon.Options.OptionHistory(ctx, q)
		w.must(err)
		for _, c := range page.Changes {
			if want := map[bool]string{true: second.ID, false: first.ID}[len(got) == 0]; c.Option != want {
				t.Errorf("%s is of the option %s, want %s", c.Note, c.Option, want)
			}
			got = append(got, c.Actor.Name+" "+string(c.State)+": "+c.Note)
		}
		if q.Before = page.Next; page.Next == 0 {
			break
		}
	}
	end := func(d time.Duration) string { return now.Add(d).Format(time.RFC3339) }
	want := []string{
		"shop active: ordered; order_ref A-3; price 299 EUR month; locale en",
		"vpssnapd released: released",
		"test grace: cancelled",
		"shop active: order_ref A-2; ends_at " + end(2*time.Hour) + "; locale fr",
		"shop active: ordered → active; price 499 CHF year; ends_at " + end(time.Hour),
		"shop ordered: ordered; order_ref A-1; price 299 EUR month; contact_email changed; locale en",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
