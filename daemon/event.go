package daemon

import (
	"context"
	"sync"
	"time"

	"vpssnapd/daemon/vps"
)

const (
	// recentEvents is how many events are kept in memory, for all listeners together.
	recentEvents = 1024
	// eventPage is how many events are read at once.
	eventPage = 256
	// eventRetry is when a read of new events that failed is tried again.
	eventRetry = time.Second
)

// eventFeed holds the latest events for all who listen. There is one reader of
// the database, woken by commits; a listener who is far behind reads by itself.
type eventFeed struct {
	mu      sync.Mutex
	began   int64       // the id of the newest when it was opened
	last    int64       // the id of the newest that was read
	recent  []vps.Event // without gap up to last
	changed chan struct{}
}

// openFeed begins behind the newest event.
func openFeed(last int64) *eventFeed {
	return &eventFeed{began: last, last: last, changed: make(chan struct{})}
}

// add appends what was read, and wakes every listener.
func (f *eventFeed) add(events []vps.Event) {
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
	close(f.changed)
	f.changed = make(chan struct{})
}

// after returns the events after one, if they are all in memory.
func (f *eventFeed) after(id int64) (page vps.EventPage, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if id == vps.FromNow {
		id = f.last
	}
	page = vps.EventPage{After: id, Changed: f.changed}
	behind := f.last - id
	if behind < 0 || behind > int64(len(f.recent)) {
		return page, false
	}
	from := f.recent[len(f.recent)-int(behind):]
	page.Events = append(page.Events, from[:min(len(from), eventPage)]...)
	return page, true
}

// count is how many were read since it was opened.
func (f *eventFeed) count() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last - f.began
}

// newest is the id of the newest event that was read.
func (f *eventFeed) newest() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// followEvents reads new events whenever a commit has added some.
func (d *Daemon) followEvents(ctx context.Context) {
	for {
		events, err := d.store.Events(ctx, d.events.newest(), eventPage)
		d.events.add(events)
		d.story(events)
		var again <-chan time.Time
		switch {
		case err != nil && ctx.Err() == nil:
			d.Logger.Error("new events cannot be read", "error", err)
			again = time.After(eventRetry)
		case len(events) == eventPage:
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-d.store.Committed():
		case <-again:
		}
	}
}

// Events returns the events after one, or from now on (vps.FromNow).
func (d *Daemon) Events(ctx context.Context, after int64) (vps.EventPage, error) {
	page, ok := d.events.after(after)
	if ok {
		return page, nil
	}
	last, err := d.store.LastEvent(ctx) // first, so that it is not newer than what is read then
	if err != nil {
		return page, err
	}
	page.Events, err = d.store.Events(ctx, page.After, eventPage)
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
