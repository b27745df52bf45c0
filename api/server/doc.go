// Package server is the REST API: the route table with the access rules, the
// checks before a handler, the handlers, and the one place that turns an error
// into an answer. It decides nothing about snapshots; the daemon does.
package server
