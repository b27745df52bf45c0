package server

import "net/http"

// Handler is what answers on TCP, without the connection.
func (s *Server) Handler() http.Handler { return s.tcp.Handler }
