package site_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"vpssnapd/api"
	"vpssnapd/hypervisor/lab"
)

// listener follows the events of a site as a panel does: when it is cut off, it
// comes back with the id of the last that it got.
type listener struct {
	h      *host
	last   string
	events []api.Event
	resp   *http.Response
	lines  *bufio.Scanner
}

func (l *listener) connect(ctx context.Context) error {
	web := &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", l.h.Socket())
			},
		},
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://vpssnapd/v1/events", nil)
	if err != nil {
		return err
	}
	if l.last != "" {
		r.Header.Set("Last-Event-ID", l.last)
	}
	if l.resp, err = web.Do(r); err != nil {
		return err
	}
	if l.resp.StatusCode != http.StatusOK {
		l.h.t.Fatalf("the stream: %s", l.resp.Status)
	}
	l.lines = bufio.NewScanner(l.resp.Body)
	return nil
}

// next reads on to the next event; false when the stream has ended. An event that
// was cut short counts for nothing, as in a browser.
func (l *listener) next() bool {
	id, data := "", ""
	for l.lines.Scan() {
		field, value, _ := strings.Cut(l.lines.Text(), ": ")
		switch {
		case field == "id":
			id = value
		case field == "data":
			data = value
		case field == "" && value == "" && l.lines.Text() == "":
			if id != "" {
				l.last = id
			}
			if data != "" {
				var e api.Event
				l.h.must(json.Unmarshal([]byte(data), &e))
				l.events = append(l.events, e)
				return true
			}
			id = ""
		}
	}
	return false
}

// TestEventsAcrossKills: the daemon's process is killed again and again while it
// works, and a listener that comes back each time gets every event once.
func TestEventsAcrossKills(t *testing.T) {
	t.Parallel()
	h := newHost(t, "")
	h.define(lab.Spec{Name: "web1", Disks: []lab.DiskSpec{{Target: "vda", Format: "qcow2", SizeBytes: 16 << 20}}}, "running")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l := &listener{h: h}
	h.must(l.connect(ctx))
	kills := 0
	for range 3 {
		var op api.Operation
		v, err := h.Client.VPS(ctx, "web1")
		h.must(err)
		if v.Snapshot == nil { // also when the last take was undone
			op, err = h.Client.Take(ctx, "web1", api.TakeRequest{})
		} else {
			op, err = h.Client.Delete(ctx, "web1")
		}
		h.must(err)
		for steps := 0; !l.heardTheEnd(op.ID); steps++ {
			if l.next() {
				if steps == 3 { // in the middle of its work
					h.must(h.KillDaemon())
				}
				continue
			}
			kills++
			h.must(l.resp.Body.Close())
			h.must(h.StartDaemon(ctx))
			h.must(l.connect(ctx))
		}
		// Killed when it has nothing to do, too: the listener then waits for what comes.
		h.must(h.KillDaemon())
		for l.next() {
			continue
		}
		kills++
		h.must(l.resp.Body.Close())
		h.must(h.StartDaemon(ctx))
		h.must(l.connect(ctx))
	}
	h.must(l.resp.Body.Close())
	for i, e := range l.events {
		if e.Type == api.EventTypeEventsMissed {
			t.Errorf("event %d says that some were missed", i)
		}
		if i > 0 && number(h, e.ID) != number(h, l.events[i-1].ID)+1 {
			t.Errorf("event %s comes behind %s", e.ID, l.events[i-1].ID)
		}
	}
	t.Logf("%d events across %d kills", len(l.events), kills)
}

func (l *listener) heardTheEnd(operation string) bool {
	for _, e := range l.events {
		if o := e.Operation; o != nil && o.ID == operation &&
			(o.Status == api.OperationStatusSucceeded || o.Status == api.OperationStatusFailed) {
			return true
		}
	}
	return false
}

func number(h *host, id string) int64 {
	h.t.Helper()
	n, err := strconv.ParseInt(id, 10, 64)
	h.must(err)
	return n
}
