// Package client calls the REST API, over the daemon's Unix socket or over
// HTTP(S) with a token. The CLI and the tests use it.
package client
