package server

import (
	"net/http"
	"time"
)

// Handler is what answers on TCP, without the connection.
func (s *Server) Handler() http.Handler { return s.tcp.Handler }

// SetPace makes streams of events that begin from now on beat faster, and lets
// slow readers have less time.
func (s *Server) SetPace(heartbeat, slowReader time.Duration) {
	s.handlers.heartbeat, s.handlers.slowReader = heartbeat, slowReader
}

// SetClock lets budgets fill up by a clock of the test.
func (s *Server) SetClock(now func() time.Time) {
	for _, l := range []*limiter{s.failures, s.strangers, s.origins, s.tokens, s.changes} {
		l.mu.Lock()
		l.now = now
		l.mu.Unlock()
	}
}

// SetDownloadPace lets who downloads take no longer than limit for a part.
func (s *Server) SetDownloadPace(limit time.Duration) { s.handlers.slowDownload = limit }

// Connections counts the connections over TCP that have a place.
func (s *Server) Connections() (n int) {
	s.drain.mu.Lock()
	defer s.drain.mu.Unlock()
	for _, l := range s.drain.listeners {
		if limit, ok := l.(*connLimit); ok && limit.Addr().Network() == "tcp" {
			limit.mu.Lock()
			n += limit.all
			limit.mu.Unlock()
		}
	}
	return n
}

// Lasting counts the calls that stay open.
func (s *Server) Lasting() (n int) {
	s.handlers.lasting.mu.Lock()
	defer s.handlers.lasting.mu.Unlock()
	for _, of := range s.handlers.lasting.of {
		n += of
	}
	return n
}
