package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// askFor is how long lists and shows are measured, and askEvery how often each is
	// asked for: a busy panel, which leaves the processors to the guests.
	askFor   = 15 * time.Second
	askEvery = 50 * time.Millisecond
	// busy is how many VPSes have a snapshot taken and deleted meanwhile, and
	// busyEvery how often each has: far more than customers ask for.
	busy      = 2
	busyEvery = time.Second
)

// answers measures how long lists and shows of VPSes take while operations run.
func (b *bench) answers(ctx context.Context, running int, note func(what, unit string, value float64)) error {
	working, stop := context.WithCancel(ctx)
	defer stop()
	all, working := errgroup.WithContext(working)
	for i := range busy {
		all.Go(func() error { return b.keepBusy(working, numbered(i)) })
	}
	// One connection pool for all calls, as panels have.
	web := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", b.Socket())
	}}}
	defer web.CloseIdleConnections()
	var lists, shows []float64
	pace := time.NewTicker(askEvery)
	defer pace.Stop()
	for until := time.Now().Add(askFor); time.Now().Before(until) && working.Err() == nil; <-pace.C {
		// One after the other: what is measured is the daemon's answer, not a queue of
		// ours.
		list, err1 := timed(func() error { return get(ctx, web, "/v1/vps") })
		show, err2 := timed(func() error { return get(ctx, web, "/v1/vps/"+numbered(len(shows)%running)) })
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		lists, shows = append(lists, 1000*list), append(shows, 1000*show)
	}
	stop()
	if err := all.Wait(); err != nil {
		return err
	}
	for _, c := range []struct {
		what string
		took []float64
	}{{"list", lists}, {"show", shows}} {
		slices.Sort(c.took)
		note(c.what+" while operations run, p50", "ms", median(c.took))
		note(c.what+" while operations run, p99", "ms", c.took[len(c.took)*99/100])
	}
	return nil
}

// keepBusy takes and deletes the snapshot of a VPS until ctx ends, and leaves none.
func (b *bench) keepBusy(ctx context.Context, name string) error {
	pace := time.NewTicker(busyEvery)
	defer pace.Stop()
	for ctx.Err() == nil {
		// A round is ended in order, or the next measurement would find a snapshot.
		whole := context.WithoutCancel(ctx)
		if err := b.take(whole, name); err != nil {
			return err
		}
		if err := b.delete(whole, name); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-pace.C:
		}
	}
	return nil
}

// get makes one call and reads the whole answer. The body counts: a panel reads it too.
func get(ctx context.Context, web *http.Client, path string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://vpssnapd"+path, nil)
	if err != nil {
		return err
	}
	resp, err := web.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return nil
}
