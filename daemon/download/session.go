package download

import (
	"context"
	"errors"
	"slices"
	"sync"

	"vpssnapd/daemon/vps"
)

// sessionsOfOne is how many downloads of one VPS may run at the same time.
const sessionsOfOne = 2

// sessions are all who read a frozen disk now.
type sessions struct {
	mu  sync.Mutex
	all map[*session]bool
}

// newSessions starts with no reader: none outlives the daemon, whose connections end with it.
func newSessions() *sessions { return &sessions{all: map[*session]bool{}} }

// session is one of them.
type session struct {
	// ctx ends when it is cut off.
	ctx   context.Context
	cut   context.CancelCauseFunc
	of    *sessions
	vps   string
	link  string // "": it is no download, but our own work
	ended chan struct{}
	once  sync.Once
}

// begin registers a reader, which is a download if it has a link. It ends with ctx,
// and with life.
func (s *sessions) begin(ctx, life context.Context, vpsID, link string, atOnce int) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Our own reads do not count: they give way, and no customer waits for them.
	all, ofOne := 0, 0
	for r := range s.all {
		switch {
		case r.link == "":
			continue
		case r.vps == vpsID:
			ofOne++
		}
		all++
	}
	switch {
	case link == "":
	case ofOne >= sessionsOfOne:
		return nil, vps.Errorf(vps.CodeRateLimited, "%d downloads of this VPS run already", ofOne).
			WithRemedy("wait until one has ended")
	case all >= atOnce:
		return nil, vps.Errorf(vps.CodeRateLimited, "as many downloads run on this host as may").
			WithRemedy("wait until one has ended")
	}
	r := &session{of: s, vps: vpsID, link: link, ended: make(chan struct{})}
	r.ctx, r.cut = context.WithCancelCause(ctx)
	stop := context.AfterFunc(life, func() { r.cut(context.Cause(life)) })
	context.AfterFunc(r.ctx, func() { stop() })
	s.all[r] = true
	return r, nil
}

// running counts the downloads.
func (s *sessions) running() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.all {
		if r.link != "" {
			n++
		}
	}
	return n
}

// links are those by which somebody downloads.
func (s *sessions) links() (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.all {
		if r.link != "" && !slices.Contains(ids, r.link) {
			ids = append(ids, r.link)
		}
	}
	return ids
}

// end records that nothing of the reader has the disk open any more.
func (r *session) end() {
	r.once.Do(func() {
		r.cut(errReadingOver)
		r.of.mu.Lock()
		delete(r.of.all, r)
		r.of.mu.Unlock()
		close(r.ended)
	})
}

// errReadingOver ends a read that was cut off, so that a base about to change is not read on.
var errReadingOver = errors.New("the disk is not read any more")

// cut cuts off some readers, and returns when none of them has the disk open. It
// says how many of them were downloads.
func (s *sessions) cut(who func(*session) bool, why string) (downloads int) {
	s.mu.Lock()
	var some []*session
	for r := range s.all {
		if who(r) {
			some = append(some, r)
		}
	}
	s.mu.Unlock()
	for _, r := range some {
		// All are told before any is waited for: they end side by side.
		r.cut(errors.New(why))
	}
	for _, r := range some {
		<-r.ended
		if r.link != "" {
			downloads++
		}
	}
	return downloads
}

// CutOff ends everything that reads the snapshot of a VPS, before the first byte of
// it changes, or because it is no longer to be trusted. QEMU's lock would else refuse
// a merge. It returns when nothing has the disks open, and how many were downloads.
func (d *Downloads) CutOff(vpsID, why string) (downloads int) {
	n := d.sessions.cut(func(r *session) bool { return r.vps == vpsID }, why)
	if n > 0 {
		d.logger.Warn("downloads ended", "vps", d.inventory.Name(vpsID), "downloads", n, "because", why)
	}
	return n
}
