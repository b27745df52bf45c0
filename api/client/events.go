package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"vpssnapd/api"
)

const (
	// deaf is how long a stream may be silent: the daemon sends something every 15 s.
	deaf = 45 * time.Second
	// reconnect is when a listener who was cut off comes back.
	reconnect = 2 * time.Second
	// longestLine bounds what is read of one line of a stream.
	longestLine = 1 << 20
)

// Frame is what a stream of events sends: one of them, or only how far it has come.
type Frame struct {
	// ID is what a new stream may go on behind.
	ID    string
	Event *api.Event
}

// Listen calls each with what one stream of events sends, until it ends, which is no
// error, or each returns one.
func (c *Client) Listen(ctx context.Context, p api.ListenEventsParams, each func(Frame) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(deaf, func() { cancel(fmt.Errorf("nothing came for %s", deaf)) })
	defer watchdog.Stop()
	resp, err := c.rest.ListenEvents(ctx, &p)
	if err != nil {
		return c.cut(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		if err != nil {
			return c.cut(ctx, err)
		}
		return refusal(resp, body)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, longestLine)
	var f Frame
	for lines.Scan() {
		watchdog.Reset(deaf)
		name, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case name == "id":
			f.ID = value
		case name == "data":
			f.Event = new(api.Event)
			if err := json.Unmarshal([]byte(value), f.Event); err != nil {
				return fmt.Errorf("%s did not answer as vpssnapd does: %w", c.address, err)
			}
		case lines.Text() == "" && f.ID != "":
			if err := each(f); err != nil {
				return err
			}
			f = Frame{}
		}
	}
	if err := lines.Err(); err != nil {
		return c.cut(ctx, err)
	}
	return nil
}

// cut is unreachable, with the reason when it was us who cut the connection.
func (c *Client) cut(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return c.unreachable(err)
}

// Follow calls each with what streams of events send, and goes on where it was whenever a stream
// ends: the daemon may be restarting. lost is called once for each such time. It
// returns when ctx ends, when each returns an error, when the first stream cannot
// be had, or when the daemon refuses another.
func (c *Client) Follow(ctx context.Context, p api.ListenEventsParams, each func(Frame) error, lost func(error)) error {
	listening := false
	for {
		var stop error
		err := c.Listen(ctx, p, func(f Frame) error {
			listening = true
			p.LastEventID = &f.ID
			stop = each(f)
			return stop
		})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case stop != nil, err != nil && !passes(err), p.LastEventID == nil:
			return err
		case listening:
			lost(err)
		}
		listening = false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(reconnect):
		}
	}
}

// passes reports whether another try may have more luck.
func passes(err error) bool {
	if _, ok := errors.AsType[*UnreachableError](err); ok {
		return true
	}
	e, ok := errors.AsType[*Error](err)
	return ok && (e.Status >= http.StatusInternalServerError || e.Status == http.StatusTooManyRequests)
}
