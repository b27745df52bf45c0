package daemontest

import (
	"vpssnapd/api/server"
	"vpssnapd/daemon"
)

// Services are what the API offers of a daemon.
func Services(d *daemon.Daemon) server.Services {
	return server.Services{
		Overview: d.Overview, Options: d.Options, Snapshots: d.Snapshots, Vouchers: d.Vouchers, Downloads: d.Downloads,
		Operations: d.Operations, Tokens: d.Tokens, Webhooks: d.Webhooks, Journal: d.Journal, Doctor: d.Doctor,
		Answers: d.Answers, Metrics: d.Metrics.Gatherer(),
	}
}
