package inventory

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vpssnapd/daemon/store"
	"vpssnapd/hypervisor"
)

// TestChangesOfOneDomain: an event wakes the waiters for its domain, and nobody else.
func TestChangesOfOneDomain(t *testing.T) {
	v := newInventory(nil, nil)
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

func (h slowHost) Glance(_ context.Context, id string) (hypervisor.Domain, error) {
	h.asked <- struct{}{}
	<-h.answer
	return hypervisor.Domain{ID: id}, nil
}

// TestRefreshesAreGathered: what is asked for while one reading is under way needs one
// more, which begins after all of them had asked.
func TestRefreshesAreGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := slowHost{asked: make(chan struct{}), answer: make(chan struct{})}
		v := newInventory(h, nil)
		var done sync.WaitGroup
		done.Go(func() { v.Refresh(t.Context(), "web1") })
		<-h.asked
		for range 5 {
			done.Go(func() { v.Refresh(t.Context(), "web1") })
		}
		synctest.Wait() // all five have asked
		h.answer <- struct{}{}
		<-h.asked
		h.answer <- struct{}{}
		done.Wait() // a third reading would wait for ever, and fail the test
		if _, known := v.Find("web1"); !known {
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
				v := newInventory(h, nil)
				var done sync.WaitGroup
				operation := func() { done.Go(func() { _, _ = v.Read(t.Context(), read.id) }) }
				event := func() { done.Go(func() { v.RefreshSoon(t.Context(), "web1", refreshLag) }) }
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

// countingHost counts its callers, and answers each when it is told what.
type countingHost struct {
	hypervisor.Host
	asked  atomic.Int32
	answer chan error
}

func (h *countingHost) Glance(_ context.Context, id string) (hypervisor.Domain, error) {
	h.asked.Add(1)
	return hypervisor.Domain{ID: id}, <-h.answer
}

// TestTheLastReadingCounts: a reading that began before another and ended after it says
// what is over, whether it was one of a domain or of all.
func TestTheLastReadingCounts(t *testing.T) {
	v := newInventory(nil, nil)
	first, second := v.beginReading(), v.beginReading()
	off, on := hypervisor.Domain{ID: "web1", State: hypervisor.Off}, hypervisor.Domain{ID: "web1", State: hypervisor.Running}
	v.keep(second, "web1", on, nil)
	v.keep(first, "web1", off, nil)
	if d, _ := v.Find("web1"); d.State != hypervisor.Running {
		t.Errorf("it is %q by the older reading", d.State)
	}
	first, second = v.beginReading(), v.beginReading()
	v.keep(second, "web1", hypervisor.Domain{}, hypervisor.ErrNotFound)
	v.keep(first, "web1", on, nil)
	if _, known := v.Find("web1"); known {
		t.Error("the older reading brought it back")
	}
}

// TestReadingOfAllKeepsWhatIsNewer: domains that are read while all are.
func TestReadingOfAllKeepsWhatIsNewer(t *testing.T) {
	h := &listingHost{list: []hypervisor.Domain{{ID: "web1", State: hypervisor.Off}, {ID: "gone"}, {ID: "web3"}}}
	v := newInventory(h, nil)
	h.meanwhile = func() {
		v.keep(v.beginReading(), "web1", hypervisor.Domain{ID: "web1", State: hypervisor.Running}, nil)
		v.keep(v.beginReading(), "gone", hypervisor.Domain{}, hypervisor.ErrNotFound)
		v.keep(v.beginReading(), "new", hypervisor.Domain{ID: "new"}, nil)
	}
	if err := v.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	states := map[string]hypervisor.State{}
	for _, d := range v.All() {
		states[d.ID] = d.State
	}
	if want := map[string]hypervisor.State{"web1": hypervisor.Running, "web3": "", "new": ""}; !maps.Equal(states, want) {
		t.Errorf("the picture is %v instead of %v", states, want)
	}
}

// TestAListWithSilentVPSs: of a VPS whose QEMU hangs the list has only its next boot. It is
// shown as unknown, with what was known of it, until it is read by itself.
func TestAListWithSilentVPSs(t *testing.T) {
	nextBoot := func(id string) hypervisor.Domain {
		disks := []hypervisor.Disk{{Target: "vda", Path: "/i/next"}}
		return hypervisor.Domain{ID: id, State: hypervisor.Unknown, Silent: true, Disks: disks, PersistentDisks: disks}
	}
	running := func(id string) hypervisor.Domain {
		disks := []hypervisor.Disk{{Target: "vda", Path: "/i/live", SizeBytes: 1}}
		return hypervisor.Domain{ID: id, State: hypervisor.Running, Disks: disks}
	}
	h := &listingHost{list: []hypervisor.Domain{nextBoot("known"), nextBoot("new"), nextBoot("answers")}}
	v := newInventory(h, nil)
	v.keep(v.beginReading(), "known", running("known"), nil)
	h.meanwhile = func() { v.keep(v.beginReading(), "answers", running("answers"), nil) }
	shown := func(id string, state hypervisor.State, path string) {
		t.Helper()
		if d, _ := v.Find(id); d.State != state || len(d.Disks) != 1 || d.Disks[0].Path != path {
			t.Errorf("%s is shown as %+v, instead of %s with %s", id, d, state, path)
		}
	}
	if err := v.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	shown("known", hypervisor.Unknown, "/i/live")
	shown("new", hypervisor.Unknown, "/i/next")
	shown("answers", hypervisor.Running, "/i/live")
	if v.wellKnown("known") || v.wellKnown("new") || !v.wellKnown("answers") {
		t.Error("a silent VPS need not be asked again, or another must")
	}
	h.meanwhile, h.list = func() {}, []hypervisor.Domain{running("known"), running("new"), running("answers")}
	if err := v.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"known", "new", "answers"} {
		shown(id, hypervisor.Running, "/i/live")
	}
}

type listingHost struct {
	hypervisor.Host
	list      []hypervisor.Domain
	meanwhile func()
}

func (h *listingHost) List(context.Context) ([]hypervisor.Domain, error) {
	h.meanwhile()
	return h.list, nil
}

// TestANameOfTwo: a VPS is gone, and its name given away, before that was read.
func TestANameOfTwo(t *testing.T) {
	for range 20 { // the order of a map
		v := newInventory(nil, nil)
		v.keep(v.beginReading(), "a", hypervisor.Domain{ID: "a", Name: "web1"}, nil)
		v.keep(v.beginReading(), "b", hypervisor.Domain{ID: "b", Name: "web1"}, nil)
		if d, _ := v.Find("web1"); d.ID != "b" {
			t.Fatalf("the name leads to %s", d.ID)
		}
	}
}

// TestAGlanceAtASilentVPS: libvirt may tell of a VPS whose QEMU hangs. It is shown as
// unknown until QEMU answers, or is gone.
func TestAGlanceAtASilentVPS(t *testing.T) {
	h := &hangingHost{domain: hypervisor.Domain{ID: "web1", State: hypervisor.Running}}
	v := newInventory(h, slog.New(slog.DiscardHandler))
	v.connected = true
	state := func() hypervisor.State { d, _ := v.Find("web1"); return d.State }
	v.Refresh(t.Context(), "web1")
	h.hangs = true
	_, _ = v.ReadFull(t.Context(), "web1")
	if _, err := v.Read(t.Context(), "web1"); err != nil || state() != hypervisor.Unknown {
		t.Errorf("after a glance it is %q (%v)", state(), err)
	}
	if v.Refresh(t.Context(), "web1"); state() != hypervisor.Unknown {
		t.Errorf("after an event it is %q", state())
	}
	h.hangs = false
	if v.Refresh(t.Context(), "web1"); state() != hypervisor.Running {
		t.Errorf("when QEMU answers again it is %q", state())
	}
	h.hangs = true
	_, _ = v.ReadFull(t.Context(), "web1")
	h.domain.State = hypervisor.Off
	if _, _ = v.Read(t.Context(), "web1"); state() != hypervisor.Off {
		t.Errorf("without QEMU it is %q", state())
	}
}

// hangingHost answers a glance, but no question that QEMU must answer.
type hangingHost struct {
	hypervisor.Host
	domain hypervisor.Domain
	hangs  bool
}

func (h *hangingHost) Glance(context.Context, string) (hypervisor.Domain, error) {
	return h.domain, nil
}

func (h *hangingHost) Domain(context.Context, string) (hypervisor.Domain, error) {
	if h.hangs {
		return hypervisor.Domain{}, hypervisor.ErrUnavailable
	}
	return h.domain, nil
}

// TestNothingIsKeptOfWhatIsGone (FAULTS row 48): VPSes come and go for years.
func TestNothingIsKeptOfWhatIsGone(t *testing.T) {
	v := newInventory(nil, nil)
	v.keep(v.beginReading(), "web1", hypervisor.Domain{ID: "web1"}, nil)
	v.note(hypervisor.Event{Kind: hypervisor.EventResumed, Domain: "web1"})
	if v.TimesResumed("web1") != 1 {
		t.Error("web1 is not known to have been resumed")
	}
	waiting := v.changes("web1")
	v.keep(v.beginReading(), "web1", hypervisor.Domain{}, hypervisor.ErrNotFound)
	select {
	case <-waiting:
	default:
		t.Error("the waiter for a VPS that is gone is not woken")
	}
	v.note(hypervisor.Event{Kind: hypervisor.EventResumed, Domain: "web1"}) // a late one
	wantNothingKept(t, v)

	// Waiters that give up leave nothing behind, and take nothing from the others.
	ended, end := context.WithCancel(t.Context())
	other := v.changes("web1")
	never := func() (bool, error) { end(); return false, nil }
	if err := v.Await(ended, "web1", 0, never); !errors.Is(err, context.Canceled) {
		t.Errorf("the wait ended with %v", err)
	}
	if len(v.changed) != 1 {
		t.Error("a waiter that gave up took the channel of another with it")
	}
	v.leave("web1", other)
	wantNothingKept(t, v)

	// That a domain was not found is kept while a reading that began before is under way.
	older := v.beginReading()
	v.keep(v.beginReading(), "web1", hypervisor.Domain{}, hypervisor.ErrNotFound)
	v.keep(older, "web1", hypervisor.Domain{ID: "web1"}, nil)
	wantNothingKept(t, v)
	v.host = &listingHost{meanwhile: func() {}}
	if err := v.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantNothingKept(t, v)
}

func wantNothingKept(t *testing.T, v *Inventory) {
	t.Helper()
	if len(v.resumed)+len(v.changed)+len(v.silent)+len(v.domains)+len(v.kept)+len(v.gone) != 0 {
		t.Errorf("kept are %v, %v, %v, %v, %v and %v", v.resumed, v.changed, v.silent, v.domains, v.kept, v.gone)
	}
}

// TestNamesGoWithTheirRecord (FAULTS row 48): a name is kept while its VPS is here, or while
// the record names it.
func TestNamesGoWithTheirRecord(t *testing.T) {
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	v := newInventory(nil, slog.New(slog.DiscardHandler))
	v.store = db
	v.Saw(hypervisor.Domain{ID: "recorded", Name: "web1"})
	v.recordNames(t.Context())
	v.Saw(hypervisor.Domain{ID: "fresh", Name: "web2"})
	v.names.of["pruned"] = "web3"
	v.names.of["here"] = "web4"
	v.keep(v.beginReading(), "here", hypervisor.Domain{ID: "here", Name: "web4"}, nil)
	if err := v.ForgetNames(t.Context()); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{"recorded": "web1", "fresh": "web2", "here": "web4", "pruned": "pruned"} {
		if got := v.Name(id); got != want {
			t.Errorf("%s is called %q, not %q", id, got, want)
		}
	}
}
