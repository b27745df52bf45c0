package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Overlays grow as guests write. Growth is watched by what the files have
// allocated and what the file systems have left: libvirt's block thresholds
// compare the offset of a write, which with preallocated metadata says nothing.

const (
	// spaceCheck is how often the file systems are looked at: one statfs per
	// file system and one stat per overlay.
	spaceCheck = 30 * time.Second
	// forecastWarning and forecastCritical are how soon a file system may be
	// full at its present rate before somebody is told.
	forecastWarning  = 24 * time.Hour
	forecastCritical = 3 * time.Hour
	// rateWindow is over how long a rate of growth is measured.
	rateWindow = 15 * time.Minute
)

// filling is how one file system that holds disks of VPSes fills up.
type filling struct {
	dir    string // one of its directories, to name it by
	space  hypervisor.Space
	level  vps.SpaceLevel
	points []fillPoint // oldest first, none older than rateWindow
	vps    map[string]bool
}

type fillPoint struct {
	at   time.Time
	free int64
}

// fullIn is when it will be full at the present rate; 0: it is not filling up.
func (f *filling) fullIn() time.Duration {
	first, last := f.points[0], f.points[len(f.points)-1]
	took, used := last.at.Sub(first.at), first.free-last.free
	if took <= 0 || used <= 0 {
		return 0
	}
	seconds := float64(last.free) * took.Seconds() / float64(used)
	return time.Duration(min(seconds, 1e9)) * time.Second
}

// judge says how serious it is.
func (f *filling) judge(headroom int64) vps.SpaceLevel {
	full := f.fullIn()
	switch {
	case f.space.Free < headroom || full > 0 && full < forecastCritical:
		return vps.SpaceCritical
	case f.space.Free < 2*headroom || full > 0 && full < forecastWarning:
		return vps.SpaceWarning
	}
	return vps.SpaceOK
}

// watchSpace looks at the file systems until ctx ends.
func (d *Daemon) watchSpace(ctx context.Context) {
	for {
		if d.inventory.ready() {
			d.lookAtSpace(ctx)
			d.askSilent(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(spaceCheck):
		}
	}
}

// lookAtSpace looks once, tells what has changed for better or worse, and lets
// starved guests run again.
func (d *Daemon) lookAtSpace(ctx context.Context) {
	now := map[uint64]*filling{}
	known := d.knownFillings()
	for _, dom := range d.inventory.all() {
		for _, disk := range included(dom.Disks) {
			dir := filepath.Dir(disk.Path)
			space, err := d.Config.Host.Space(ctx, dir)
			if err != nil {
				continue
			}
			f := now[space.Device]
			if f == nil {
				f = &filling{dir: dir, space: space, level: vps.SpaceOK, vps: map[string]bool{}}
				now[space.Device] = f
				f.remember(known[space.Device], d.Now())
			}
			f.vps[dom.ID] = true
		}
	}
	for _, f := range now {
		d.tellSpace(ctx, f)
	}
	d.fillings.Store(&now)
	d.resumeStarved(ctx)
}

// askSilent reads the VPSes again that did not answer: no event tells that one does.
func (d *Daemon) askSilent(ctx context.Context) {
	for _, id := range d.inventory.silentOnes() {
		d.workApart("read", id, func() { d.refreshDomain(ctx, id) })
	}
}

// knownFillings is what was measured last, by file system.
func (d *Daemon) knownFillings() map[uint64]*filling {
	if known := d.fillings.Load(); known != nil {
		return *known
	}
	return nil
}

// remember takes over what was measured before and adds the present.
func (f *filling) remember(before *filling, now time.Time) {
	if before != nil {
		f.level = before.level
		for _, p := range before.points {
			if now.Sub(p.at) <= rateWindow && !p.at.After(now) {
				f.points = append(f.points, p)
			}
		}
	}
	f.points = append(f.points, fillPoint{now, f.space.Free})
}

// tellSpace writes a message when a file system's level has changed.
func (d *Daemon) tellSpace(ctx context.Context, f *filling) {
	level := f.judge(d.present().Headroom)
	if level == f.level {
		return
	}
	params := map[string]string{"free": humanize.IBytes(uint64(f.space.Free)), "total": humanize.IBytes(uint64(f.space.Total))}
	if full := f.fullIn(); full > 0 && level != vps.SpaceOK {
		params["full"] = full.Round(time.Minute).String()
	}
	m := vps.Message{Kind: vps.MessageSpace, Actor: watchman, Phrase: vps.Phrase("space_" + string(level)), Params: params,
		Detail: fmt.Sprintf("%s; takes need %s free", f.dir, humanize.IBytes(uint64(d.present().Headroom)))}
	told := vps.Event{Type: vps.EventType("space." + string(level)), EventData: vps.EventData{Space: &vps.SpaceEvent{Level: level, Path: f.dir,
		TotalBytes: f.space.Total, FreeBytes: f.space.Free, FullInSeconds: int64(f.fullIn().Seconds())}}}
	err := d.store.Write(ctx, func(tx *store.Tx) error { return errors.Join(tx.AddEvent(ctx, told), d.say(ctx, tx, m)) })
	if err != nil {
		d.Logger.Error("space message not written", "error", err)
		return // told again at the next look
	}
	f.level = level
}

// watchman is who speaks when nobody asked.
var watchman = vps.Actor{Name: "vpssnapd", Way: vps.WayRecovery}

// resumeStarved lets guests run again that QEMU had paused because a write
// found no space, once there is some. Other I/O errors are left to the operator.
func (d *Daemon) resumeStarved(ctx context.Context) {
	for _, dom := range d.inventory.all() {
		if dom.State != hypervisor.Paused || dom.PauseReason != hypervisor.PausedByNoSpace {
			continue
		}
		if err := d.resumeIfFed(ctx, dom.ID); err != nil {
			d.Logger.Warn("guest that ran out of space not resumed", vps.LogAttr(dom.ID, dom.Name), "error", err)
		}
	}
}

func (d *Daemon) resumeIfFed(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	release, err := d.locks.acquire(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	rec, err := readRecord(ctx, d.store, id)
	if err != nil || rec.operation != nil {
		return err // an operation decides itself when its guest runs
	}
	dom, err := d.inventory.domain(ctx, id)
	if err != nil || dom.State != hypervisor.Paused || dom.PauseReason != hypervisor.PausedByNoSpace {
		return err
	}
	for _, disk := range included(dom.Disks) {
		space, err := d.Config.Host.Space(ctx, filepath.Dir(disk.Path))
		if err != nil || space.Free < max(d.present().Headroom/4, 64<<20) {
			return err
		}
	}
	if err := d.Config.Host.Resume(ctx, id); err != nil {
		return err
	}
	return d.store.Write(ctx, func(tx *store.Tx) error {
		return d.say(ctx, tx, vps.Message{VPS: id, VPSName: dom.Name, Kind: vps.MessageSpace, Actor: watchman,
			Phrase: vps.PhraseFed})
	})
}
