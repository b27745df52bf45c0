package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

const (
	// heartbeat is how long a stream is silent at most. The token is looked at
	// again each time.
	heartbeat = 15 * time.Second
	// slowReader is how long a listener may take nothing of what is sent to it.
	slowReader = 10 * time.Second
	// reconnectMS is when a browser that was cut off comes back.
	reconnectMS = 2000
)

// ListenEvents checks the request; the stream itself is written by eventStream. Errors
// must come now: once the stream has begun there is no status left to send.
func (h *handlers) ListenEvents(ctx context.Context, r ListenEventsRequestObject) (ListenEventsResponseObject, error) {
	s := &eventStream{h: h, ctx: ctx, after: vps.FromNow}
	if last := cmpOr(r.Params.LastEventID, r.Params.After); last != nil {
		id, err := strconv.ParseInt(*last, 10, 64)
		if err != nil {
			return nil, invalid("the id of the last event is not one that was given out")
		}
		s.after = id
	}
	if ref := value(r.Params.VPS); ref != "" {
		id, err := h.find(ctx, ref)
		if err != nil {
			return nil, err
		}
		if _, err := h.services.Overview.ShowVPS(ctx, id); vps.CodeOf(err) == vps.CodeNotFound && !h.remembered(ctx, id) {
			return nil, vps.Errorf(vps.CodeNotFound, "no such VPS")
		}
		s.vps = id
	}
	s.types = value(r.Params.Type)
	if err := s.lookAgain(); err != nil { // it may have been revoked before that
		return nil, err
	}
	// The first page is read before the answer, so that a database that fails is a 500
	// and not an empty stream.
	page, err := h.services.Journal.Events(ctx, s.after)
	if err != nil {
		return nil, err
	}
	s.first = page
	if s.leave, err = h.lasting.enter(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// remembered reports whether the journal knows a VPS that is gone.
func (h *handlers) remembered(ctx context.Context, id string) bool {
	page, err := h.services.Journal.Messages(ctx, vps.MessageQuery{VPS: id, Limit: 1})
	return err == nil && len(page.Messages) > 0
}

// cmpOr is the first that was given.
func cmpOr[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// eventStream is one listener. It keeps no events of its own: it is at a place in
// the daemon's, and what it writes goes straight to the connection.
type eventStream struct {
	h     *handlers
	ctx   context.Context
	after int64
	first vps.EventPage
	leave func()
	// revoked is closed when a token was revoked since the caller was looked at.
	revoked <-chan struct{}
	vps     string // "" for all
	types   []api.EventType

	until  *time.Time // when its token is over
	mine   func(id string) bool
	bound  bool
	reader reader
	told   int64 // the last id that was sent
	w      http.ResponseWriter
}

var _ ListenEventsResponseObject = (*eventStream)(nil)

// lookAgain finds out whether the caller may still listen, and what it may see now.
func (s *eventStream) lookAgain() error {
	s.revoked = s.h.services.Tokens.Revoked()
	ctx, err := recheck(s.ctx)
	if err != nil {
		return err
	}
	s.ctx = ctx
	who := callerOf(ctx)
	s.bound, s.mine, s.reader, s.until = who.bound(), who.sees, readerOf(ctx), who.token.ExpiresAt
	return nil
}

// stale reports whether the caller must be looked at before it is sent anything: a token
// was revoked, or its own may be over.
func (s *eventStream) stale() bool {
	select {
	case <-s.revoked:
		return true
	default:
		return s.until != nil && !time.Now().Before(*s.until)
	}
}

// VisitListenEventsResponse sends events until the listener goes away, is too
// slow or may listen no more, or the server shuts down.
func (s *eventStream) VisitListenEventsResponse(w http.ResponseWriter) error {
	defer s.leave()
	s.w = w
	w.Header().Set("Content-Type", "text/event-stream")
	// A proxy that collects answers would hold the news back.
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	page := s.first
	// The id comes at once, so that who is cut off before the first event misses nothing.
	s.told = page.After
	err := s.send(fmt.Appendf(nil, "retry: %d\nid: %d\n\n", reconnectMS, page.After))
	beat := time.NewTicker(s.h.heartbeat)
	defer beat.Stop()
	// So does how far it has come, when it has caught up: who wants no more knows it then.
	catching := true
	for err == nil {
		if s.stale() && s.lookAgain() != nil {
			err = errEnd
			break
		}
		err = s.pass(page)
		if err == nil && len(page.Events) == 0 {
			if catching && s.told != s.after {
				err = s.beat()
			}
			catching = false
			if err == nil {
				err = s.await(page.Changed, beat)
			}
		}
		if err == nil {
			page, err = s.h.services.Journal.Events(s.ctx, s.after)
		}
	}
	return s.end(err)
}

// errEnd ends a stream in good order.
var errEnd = errors.New("the stream has ended")

// await returns when there are more events. While it waits it keeps the
// connection alive and looks whether the caller may still listen.
func (s *eventStream) await(changed <-chan struct{}, beat *time.Ticker) error {
	for {
		select {
		case <-changed:
			return nil
		case <-s.revoked:
			if s.lookAgain() != nil {
				return errEnd
			}
		case <-s.ctx.Done():
			return errEnd
		case <-s.h.closing.Done():
			return errEnd
		case <-beat.C:
			if err := s.beat(); err != nil {
				return err
			}
		}
	}
}

// beat looks whether the caller may still listen, and sends a sign of life: the
// id that the listener may begin behind, if it has moved on, else a comment.
func (s *eventStream) beat() error {
	// A token that was revoked ends its streams within one heartbeat.
	if s.lookAgain() != nil {
		return errEnd
	}
	if s.told == s.after {
		return s.send([]byte(":\n\n"))
	}
	s.told = s.after
	return s.send(fmt.Appendf(nil, "id: %d\n\n", s.after))
}

// pass sends what the listener wants and may see of a page.
func (s *eventStream) pass(page vps.EventPage) error {
	var text bytes.Buffer
	if s.after = page.After; page.Missed {
		s.told = page.After
		frame(&text, api.Event{ID: strconv.FormatInt(page.After, 10), At: time.Now().UTC(), Type: api.EventTypeEventsMissed})
	}
	for _, e := range page.Events {
		s.after = e.ID
		if s.wants(e) {
			s.told = e.ID
			frame(&text, wireEvent(e, s.reader))
		}
	}
	if text.Len() == 0 {
		return nil
	}
	return s.send(text.Bytes())
}

// wants reports whether the listener asked for the event and may see it. Events of the
// host are not for bound callers.
func (s *eventStream) wants(e vps.Event) bool {
	if e.VPS == "" && s.bound || e.VPS != "" && !s.mine(e.VPS) {
		return false
	}
	return (s.vps == "" || e.VPS == s.vps) && (len(s.types) == 0 || slices.Contains(s.types, api.EventType(e.Type)))
}

// frame writes one event in the form of Server-Sent Events. JSON has no newlines.
func frame(to *bytes.Buffer, e api.Event) {
	data, err := json.Marshal(e)
	if err != nil {
		return // cannot be: it has plain fields only
	}
	fmt.Fprintf(to, "id: %s\nevent: %s\ndata: %s\n\n", e.ID, e.Type, data)
}

// send gives the listener a bounded time to take it.
func (s *eventStream) send(text []byte) error {
	control := http.NewResponseController(s.w)
	// A listener that takes nothing would hold its connection and its buffers for ever.
	if err := control.SetWriteDeadline(time.Now().Add(s.h.slowReader)); err != nil {
		return err
	}
	if _, err := s.w.Write(text); err != nil {
		return err
	}
	if err := control.Flush(); err != nil {
		return err
	}
	// HTTP/2 resets a stream whose deadline passes, also while nothing is written.
	return control.SetWriteDeadline(time.Time{})
}

// end says in the log why a stream was cut; how it ends otherwise is no news.
func (s *eventStream) end(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded): // first: net/http then ends the context, too
		return fmt.Errorf("the listener is too slow and was cut off: %w", err)
	case errors.Is(err, errEnd), s.ctx.Err() != nil:
		return nil
	}
	return err
}

// To customers it says what is for customers, in their language.
func wireEvent(e vps.Event, r reader) api.Event {
	w := api.Event{
		ID:      strconv.FormatInt(e.ID, 10),
		At:      e.At.UTC(),
		Type:    api.EventType(e.Type),
		VPS:     e.VPS,
		VPSName: e.VPSName,
	}
	if e.Operation != nil {
		o := *e.Operation
		if !r.operator {
			o = o.In(r.in)
		}
		w.Operation = &api.OperationEvent{
			ID:         o.ID,
			Kind:       api.OperationKind(o.Kind),
			Status:     api.OperationStatus(o.Status),
			Step:       o.Step,
			SnapshotID: o.SnapshotID,
			Actor:      wireActor(vps.Actor{Name: o.ActorName, Way: o.ActorWay}),
			Result:     o.Result,
		}
		if o.Code != "" {
			w.Operation.Error = &api.Failure{Code: api.Code(o.Code), Detail: o.Detail, Remedy: o.Remedy}
		}
	}
	if o := e.Option; o != nil {
		w.Option = &api.OptionEvent{ID: o.ID, State: api.OptionState(o.State), OrderRef: o.OrderRef, EndsAt: utc(o.EndsAt),
			GraceUntil: utc(o.GraceUntil), Note: o.Note, Actor: wireActor(vps.Actor{Name: o.ActorName, Way: o.ActorWay})}
	}
	if e.Snapshot != nil {
		s := *e.Snapshot
		if !r.operator {
			s = s.In(r.in)
		}
		w.Snapshot = &api.SnapshotEvent{
			ID:          s.ID,
			State:       api.SnapshotState(s.State),
			Reason:      s.Reason,
			Description: s.Description,
			UndoUntil:   utc(s.UndoUntil),
		}
	}
	if m := e.Message; m != nil {
		w.Message = &api.MessageEvent{ID: m.ID, Kind: api.MessageKind(m.Kind), OperationID: m.Operation, Text: m.In(r.in)}
	}
	if s := e.Space; s != nil {
		w.Space = &api.SpaceEvent{
			Level:         api.SpaceEventLevel(s.Level),
			TotalBytes:    s.TotalBytes,
			FreeBytes:     s.FreeBytes,
			FullInSeconds: s.FullInSeconds,
		}
		if r.operator {
			w.Space.Path = s.Path
		}
	}
	return w
}
