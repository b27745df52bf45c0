package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// readersOfOne is how many downloads of one VPS may run at the same time.
const readersOfOne = 2

// DownloadPolicy limits downloads.
type DownloadPolicy struct {
	// Rate is how many bytes per second each may take; 0: unlimited.
	Rate int64
	// AtOnce is how many may run at the same time; 0: none.
	AtOnce int
}

// readers are all who read a frozen disk now.
type readers struct {
	mu  sync.Mutex
	all map[*reading]bool
}

func newReaders() *readers { return &readers{all: map[*reading]bool{}} }

// reading is one of them.
type reading struct {
	// ctx ends when it is cut off.
	ctx   context.Context
	cut   context.CancelCauseFunc
	of    *readers
	vps   string
	link  string // "": it is no download, but our own work
	ended chan struct{}
	once  sync.Once
}

// begin registers a reader, which is a download if it has a link. It ends with ctx,
// and with life.
func (s *readers) begin(ctx, life context.Context, vpsID, link string, atOnce int) (*reading, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
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
	case ofOne >= readersOfOne:
		return nil, vps.Errorf(vps.CodeRateLimited, "%d downloads of this VPS run already", ofOne).WithRemedy("wait until one has ended")
	case all >= atOnce:
		return nil, vps.Errorf(vps.CodeRateLimited, "as many downloads run on this host as may").WithRemedy("wait until one has ended")
	}
	r := &reading{of: s, vps: vpsID, link: link, ended: make(chan struct{})}
	r.ctx, r.cut = context.WithCancelCause(ctx)
	stop := context.AfterFunc(life, func() { r.cut(context.Cause(life)) })
	context.AfterFunc(r.ctx, func() { stop() })
	s.all[r] = true
	return r, nil
}

// running counts the downloads.
func (s *readers) running() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.all {
		if r.link != "" {
			n++
		}
	}
	return n
}

// end says that nothing of the reader has the disk open any more.
func (r *reading) end() {
	r.once.Do(func() {
		r.cut(errReadingOver)
		r.of.mu.Lock()
		delete(r.of.all, r)
		r.of.mu.Unlock()
		close(r.ended)
	})
}

var errReadingOver = errors.New("the disk is not read any more")

// cut cuts off some readers, and returns when none of them has the disk open. It
// says how many of them were downloads.
func (s *readers) cut(who func(*reading) bool, why string) (downloads int) {
	s.mu.Lock()
	var some []*reading
	for r := range s.all {
		if who(r) {
			some = append(some, r)
		}
	}
	s.mu.Unlock()
	for _, r := range some {
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

// cutReaders cuts off everybody who reads the snapshot of a VPS, before the first
// byte of it changes, and says so. QEMU's lock would else refuse the merge.
func (d *Daemon) cutReaders(ctx context.Context, r *operation.Run) error {
	n := d.downloads.cut(func(who *reading) bool { return who.vps == r.Op.VPS }, "the snapshot is deleted or replaced")
	if n == 0 {
		return nil
	}
	d.Logger.Info("downloads ended", "operation", r.Op.ID, "vps", r.Op.VPSName, "downloads", n)
	said := []string{fmt.Sprintf("downloads that were cut off: %d", n)}
	if r.Op.Result != "" {
		said = append([]string{r.Op.Result}, said...)
	}
	r.Op.Result = strings.Join(said, "; ")
	return r.Record(ctx, func(tx *store.Tx) error {
		return d.say(ctx, tx, vps.Message{VPS: r.Op.VPS, VPSName: r.Op.VPSName, Kind: vps.MessageDownload, Actor: r.Op.Actor, Operation: r.Op.ID,
			Phrase: vps.PhraseDownloadsEnded, Params: map[string]string{"count": fmt.Sprint(n)}})
	})
}

// cutReadersOf is cutReaders for a snapshot that is no longer to be trusted, or
// not of this host.
func (d *Daemon) cutReadersOf(vpsID, why string) {
	if n := d.downloads.cut(func(r *reading) bool { return r.vps == vpsID }, why); n > 0 {
		d.Logger.Warn("downloads ended", "vps", d.names.name(vpsID), "downloads", n, "because", why)
	}
}
