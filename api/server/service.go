package server

import "github.com/prometheus/client_golang/prometheus"

// Services are what the API offers to the outside, a capability each; each interface
// stands beside its handlers. A ref is the id or the name of a VPS. Errors that a caller
// may read are *vps.Error.
type Services struct {
	Overview   Overview
	Options    Options
	Snapshots  Snapshots
	Vouchers   Vouchers
	Downloads  Downloads
	Operations Operations
	Tokens     Tokens
	Webhooks   Webhooks
	Journal    Journal
	Doctor     Doctor
	Answers    Answers
	Metrics    prometheus.Gatherer
}
