package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vpssnapd/api/server"
	"vpssnapd/cmd/internal/wire"
	"vpssnapd/daemon"
	"vpssnapd/daemon/guest"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/notify"
	"vpssnapd/daemon/snapshot"
	"vpssnapd/daemon/store/storetest"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/fake"
	"vpssnapd/hypervisor/qemuimg"
)

const (
	// clients ask side by side, as the panels and order systems of a provider do.
	clients = 4
	// callEvery is how often each of them asks: a busy panel, but one that leaves the
	// processors to the guests. One that asks without pause measures the processors.
	callEvery = 200 * time.Millisecond
	// workers keep operations running while the calls are measured.
	workers = 2
	// workEvery is how often each of them takes and deletes a snapshot: far more than
	// customers ask for.
	workEvery = time.Second
	// noLimit is more calls per second than are made.
	noLimit = 1_000_000
)

var operator = vps.Actor{Name: "bench", Way: vps.WayOperator}

func name(i int) string { return fmt.Sprintf("web%d", i) }

// host is one daemon on a fake host, with its API on a port.
type host struct {
	dir       string
	fake      *fake.Host
	daemon    *daemon.Daemon
	server    *server.Server
	served    chan error
	url       string
	token     string
	web       *http.Client
	defined   []storetest.VPS
	vpses     int
	snapshots int
}

// The directory goes with the host, whatever fails.
func openHost(ctx context.Context, vpses, days int) (h *host, err error) {
	h = &host{
		served: make(chan error, 1),
		vpses:  vpses,
		web:    &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}},
	}
	if h.dir, err = os.MkdirTemp("", "vpssnap-bench-"); err != nil {
		return nil, err
	}
	if err := h.prepare(ctx, days); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

// prepare begins with nothing but a directory. The history comes first: what is measured
// is a daemon that opens a database of that age.
func (h *host) prepare(ctx context.Context, days int) error {
	history := func(ctx context.Context) error {
		return storetest.AddHistory(ctx, filepath.Join(h.dir, "state", "vpssnapd.db"), h.defined, days)
	}
	for _, step := range []func(context.Context) error{h.define, h.start, history, h.fill} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// define makes the VPSes: nine of ten run.
func (h *host) define(ctx context.Context) (err error) {
	for _, dir := range []string{"host", "state"} {
		if err := os.Mkdir(filepath.Join(h.dir, dir), 0o700); err != nil {
			return err
		}
	}
	if h.fake, err = fake.Open(filepath.Join(h.dir, "host")); err != nil {
		return err
	}
	for i := range h.vpses {
		id, err := h.fake.Define(name(i), hypervisor.Disk{Target: "vda", SizeBytes: 1 << 20})
		if err != nil {
			return err
		}
		h.defined = append(h.defined, storetest.VPS{ID: id, Name: name(i)})
		if i%10 != 0 {
			if err := h.fake.Start(ctx, id, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// quickStat is the fake host, but for one call that lists make for every snapshot:
// the fake's own reads the whole image, under the lock of all.
type quickStat struct {
	*fake.Host
	files *qemuimg.Images
}

func (q quickStat) Stat(ctx context.Context, path string) (hypervisor.File, error) {
	return q.files.Stat(ctx, path)
}

// Through a real port and HTTP, as panels come.
func (h *host) start(ctx context.Context) (err error) {
	log := slog.New(slog.DiscardHandler)
	files, err := qemuimg.New()
	if err != nil {
		return err
	}
	h.daemon, err = daemon.Open(ctx, daemon.Config{
		Host: quickStat{h.fake, files}, StateDir: filepath.Join(h.dir, "state"), Version: "bench", Logger: log,
		Settings: daemon.Settings{
			Notify:   notify.Policy{Grace: time.Hour},
			Snapshot: snapshot.Policy{UndoKeep: time.Hour, AgentWait: time.Second},
			Guest:    guest.Policy{FreezeLimit: time.Second},
			Merge:    merge.Policy{Limit: workers},
			Offer:    vps.Offer{ID: "snapshot", Price: vps.Price{Amount: 299, Currency: "EUR", Period: vps.PeriodMonth}},
		},
	})
	if err != nil {
		return err
	}
	if _, h.token, err = h.daemon.Tokens.CreateToken(ctx, vps.TokenRequest{Name: "bench", Scopes: []vps.Scope{vps.ScopeAdmin}}, operator); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	h.url = "http://" + l.Addr().String()
	h.server = server.New(server.Config{Services: wire.REST(h.daemon), PerSecond: noLimit, Logger: log, Version: "bench"})
	go func() { h.served <- h.server.ServeTCP(l, nil) }()
	return nil
}

// fill sells the option to all, and takes a snapshot of every second VPS. With a
// snapshot on every second VPS a list has both kinds.
func (h *host) fill(ctx context.Context) error {
	for i := range h.vpses {
		if _, err := h.daemon.Options.PutOption(ctx, name(i), vps.OptionOrder{State: vps.OptionActive, OrderRef: fmt.Sprint("A-", i)}, operator); err != nil {
			return err
		}
		if i%2 == 0 {
			continue
		}
		if err := h.done(h.daemon.Snapshots.Take(ctx, name(i), vps.TakeRequest{Description: "before the upgrade", Quiesce: vps.QuiesceNever}, operator)); err != nil {
			return err
		}
		h.snapshots++
	}
	return nil
}

// done waits for an operation that was begun.
func (h *host) done(op vps.Operation, err error) error {
	if err != nil {
		return err
	}
	op, err = h.daemon.Operations.WaitOperation(context.Background(), op.ID, time.Minute)
	if err == nil && op.Status != vps.StatusSucceeded {
		err = fmt.Errorf("%s of %s is %s: %w", op.Kind, op.VPSName, op.Status, op.Error)
	}
	return err
}

// work keeps operations running until stop is called, which tells how many there were.
// Takes and deletes, so that the writer of the database is never idle.
func (h *host) work(ctx context.Context) (stop func() (int64, error)) {
	ctx, cancel := context.WithCancel(ctx)
	var n atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	for w := range workers {
		wg.Go(func() {
			pace := time.NewTicker(workEvery)
			defer pace.Stop()
			for i := 2 * w; ctx.Err() == nil; i = (i + 2*workers) % h.vpses { // those without a snapshot
				op, err := h.daemon.Snapshots.Take(ctx, name(i), vps.TakeRequest{Quiesce: vps.QuiesceNever}, operator)
				if err = h.done(op, err); err == nil {
					err = h.done(h.daemon.Snapshots.Delete(context.WithoutCancel(ctx), name(i), operator))
				}
				if err != nil {
					if ctx.Err() == nil {
						errs <- err
					}
					return
				}
				n.Add(2)
				select {
				case <-pace.C:
				case <-ctx.Done():
				}
			}
		})
	}
	return func() (int64, error) {
		cancel()
		wg.Wait()
		close(errs)
		return n.Load(), <-errs
	}
}

// get makes one call with a token, and hands out the answer.
func (h *host) get(ctx context.Context, path string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, h.url+path, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+h.token)
	resp, err := h.web.Do(r)
	if err == nil && resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		err = fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return resp, err
}

// measure makes n calls, some at a time, and tells how long they took. The slowest count
// as much as the median: a page waits for its last call.
func (h *host) measure(ctx context.Context, what string, n int, path func(i int) string) (callResult, error) {
	took := make([]time.Duration, n)
	var size atomic.Int64
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, clients)
	for c := range clients {
		wg.Go(func() {
			<-time.After(time.Duration(c) * callEvery / clients) // they do not know of each other
			pace := time.NewTicker(callEvery)
			defer pace.Stop()
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				<-pace.C
				start := time.Now()
				resp, err := h.get(ctx, path(i))
				if err != nil {
					errs <- err
					return
				}
				bytes, err := io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if err != nil {
					errs <- err
					return
				}
				took[i] = time.Since(start)
				size.Store(bytes)
			}
		})
	}
	wg.Wait()
	close(errs)
	slices.Sort(took)
	at := func(q float64) float64 { return took[int(q*float64(n-1))].Seconds() * 1000 }
	return callResult{Call: what, Bytes: size.Load(), N: n, P50: at(0.5), P99: at(0.99), Max: at(1)}, <-errs
}

// usage is what the process has used of its processors, and holds in memory. Of this
// process as a whole: clients and server share it.
func usage() (time.Duration, int64) {
	runtime.GC()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0, 0
	}
	return time.Duration(
			r.Utime.Nano() + r.Stime.Nano(),
		), int64(
			mem.HeapAlloc + mem.StackInuse,
		) //nolint:gosec // far below the limit
}

// listen tells what listeners cost: nobody and everybody, at rest and at work. The
// window is the same for each number of listeners.
func (h *host) listen(ctx context.Context, n int, window time.Duration) ([]listenCosts, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var events atomic.Int64
	_, empty := usage()
	all := []listenCosts{}
	for _, listeners := range []int{0, n} {
		for range listeners {
			if err := h.listenOnce(ctx, &events); err != nil {
				return nil, err
			}
		}
		for _, doing := range []string{"nothing happens", "operations run"} {
			stop := func() (int64, error) { return 0, nil }
			if doing == "operations run" {
				stop = h.work(ctx)
			}
			before, memory := usage()
			heard := events.Load()
			select {
			case <-time.After(window):
			case <-ctx.Done():
			}
			after, _ := usage()
			if _, err := stop(); err != nil {
				return nil, err
			}
			all = append(all, listenCosts{Listeners: listeners, Doing: doing, Memory: memory - empty,
				CPU: 100 * (after - before).Seconds() / window.Seconds(), Events: events.Load() - heard})
		}
	}
	return all, ctx.Err()
}

// listenOnce begins to listen, until ctx ends.
func (h *host) listenOnce(ctx context.Context, events *atomic.Int64) error {
	resp, err := h.get(ctx, "/v1/events")
	if err != nil {
		return err
	}
	go func() {
		defer resp.Body.Close()
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), "data: ") {
				events.Add(1)
			}
		}
	}()
	return nil
}

// close ends everything in the order in which main would.
func (h *host) close() error {
	var err error
	if h.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err = errors.Join(h.server.Shutdown(ctx), <-h.served)
	}
	if h.daemon != nil {
		err = errors.Join(err, h.daemon.Close())
	}
	if h.fake != nil {
		err = errors.Join(err, h.fake.Close())
	}
	return errors.Join(err, os.RemoveAll(h.dir))
}
