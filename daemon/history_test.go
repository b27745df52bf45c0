package daemon_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vpssnapd/daemon"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
)

var (
	historyTime = flag.Duration("histories", 12*time.Second, "how long TestHistories makes histories")
	historySeed = flag.Uint64("history-seed", 0, "the first seed of TestHistories; 0: a new one")
)

const (
	roundTime = 4 * time.Second
	clients   = 6
)

// TestHistories lets several clients at once take, replace, restore, undo,
// delete and cancel, order and cancel the option of a few VPSes while their
// guests write, kills the daemon at random points meanwhile, and looks for an
// order of all that happened which the model of one VPS allows.
func TestHistories(t *testing.T) {
	seed := *historySeed
	if seed == 0 {
		seed = rand.Uint64() >> 1
	}
	until := time.Now().Add(*historyTime)
	var total tally
	for ; !t.Failed(); seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { total.add(makeHistory(t, seed)) })
		if time.Now().After(until) {
			break
		}
	}
	t.Logf("%d rounds: %d calls, %d operations (%d cancelled, %d with a kill in them), %d kills",
		total.rounds, total.calls, total.operations, total.cancelled, total.interrupted, total.kills)
}

type tally struct{ rounds, calls, operations, cancelled, interrupted, kills int }

func (a *tally) add(b tally) {
	a.rounds, a.calls, a.operations = a.rounds+b.rounds, a.calls+b.calls, a.operations+b.operations
	a.cancelled, a.interrupted, a.kills = a.cancelled+b.cancelled, a.interrupted+b.interrupted, a.kills+b.kills
}

// history is one round: a world in which calls are noted.
type history struct {
	*world
	guests *fake.Host // the hands of the guests; it outlives the daemons
	began  time.Time
	vpses  []string
	stop   chan struct{}

	alive sync.RWMutex // held for reading within a call, for writing while the daemon is dead
	life  context.Context
	dying atomic.Bool // what the daemon answers now may be wrong

	mu      sync.Mutex
	acts    map[string][]act         // by VPS
	ended   map[string]time.Duration // when each operation was seen to have ended
	watched map[string]bool
	parked  map[string]bool
	cancels map[string][]bool // of an operation: accepted or not
	kills   []time.Duration
	written map[string]*[cells]byte // the last value of each cell, by VPS
	calls   int
}

// act is a step with the time at which it was asked for and answered.
type act struct {
	step
	client   int
	actor    string // who asked for an operation, once only
	call     time.Duration
	returned time.Duration
	lost     bool // the answer did not come
}

func makeHistory(t *testing.T, seed uint64) tally {
	h := &history{
		world:   newWorld(t, nil),
		began:   time.Now(),
		stop:    make(chan struct{}),
		acts:    map[string][]act{},
		ended:   map[string]time.Duration{},
		watched: map[string]bool{},
		parked:  map[string]bool{},
		cancels: map[string][]bool{},
		written: map[string]*[cells]byte{},
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range 2 + rng.IntN(2) {
		id := h.vps(
			fmt.Sprintf("web%d", i+1), hypervisor.Running, hypervisor.Disk{Target: "vda", SizeBytes: mib},
			hypervisor.Disk{Target: "vdb", SizeBytes: mib, Format: "raw"},
		)
		h.vpses = append(h.vpses, id)
		h.written[id] = &[cells]byte{}
	}
	guests, err := fake.Open(h.hostDir)
	h.must(err)
	defer guests.Close()
	h.guests = guests
	var cancel context.CancelFunc
	h.life, cancel = context.WithCancel(t.Context())
	defer func() { cancel() }()

	h.slowDown(rng)
	var working, watching sync.WaitGroup
	done := make(chan struct{})
	watching.Go(func() { h.watch(done) })
	for c := range clients {
		own := rand.New(rand.NewPCG(seed, uint64(c)+1))
		working.Go(func() { h.client(c, own) })
	}
	for time.Since(h.began) < roundTime {
		h.kill(rng, &cancel)
	}
	close(h.stop)
	working.Wait()
	h.settle()
	close(done)
	watching.Wait()
	return h.judge()
}

// kill lets the daemon live for a while, ends it at some call of the host, and
// starts the next one.
func (h *history) kill(rng *rand.Rand, cancel *context.CancelFunc) {
	<-time.After(time.Duration(100+rng.IntN(800)) * time.Millisecond)
	left := int32(rng.IntN(40))
	var count atomic.Int32
	struck := make(chan struct{})
	var once sync.Once
	host := h.host
	strike := func() {
		h.dying.Store(true)
		host.Cut()
		once.Do(func() { close(struck) })
	}
	host.SetHook(func(ctx context.Context, point, subject string) error {
		if count.Add(1) > left {
			strike()
		}
		return slow(ctx, point, subject)
	})
	select {
	case <-struck:
	case <-time.After(300 * time.Millisecond):
		strike()
	}
	h.mu.Lock()
	h.kills = append(h.kills, h.since())
	h.mu.Unlock()
	(*cancel)()
	h.alive.Lock()
	defer h.alive.Unlock()
	h.crash()
	h.open()
	h.slowDown(rng)
	h.life, *cancel = context.WithCancel(h.t.Context())
	h.dying.Store(false)
}

// slowDown makes the host take its time, as libvirt does.
func (h *history) slowDown(rng *rand.Rand) {
	h.host.MergeReadyAfter(rng.IntN(3))
	h.host.SetHook(slow)
}

func slow(ctx context.Context, _, _ string) error {
	limit := 0
	switch n := rand.IntN(100); {
	case n == 0:
		limit = 150_000
	case n < 25:
		limit = 3000
	}
	select {
	case <-time.After(time.Duration(rand.IntN(limit+1)) * time.Microsecond):
	case <-ctx.Done():
	}
	return nil
}

func (h *history) since() time.Duration { return time.Since(h.began) }

// call lets f speak to the daemon that lives now, and returns the act with its
// times. An answer that is neither yes nor a definite no is lost.
func (h *history) call(a act, f func(ctx context.Context, d *daemon.Daemon, a *act) error) act {
	h.alive.RLock()
	defer h.alive.RUnlock()
	a.call = h.since()
	err := f(h.life, h.daemon, &a)
	a.returned = h.since()
	dying := h.dying.Load() || h.life.Err() != nil
	switch {
	case err == nil:
	case isDefinite(err):
		a.code = vps.CodeOf(err)
	default:
		a.lost = true
		if !dying {
			h.t.Errorf("%s, with nothing wrong: %v", a.step, err)
		}
	}
	return a
}

func (h *history) note(id string, a act) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acts[id] = append(h.acts[id], a)
	h.calls++
}

// client asks for this and that until the round is over.
func (h *history) client(number int, rng *rand.Rand) {
	for n := 0; ; n++ {
		select {
		case <-h.stop:
			return
		case <-time.After(time.Duration(rng.IntN(8000)) * time.Microsecond): // thinks
		}
		id := h.vpses[rng.IntN(len(h.vpses))]
		a := act{client: number, actor: fmt.Sprintf("client %d, call %d", number, n)}
		switch r := rng.IntN(100); {
		case r < 35:
			h.write(id, a, rng.IntN(cells))
		case r < 55:
			h.read(id, a, rng.IntN(cells))
		case r < 88:
			op := h.request(id, a, rng)
			if op != "" && rng.IntN(2) > 0 {
				h.await(op, time.Second)
			}
		case r < 91:
			h.cancel(id)
		case r < 98:
			a.what = "order"
			h.note(id, h.call(a, func(ctx context.Context, d *daemon.Daemon, a *act) error {
				_, err := d.Options.PutOption(ctx, id, vps.OptionOrder{State: vps.OptionActive, OrderRef: a.actor}, a.by())
				return err
			}))
		default:
			a.what, a.atOnce = "cancel-option", rng.IntN(2) == 0
			h.note(id, h.call(a, func(ctx context.Context, d *daemon.Daemon, a *act) error {
				o, err := d.Options.CancelOption(ctx, id, a.atOnce, a.by())
				a.released = err == nil && o.State == vps.OptionReleased
				return err
			}))
		}
	}
}

func (a *act) by() vps.Actor { return vps.Actor{Name: a.actor, Way: vps.WayPanel} }

// cellAt is where a cell lies: two on each disk, one block each.
func cellAt(cell int) (target string, offset int64) {
	return []string{"vda", "vdb"}[cell%2], int64(cell/2) * 8192
}

// write lets the guest write a value that the cell never had; a guest that stands
// still writes nothing.
func (h *history) write(id string, a act, cell int) {
	h.mu.Lock()
	last := &h.written[id][cell]
	if *last == 255 {
		h.mu.Unlock()
		return
	}
	*last++
	a.what, a.cell, a.value = "write", cell, *last
	h.mu.Unlock()
	target, offset := cellAt(cell)
	a.call = h.since()
	err := h.guests.GuestWrite(id, target, offset, a.value, 4096)
	a.returned = h.since()
	if err == nil {
		h.note(id, a)
	}
}

// read lets the guest read, if it runs without a break meanwhile.
func (h *history) read(id string, a act, cell int) {
	a.what, a.cell = "read", cell
	target, offset := cellAt(cell)
	runs := func() (int, bool) {
		dom, err1 := h.guests.Domain(context.Background(), id)
		g, err2 := h.guests.Guest(id)
		return g.Boots, err1 == nil && err2 == nil && dom.State != hypervisor.Off
	}
	boots, before := runs()
	a.call = h.since()
	data, err := h.guests.Read(id, target, offset, 4096)
	a.returned = h.since()
	if again, after := runs(); !before || !after || again != boots {
		return
	}
	if err != nil {
		h.t.Errorf("the guest cannot read: %v", err)
		return
	}
	a.value = data[0]
	if slices.ContainsFunc(data, func(b byte) bool { return b != data[0] }) {
		h.t.Errorf("the guest reads a torn block: %x", slices.Compact(data))
	}
	h.note(id, a)
}

// request asks for an operation and returns its id, "" when there is none.
func (h *history) request(id string, a act, rng *rand.Rand) string {
	kinds := []vps.Kind{
		vps.KindTake,
		vps.KindTake,
		vps.KindTake,
		vps.KindRestore,
		vps.KindRestore,
		vps.KindUndoRestore,
		vps.KindDelete,
	}
	kind := kinds[rng.IntN(len(kinds))]
	a.what, a.replace = string(kind), kind == vps.KindTake && rng.IntN(3) == 0
	return h.ask(id, a)
}

func (h *history) ask(id string, a act) string {
	if a.what == string(vps.KindRestore) {
		h.alive.RLock()
		snap, err := h.daemon.Snapshots.Snapshot(h.life, id)
		h.alive.RUnlock()
		if a.snapshot = snap.ID; err != nil {
			a.snapshot = "000000000000"
		}
	}
	a = h.call(a, func(ctx context.Context, d *daemon.Daemon, a *act) (err error) {
		var op vps.Operation
		switch vps.Kind(a.what) {
		case vps.KindTake:
			op, err = d.Snapshots.Take(ctx, id, vps.TakeRequest{Replace: a.replace}, a.by())
		case vps.KindRestore:
			op, err = d.Snapshots.Restore(ctx, id, vps.RestoreRequest{Confirm: a.snapshot}, a.by())
		case vps.KindUndoRestore:
			op, err = d.Snapshots.UndoRestore(ctx, id, a.by())
		case vps.KindDelete:
			op, err = d.Snapshots.Delete(ctx, id, a.by())
		}
		if err == nil {
			a.operation = op.ID
		}
		return err
	})
	h.note(id, a)
	return a.operation
}

// await returns when an operation has ended, at most after limit, and whether it has.
func (h *history) await(op string, limit time.Duration) bool {
	h.alive.RLock()
	defer h.alive.RUnlock()
	ctx, cancel := context.WithTimeout(h.life, limit)
	defer cancel()
	found, err := h.daemon.Operations.WaitOperation(ctx, op, limit)
	if err == nil && found.Status == vps.StatusNeedsAttention {
		h.mu.Lock()
		defer h.mu.Unlock()
		if !h.parked[op] {
			h.t.Errorf("%s %s needs attention: %+v", found.Kind, op, found.Error)
		}
		h.parked[op] = true
		return true
	}
	return err == nil && found.Status.Final()
}

// cancel cancels the newest operation of a VPS. Not a deletion by expiry, which
// would then be tried again only after minutes.
func (h *history) cancel(id string) {
	h.alive.RLock()
	defer h.alive.RUnlock()
	page, err := h.daemon.Operations.Operations(h.life, vps.OperationQuery{VPS: id, Limit: 1})
	if err != nil || len(page.Operations) == 0 || page.Operations[0].Actor.Way == vps.WayExpiry {
		return
	}
	op := page.Operations[0].ID
	_, err = h.daemon.Operations.CancelOperation(h.life, op, operator)
	if err != nil && vps.CodeOf(err) != vps.CodeVPSChanged {
		if !h.dying.Load() {
			h.t.Errorf("cancel of %s: %v", op, err)
		}
		err = nil // it may have been heard
		op += " lost"
	} else if err != nil {
		if now, e := h.daemon.Operations.Operation(h.life, op); e == nil && !now.Status.Final() && !now.Irrevocable && now.Error == nil {
			h.t.Errorf("a cancel is refused, although %s of %s can be taken back: %v", now.Kind, now.VPSName, err)
		}
	}
	h.mu.Lock()
	h.cancels[op] = append(h.cancels[op], err == nil)
	h.calls++
	h.mu.Unlock()
}

// watch notes when each operation has ended, whoever asked for it.
func (h *history) watch(done <-chan struct{}) {
	var each sync.WaitGroup
	defer each.Wait()
	for {
		for _, id := range h.vpses {
			for _, op := range h.newest(id) {
				h.mu.Lock()
				known := h.watched[op]
				h.watched[op] = true
				h.mu.Unlock()
				if !known {
					each.Go(func() { h.seeEnd(op, done) })
				}
			}
		}
		select {
		case <-done:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (h *history) newest(id string) []string {
	h.alive.RLock()
	defer h.alive.RUnlock()
	page, err := h.daemon.Operations.Operations(h.life, vps.OperationQuery{VPS: id, Limit: 10})
	if err != nil {
		return nil
	}
	var ids []string
	for _, op := range page.Operations {
		ids = append(ids, op.ID)
	}
	return ids
}

func (h *history) seeEnd(op string, done <-chan struct{}) {
	for !h.await(op, time.Second) {
		select {
		case <-done:
			return
		default:
		}
	}
	h.mu.Lock()
	h.ended[op] = h.since()
	h.mu.Unlock()
}

// settle waits until nothing works any more, and then looks at every disk, its
// snapshot and its undo as a customer does.
func (h *history) settle() {
	h.host.SetHook(nil)
	for _, id := range h.vpses {
		h.eventually("everything has ended on "+id, func() bool {
			v, err := h.daemon.Overview.ShowVPS(ctx, id)
			over := err == nil && v.Option != nil && v.Option.GraceUntil != nil && v.Option.GraceUntil.Before(time.Now())
			return err == nil && v.Operation == nil && !over
		})
		if v, err := h.daemon.Overview.ShowVPS(ctx, id); err != nil || v.Snapshot != nil && v.Option == nil {
			h.t.Errorf("a snapshot without an option, which nobody pays for and nothing deletes: %+v, %v", v.Snapshot, err)
		}
		look := func() {
			for cell := range cells {
				h.read(id, act{client: clients}, cell)
			}
		}
		look()
		if _, err := h.daemon.Snapshots.Snapshot(ctx, id); err != nil {
			h.leavesNothing(id)
			continue
		}
		for i, kind := range []vps.Kind{vps.KindRestore, vps.KindUndoRestore, vps.KindRestore, vps.KindDelete} {
			op := h.ask(id, act{step: step{what: string(kind)}, client: clients, actor: fmt.Sprintf("the end, call %d", i)})
			if op == "" || !h.await(op, 20*time.Second) {
				h.t.Errorf("at the end %s does not work: %q", kind, op)
				return
			}
			look()
		}
		h.leavesNothing(id)
	}
	if left := h.files(); len(left) > 0 {
		h.t.Errorf("files left behind: %v", left)
	}
	h.eventually("the end of every operation was seen", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.ended) == len(h.watched)
	})
}

// leavesNothing is clean, for one VPS of several.
func (h *history) leavesNothing(id string) {
	dom, err := h.guests.Domain(ctx, id)
	if err != nil || dom.Metadata != "" || dom.State != hypervisor.Running {
		h.t.Errorf("the VPS is left as %s, with metadata %q (%v)", dom.State, dom.Metadata, err)
	}
	for _, d := range append(dom.Disks, dom.PersistentDisks...) {
		if strings.Contains(d.Path, ".vpssnap-") || d.Job {
			h.t.Errorf("the definition is left with %+v", d)
		}
	}
}
