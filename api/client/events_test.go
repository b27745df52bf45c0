package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

// Who follows the events hears each once, whatever becomes of the streams.
func TestFollowGoesOn(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	frame := func(w http.ResponseWriter, id int) {
		fmt.Fprintf(
			w, "id: %d\nevent: message\ndata: {\"id\":\"%d\",\"at\":\"2026-03-01T12:00:00Z\",\"type\":\"message\"}\n\n",
			id, id,
		)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.Header.Get("Last-Event-ID"))
		n := len(asked)
		mu.Unlock()
		w.Header().Set("Content-Type", "text/event-stream")
		switch n {
		case 1: // ends in good order
			fmt.Fprint(w, "retry: 2000\nid: 10\n\n:\n\n")
			frame(w, 11)
		case 2: // is cut within an event
			fmt.Fprint(w, "id: 11\n\n")
			frame(w, 12)
			fmt.Fprint(w, "id: 13\nevent: message\nda")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case 3: // a daemon that is not ready yet
			w.WriteHeader(http.StatusServiceUnavailable)
		case 4:
			frame(w, 13)
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer s.Close()
	c, err := client.HTTP(s.URL, "token", nil)
	if err != nil {
		t.Fatal(err)
	}
	var heard []string
	lost := 0
	err = c.Follow(t.Context(), api.ListenEventsParams{}, func(f client.Frame) error {
		if f.Event != nil {
			heard = append(heard, f.Event.ID)
		}
		return nil
	}, func(error) { lost++ })
	if client.CodeOf(err) != api.CodeUnauthenticated {
		t.Errorf("it ended with %v", err)
	}
	if got := strings.Join(heard, " "); got != "11 12 13" || lost != 3 {
		t.Errorf("heard %s, %d times lost", got, lost)
	}
	if got := strings.Join(asked, ","); got != ",11,12,12,13" {
		t.Errorf("asked for what is behind %s", got)
	}
}

// What cannot be had at first is an error at once, and so is the listener's own.
func TestFollowEnds(t *testing.T) {
	status := http.StatusServiceUnavailable
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, "id: 1\n\n")
	}))
	c, err := client.HTTP(s.URL, "token", nil)
	if err != nil {
		t.Fatal(err)
	}
	silent := func(error) { t.Error("it tried again") }
	if err := c.Follow(t.Context(), api.ListenEventsParams{}, nil, silent); client.CodeOf(
		err,
	) != api.CodeHypervisorUnavailable {
		t.Errorf("a daemon that is not ready: %v", err)
	}
	status = http.StatusOK
	enough := errors.New("enough")
	if err := c.Follow(t.Context(), api.ListenEventsParams{}, func(client.Frame) error { return enough }, silent); !errors.Is(
		err, enough,
	) {
		t.Errorf("a listener who has enough: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.Follow(ctx, api.ListenEventsParams{}, func(client.Frame) error { cancel(); return nil }, silent); !errors.Is(
		err, context.Canceled,
	) {
		t.Errorf("a listener who was told to end: %v", err)
	}
	s.Close()
	var away *client.UnreachableError
	if err := c.Follow(t.Context(), api.ListenEventsParams{}, nil, silent); !errors.As(err, &away) {
		t.Errorf("no daemon: %v", err)
	}
}
