// Package space watches the file systems on which overlays grow: how much room is left,
// when it will be used up at the present rate, and which guests QEMU has paused for want
// of it.
package space

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Overlays grow as guests write. Growth is watched by what the files have
// allocated and what the file systems have left: libvirt's block thresholds
// compare the offset of a write, which with preallocated metadata says nothing.

const (
	// forecastWarning and forecastCritical are how soon a file system may be
	// full at its present rate before somebody is told.
	forecastWarning  = 24 * time.Hour
	forecastCritical = 3 * time.Hour
	// rateWindow is over how long a rate of growth is measured.
	rateWindow = 15 * time.Minute
)

// Policy says how much room takes need.
type Policy struct {
	// Headroom is how many bytes must be free for a take.
	Headroom int64
}

// Space watches the file systems that hold the disks of a host's VPSes.
type Space struct {
	host      hypervisor.Host
	inventory *inventory.Inventory
	store     *store.Store
	policy    func() Policy
	logger    *slog.Logger
	fillings  atomic.Pointer[map[uint64]*filling] // as last measured
	silent    sync.Map                            // the directories that could not be read
}

// New makes a watch that has measured nothing yet.
func New(
	host hypervisor.Host, inv *inventory.Inventory, db *store.Store, policy func() Policy, logger *slog.Logger,
) *Space {
	return &Space{host: host, inventory: inv, store: db, policy: policy, logger: logger}
}

// filling is how one file system that holds disks of VPSes fills up.
type filling struct {
	dir    string // one of its directories, to name it by
	space  hypervisor.Space
	level  vps.SpaceLevel
	points []fillPoint // oldest first, none older than rateWindow
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
	// Capped, because a slow rate gives more seconds than a Duration holds.
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

// Look looks at the file systems once, tells what has changed for better or worse, and lets
// starved guests run again.
func (s *Space) Look(ctx context.Context) {
	now := map[uint64]*filling{}
	known := s.known()
	dirs := diskDirs(s.inventory.All())
	for _, dir := range dirs {
		space, err := s.host.Space(ctx, dir)
		if s.noteSilent(dir, err); err != nil {
			continue // the others are watched all the same
		}
		if now[space.Device] == nil {
			f := &filling{dir: dir, space: space, level: vps.SpaceOK}
			f.remember(known[space.Device], s.store.Now())
			now[space.Device] = f
		}
	}
	s.forgetSilent(dirs)
	for _, f := range now {
		s.tell(ctx, f)
	}
	s.fillings.Store(&now)
	s.resumeStarved(ctx)
}

// diskDirs are the directories in which the disks of VPSes lie, each once: a mount that
// does not answer is to be asked once.
func diskDirs(domains []hypervisor.Domain) []string {
	dirs := map[string]bool{}
	for _, dom := range domains {
		for _, disk := range image.Included(dom.Disks) {
			dirs[filepath.Dir(disk.Path)] = true
		}
	}
	return slices.Sorted(maps.Keys(dirs))
}

// noteSilent names a directory in the log whose file system cannot be read, and again
// when it can: nobody watches its space meanwhile.
func (s *Space) noteSilent(dir string, err error) {
	_, silent := s.silent.Load(dir)
	switch {
	case err != nil && !silent:
		s.silent.Store(dir, true)
		s.logger.Warn("space is not watched", "directory", dir, "error", err)
	case err == nil && silent:
		s.silent.Delete(dir)
		s.logger.Info("space is watched again", "directory", dir)
	}
}

// forgetSilent drops the directories in which no disk lies any more.
func (s *Space) forgetSilent(dirs []string) {
	s.silent.Range(func(dir, _ any) bool {
		if !slices.Contains(dirs, dir.(string)) { //nolint:forcetypeassert // the only type that is stored
			s.silent.Delete(dir)
		}
		return true
	})
}

// known is what was measured last, by file system.
func (s *Space) known() map[uint64]*filling {
	if known := s.fillings.Load(); known != nil {
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

// tell writes a message when a file system's level has changed. One message for each
// change of level, not one for each look: it goes out by mail and webhook.
func (s *Space) tell(ctx context.Context, f *filling) {
	level := f.judge(s.policy().Headroom)
	if level == f.level {
		return
	}
	params := map[string]string{
		"free":  humanize.IBytes(uint64(f.space.Free)),
		"total": humanize.IBytes(uint64(f.space.Total)),
	}
	if full := f.fullIn(); full > 0 && level != vps.SpaceOK {
		params["full"] = full.Round(time.Minute).String()
	}
	m := vps.Message{
		Kind:   vps.MessageSpace,
		Actor:  vps.ActorWatch,
		Phrase: vps.Phrase("space_" + string(level)),
		Params: params,
		Detail: fmt.Sprintf("%s; takes need %s free", f.dir, humanize.IBytes(uint64(s.policy().Headroom))),
	}
	told := vps.Event{
		Type: vps.EventType("space." + string(level)),
		EventData: vps.EventData{Space: &vps.SpaceEvent{Level: level, Path: f.dir,
			TotalBytes: f.space.Total, FreeBytes: f.space.Free, FullInSeconds: int64(f.fullIn().Seconds())}},
	}
	err := s.store.Write(ctx,
		// Event and message belong together, so that nobody is told by one way only.
		func(tx *store.Tx) error { return errors.Join(tx.AddEvent(ctx, told), tx.AddMessage(ctx, m)) })
	if err != nil {
		s.logger.Error("space message not written", "error", err)
		return // told again at the next look
	}
	f.level = level
}

// resumeStarved lets guests run again that QEMU had paused because a write
// found no space, once there is some. Other I/O errors are left to the operator.
func (s *Space) resumeStarved(ctx context.Context) {
	for _, dom := range s.inventory.All() {
		if dom.State != hypervisor.Paused || dom.PauseReason != hypervisor.PausedByNoSpace {
			continue
		}
		if err := s.resumeIfFed(ctx, dom.ID); err != nil {
			s.logger.Warn("guest that ran out of space not resumed", vps.LogAttr(dom.ID, dom.Name), "error", err)
		}
	}
}

// least is the room without which a guest would soon be starved again.
func (s *Space) least() int64 { return max(s.policy().Headroom/4, 64<<20) }

// CheckRoom refuses to stop a VPS where there is no room for what it writes when it runs again.
func (s *Space) CheckRoom(ctx context.Context, cannot string, snap vps.Snapshot) error {
	for _, disk := range snap.Disks {
		space, err := s.host.Space(ctx, filepath.Dir(disk.Overlay))
		if err != nil {
			return fault.Explain(cannot, err)
		}
		if space.Free < s.least() {
			return vps.Errorf(vps.CodeInsufficientSpace, "%s: %d bytes are free for disk %s, %d are required",
				cannot, space.Free, disk.Target, s.least()).
				WithRemedy("free space on the host, or lower the required headroom")
		}
	}
	return nil
}

// resumeIfFed lets a guest run on that stopped for want of space, under its lock, as an
// operation may want it suspended.
func (s *Space) resumeIfFed(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, inventory.AnswerWithin)
	defer cancel()
	release, err := s.inventory.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	rec, err := s.store.Record(ctx, id)
	if err != nil || rec.Operation != nil {
		return err // an operation decides itself when its guest runs
	}
	dom, err := s.inventory.Read(ctx, id)
	if err != nil || dom.State != hypervisor.Paused || dom.PauseReason != hypervisor.PausedByNoSpace {
		return err
	}
	for _, disk := range image.Included(dom.Disks) {
		space, err := s.host.Space(ctx, filepath.Dir(disk.Path))
		// A little room would be used up at once, and QEMU would pause the guest again.
		if err != nil || space.Free < s.least() {
			return err
		}
	}
	if err := s.host.Resume(ctx, id); err != nil {
		return err
	}
	return s.store.Write(ctx, func(tx *store.Tx) error {
		return tx.AddMessage(ctx, vps.Message{VPS: id, VPSName: dom.Name, Kind: vps.MessageSpace, Actor: vps.ActorWatch,
			Phrase: vps.PhraseFed})
	})
}

// Storage tells the room in every directory that holds disks.
func (s *Space) Storage(ctx context.Context, domains []hypervisor.Domain, overlays map[string]int64) []vps.Storage {
	var all []vps.Storage
	for _, dir := range diskDirs(domains) {
		space, err := s.host.Space(ctx, dir)
		if err != nil {
			continue
		}
		one := vps.Storage{Path: dir, TotalBytes: space.Total, FreeBytes: space.Free,
			HeadroomBytes: s.policy().Headroom,
			OverlayBytes:  overlays[dir], TakesPermitted: space.Free >= s.policy().Headroom, Level: vps.SpaceOK}
		// The level is the watch's own; what was never measured counts as fine.
		if f := s.known()[space.Device]; f != nil {
			one.Level, one.FullInSeconds = f.level, int64(f.fullIn().Seconds())
		}
		all = append(all, one)
	}
	return all
}

// CheckHeadroom refuses a take when a file system that would hold an overlay is short of room.
func (s *Space) CheckHeadroom(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) error {
	for _, disk := range snap.Disks {
		space, err := s.spaceToCome(ctx, filepath.Dir(disk.Overlay))
		if err != nil {
			return fault.Explain("cannot take a snapshot of "+dom.Name, err)
		}
		if space.Free < s.policy().Headroom {
			return vps.Errorf(vps.CodeInsufficientSpace,
				"cannot take a snapshot of %s: %d bytes are free for disk %s, %d are required",
				dom.Name, space.Free, disk.Target, s.policy().Headroom).
				WithRemedy("free space on the host, or lower the required headroom")
		}
	}
	return nil
}

// roomWait is how long a take may wait for the room of what was just removed: up to
// 1.3 s was seen for one overlay.
const roomWait = 5 * time.Second

// spaceToCome reads a file system; where it is short of room, again when the room of
// what was removed has come back.
func (s *Space) spaceToCome(ctx context.Context, dir string) (hypervisor.Space, error) {
	space, err := s.host.Space(ctx, dir)
	if err != nil || space.Free >= s.policy().Headroom {
		return space, err
	}
	waiting, cancel := context.WithTimeout(ctx, roomWait)
	defer cancel()
	// ext4 and XFS give the blocks of a large file back after the unlink has returned.
	_ = s.host.AwaitRoom(waiting, dir) // what has come back until then counts
	return s.host.Space(ctx, dir)
}
