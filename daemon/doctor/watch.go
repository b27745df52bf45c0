package doctor

import (
	"context"
	"sync"
	"time"

	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/work"
)

// driftEvery is how often everything is compared even when nothing seems to
// happen: files are changed without an event.
const driftEvery = 10 * time.Minute

// drift is what the search for it remembers.
type drift struct {
	all work.Signal // compare everything

	mu sync.Mutex
	// known are the findings that the log has already, by VPS.
	known map[string]map[string]bool
}

// newDrift knows nothing yet, so that after a start every difference is told once.
func newDrift() *drift {
	return &drift{all: work.NewSignal(), known: map[string]map[string]bool{}}
}

// Watch compares everything at the start, whenever libvirt comes back, and
// now and then; single VPSes are looked at when they are defined again (lookAt).
func (d *Doctor) Watch(ctx context.Context) {
	ctx = failpoint.Within(ctx, "daemon", "drift")
	regular := time.NewTicker(driftEvery)
	defer regular.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.drift.all:
		case <-regular.C:
		}
		// An error ends this round only; the next comes with the next event or tick.
		report, err := d.Checks(ctx)
		if err != nil {
			if ctx.Err() == nil {
				d.logger.Warn("host not compared with the record", "error", err)
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

// lookAt compares one VPS, after somebody did something to it. Only a VPS with a
// snapshot and no operation is worth a look at each of its events.
func (d *Doctor) lookAt(ctx context.Context, id string) {
	ctx = failpoint.Within(ctx, "daemon", "drift")
	rec, err := d.store.Record(ctx, id)
	if err != nil || rec.Operation != nil || rec.Snapshot == nil {
		return
	}
	findings, _, err := d.checkVPS(ctx, &inspection{id: id})
	if err != nil {
		if ctx.Err() == nil {
			d.logger.Warn("VPS not compared with the record", d.inventory.LogAttr(id), "error", err)
		}
		return
	}
	d.tellDrift(id, findings)
}

// tellDrift writes into the log what was not found before. It is also in the doctor's
// report, so once is enough.
func (d *Doctor) tellDrift(id string, findings []vps.Finding) {
	d.drift.mu.Lock()
	before := d.drift.known[id]
	now := map[string]bool{}
	for _, f := range findings {
		now[driftKey(f)] = true
	}
	if d.drift.known[id] = now; len(now) == 0 {
		delete(d.drift.known, id)
	}
	d.drift.mu.Unlock()
	for _, f := range findings {
		if !before[driftKey(f)] {
			d.logger.Warn(
				"drift: vpssnap doctor tells what to do", "code", f.Code, vps.LogAttr(f.VPS, f.VPSName), "disk", f.Disk,
				"path", f.Path, "detail", f.Detail,
			)
		}
	}
}

// driftKey tells findings apart without their text: sizes and times in it change, and the log
// would repeat the same drift with every look.
func driftKey(f vps.Finding) string {
	return string(f.Code) + "\x00" + f.Disk + "\x00" + f.Path + "\x00" + f.Operation
}

// forget drops what is over, so that it is told when it comes again.
func (w *drift) forget(present map[string][]vps.Finding) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.known {
		if _, still := present[id]; !still {
			delete(w.known, id)
		}
	}
}
