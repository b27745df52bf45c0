package daemon

import (
	"context"
	"sync"
	"time"

	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// driftEvery is how often everything is compared even when nothing seems to
// happen: files are changed without an event.
const driftEvery = 10 * time.Minute

// driftWatch is what the search for drift remembers.
type driftWatch struct {
	all   chan struct{} // compare everything
	names chan struct{} // record names

	mu sync.Mutex
	// known are the findings that the log has already, by VPS.
	known map[string]map[string]bool
}

func newDriftWatch() *driftWatch {
	return &driftWatch{all: make(chan struct{}, 1), names: make(chan struct{}, 1), known: map[string]map[string]bool{}}
}

// wake makes watchDrift compare everything soon.
func (w *driftWatch) wake() { poke(w.all) }

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// saw is told of every domain that was read.
func (d *Daemon) saw(domains ...hypervisor.Domain) {
	if d.names.note(domains...) {
		poke(d.drift.names)
	}
}

// watchDrift compares everything at the start, whenever libvirt comes back, and
// now and then; single VPSes are looked at when they are defined anew (lookAt).
func (d *Daemon) watchDrift(ctx context.Context) {
	ctx = failpoint.Within(ctx, "daemon", "drift")
	regular := time.NewTicker(driftEvery)
	defer regular.Stop()
	for {
		d.recordNames(ctx)
		select {
		case <-ctx.Done():
			return
		case <-d.drift.names:
			continue
		case <-d.drift.all:
		case <-regular.C:
		}
		report, err := d.Checks(ctx)
		if err != nil {
			if ctx.Err() == nil {
				d.Logger.Warn("host not compared with the record", "error", err)
			}
			continue
		}
		byVPS := map[string][]vps.Finding{}
		for _, f := range report.Findings {
			byVPS[f.VPS] = append(byVPS[f.VPS], f)
		}
		d.drift.forget(byVPS)
		for id, findings := range byVPS {
			d.tellDrift(id, findings)
		}
	}
}

// lookAt compares one VPS, after somebody did something to it.
func (d *Daemon) lookAt(ctx context.Context, id string) {
	ctx = failpoint.Within(ctx, "daemon", "drift")
	rec, err := readRecord(ctx, d.store, id)
	if err != nil || rec.operation != nil || rec.snapshot == nil {
		return
	}
	findings, _, err := d.checkVPS(ctx, &inspection{id: id})
	if err != nil {
		if ctx.Err() == nil {
			d.Logger.Warn("VPS not compared with the record", d.logAttr(id), "error", err)
		}
		return
	}
	d.tellDrift(id, findings)
}

// tellDrift writes into the log what was not found before.
func (d *Daemon) tellDrift(id string, findings []vps.Finding) {
	d.drift.mu.Lock()
	before := d.drift.known[id]
	now := map[string]bool{}
	for _, f := range findings {
		now[driftKey(f)] = true
	}
	d.drift.known[id] = now
	d.drift.mu.Unlock()
	for _, f := range findings {
		if !before[driftKey(f)] {
			d.Logger.Warn("drift: vpssnap doctor tells what to do", "code", f.Code, vps.LogAttr(f.VPS, f.VPSName), "disk", f.Disk, "path", f.Path, "detail", f.Detail)
		}
	}
}

func driftKey(f vps.Finding) string {
	return string(f.Code) + "\x00" + f.Disk + "\x00" + f.Path + "\x00" + f.Operation
}

// forget drops what is over, so that it is told when it comes again.
func (w *driftWatch) forget(present map[string][]vps.Finding) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.known {
		if _, still := present[id]; !still {
			delete(w.known, id)
		}
	}
}
