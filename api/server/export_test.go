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
