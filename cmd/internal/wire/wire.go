// Package wire hands the capabilities of a daemon to what serves them.
package wire

import (
	"vpssnapd/api/server"
	"vpssnapd/daemon"
	"vpssnapd/systemd/bus"
)

// REST is what the REST API offers of a daemon.
func REST(d *daemon.Daemon) server.Services {
	return server.Services{
		Overview: d.Overview, Options: d.Options, Snapshots: d.Snapshots, Vouchers: d.Vouchers, Downloads: d.Downloads,
		Operations: d.Operations, Tokens: d.Tokens, Webhooks: d.Webhooks, Journal: d.Journal, Doctor: d.Doctor,
		Answers: d.Answers, Metrics: d.Metrics.Gatherer(),
	}
}

// Bus is what D-Bus offers of it.
func Bus(d *daemon.Daemon) bus.Services {
	return bus.Services{
		Overview:   d.Overview,
		Options:    d.Options,
		Snapshots:  d.Snapshots,
		Vouchers:   d.Vouchers,
		Operations: d.Operations,
		Events:     d.Journal,
	}
}
