// Package journal tells what happened: events to listeners, messages to customers and
// operators, and a line to the log for each, so that the log alone tells the story of
// a VPS.
package journal

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// Journal is what happened on one host.
type Journal struct {
	store     *store.Store
	inventory *inventory.Inventory
	logger    *slog.Logger
	feed      *feed
}

// New makes the journal of a record. Nothing is told before Run.
func New(ctx context.Context, db *store.Store, inv *inventory.Inventory, logger *slog.Logger) (*Journal, error) {
	last, err := db.LastEvent(ctx)
	if err != nil {
		return nil, err
	}
	return &Journal{store: db, inventory: inv, logger: logger, feed: openFeed(last)}, nil
}

const (
	// recentEvents is how many events are kept in memory, for all listeners together.
	recentEvents = 1024
	// eventPage is how many events are read at once.
	eventPage = 256
	// eventRetry is when a read of new events that failed is tried again.
	eventRetry = time.Second
)

// feed holds the latest events for all who listen. There is one reader of the database,
// woken by commits; a listener who is far behind reads by itself. Its lock is held for
// copying only, never while the database is read.
type feed struct {
	mu      sync.Mutex
	began   int64       // the id of the newest when it was opened
	last    int64       // the id of the newest that was read
	recent  []vps.Event // without gap up to last
	changed chan struct{}
}

// openFeed begins behind the newest event.
func openFeed(last int64) *feed {
	return &feed{began: last, last: last, changed: make(chan struct{})}
}

// add appends what was read, and wakes every listener.
func (f *feed) add(events []vps.Event) {
	if len(events) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recent = append(f.recent, events...)
	if extra := len(f.recent) - recentEvents; extra > 0 {
		clear(f.recent[:extra])     // what they point to goes at once,
		f.recent = f.recent[extra:] // their place when append has to move the rest
	}
	f.last = events[len(events)-1].ID
	// Closing wakes all listeners at once, however many there are.
	close(f.changed)
	f.changed = make(chan struct{})
}

// after returns the events after one, if they are all in memory.
func (f *feed) after(id int64) (page vps.EventPage, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if id == vps.FromNow {
		id = f.last
	}
	page = vps.EventPage{After: id, Changed: f.changed}
	behind := f.last - id
	// An id of another database, or one that is older than what is kept in memory.
	if behind < 0 || behind > int64(len(f.recent)) {
		return page, false
	}
	from := f.recent[len(f.recent)-int(behind):]
	// A copy: the slots of recent are used again.
	page.Events = append(page.Events, from[:min(len(from), eventPage)]...)
	return page, true
}

// count is how many were read since it was opened.
func (f *feed) count() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last - f.began
}

// newest is the id of the newest event that was read.
func (f *feed) newest() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// Count is how many events came since the daemon's start.
func (j *Journal) Count() int64 { return j.feed.count() }

// AllRead reports whether listeners can have every event there is.
func (j *Journal) AllRead(ctx context.Context) bool {
	last, err := j.store.LastEvent(ctx)
	return err == nil && j.feed.newest() == last
}

// Run reads new events whenever a commit has added some, until ctx ends.
func (j *Journal) Run(ctx context.Context) {
	for {
		events, err := j.store.Events(ctx, j.feed.newest(), eventPage)
		// Listeners before the log, which may be slow.
		j.feed.add(events)
		j.log(ctx, events)
		var again <-chan time.Time
		switch {
		case err != nil && ctx.Err() == nil:
			j.logger.Error("new events cannot be read", "error", err)
			again = time.After(eventRetry)
		// There may be more, which no further commit would wake us for.
		case len(events) == eventPage:
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-j.store.Committed():
		case <-again:
		}
	}
}

// Events returns the events after one, or from now on (vps.FromNow).
func (j *Journal) Events(ctx context.Context, after int64) (vps.EventPage, error) {
	page, ok := j.feed.after(after)
	if ok {
		return page, nil
	}
	last, err := j.store.LastEvent(ctx) // first, so that it is not newer than what is read then
	if err != nil {
		return page, err
	}
	page.Events, err = j.store.Events(ctx, page.After, eventPage)
	// Ids are given out in the order of commits; a gap means that pruning goes on at
	// this moment.
	for i := 1; i < len(page.Events); i++ {
		if page.Events[i].ID != page.Events[i-1].ID+1 { // what comes then, the next page tells
			page.Events = page.Events[:i]
		}
	}
	switch {
	case err != nil:
	case len(page.Events) > 0 && page.Events[0].ID != page.After+1:
		page.Missed, page.After = true, page.Events[0].ID-1
	case len(page.Events) == 0 && page.After != last: // all are pruned, or the number is of another database
		page.Missed, page.After = true, last
	}
	return page, err
}
