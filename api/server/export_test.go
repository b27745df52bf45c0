package server

import (
	"net/http"
	"time"
)

// Handler is what answers on TCP, without the connection.
func (s *Server) Handler() http.Handler { return s.tcp.Handler }

// SetHeartbeat makes streams of events that begin from now on beat faster.
func (s *Server) SetHeartbeat(d time.Duration) { s.handlers.heartbeat = d }
