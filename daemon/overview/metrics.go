package overview

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"vpssnapd/daemon/download"
	"vpssnapd/daemon/journal"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/daemon/work"
)

// scrapeWithin bounds how long the state is read for one scrape.
const scrapeWithin = 10 * time.Second

// Metrics counts what happens in this process. What is the case now is read at
// each scrape, by stateCollector and, of the host, by the server. The names are
// stable; openapi.yaml lists them.
type Metrics struct {
	registry   *prometheus.Registry
	operations *prometheus.CounterVec
	durations  *prometheus.HistogramVec
	freezes    prometheus.Histogram
	pauses     prometheus.Histogram
	deliveries *prometheus.CounterVec
}

// NewMetrics makes the counters. Buckets of durations are in seconds, up to four hours:
// a merge of a large disk takes that long.
func NewMetrics() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vpssnap_operations_total",
			Help: "Operations that ended or were parked, since the daemon's start, by kind and status."}, []string{"kind", "status"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "vpssnap_operation_duration_seconds",
			Help: "From the request of an operation to its end.", Buckets: []float64{0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600, 14400}}, []string{"kind", "status"}),
		freezes: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "vpssnap_freeze_seconds",
			Help: "How long guests' file systems stood frozen for a take.", Buckets: []float64{0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10}}),
		pauses: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "vpssnap_pause_seconds",
			Help: "How long guests were suspended at a time for a merge.", Buckets: []float64{0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10}}),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vpssnap_deliveries_total",
			Help: "Tries to deliver webhooks and e-mail since the daemon's start, by outcome: delivered, failed (tried again) or given_up."}, []string{"kind", "outcome"}),
	}
	// From the start on, so that the first failure is seen as an increase.
	for _, kind := range deliveryKinds {
		for _, outcome := range []string{string(vps.DeliveryDelivered), deliveryFailed, string(vps.DeliveryGivenUp)} {
			m.deliveries.WithLabelValues(string(kind), outcome)
		}
	}
	m.registry.MustRegister(m.operations, m.durations, m.freezes, m.pauses, m.deliveries,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Gatherer is what Prometheus may read. For operators: it names directories.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// Count counts the operations of every kind that is registered by now, and reads the
// state of the daemon at each scrape.
func (m *Metrics) Count(s State) {
	for _, kind := range s.Operations.Names() {
		for _, status := range []vps.Status{vps.StatusSucceeded, vps.StatusFailed, vps.StatusCancelled, vps.StatusNeedsAttention} {
			m.operations.WithLabelValues(string(kind), string(status))
		}
	}
	// By a listener, so that the runner knows nothing of metrics.
	s.Operations.OnEnded(func(op vps.Operation) { m.ended(op, s.Store.Now(), s.Logger) })
	m.registry.MustRegister(&stateCollector{s})
}

// Froze counts how long a guest was frozen for a take.
func (m *Metrics) Froze(long time.Duration) { m.freezes.Observe(long.Seconds()) }

// Paused counts how long a guest was suspended at a time.
func (m *Metrics) Paused(long time.Duration) { m.pauses.Observe(long.Seconds()) }

// ended counts an operation whose run is over, and writes it to the log: by its id it
// is found in the log of requests.
func (m *Metrics) ended(op vps.Operation, now time.Time, logger *slog.Logger) {
	if !op.Status.Final() && op.Status != vps.StatusNeedsAttention {
		return // it goes on in the next process
	}
	// One line per operation, also for operators without Prometheus.
	logger.Info("operation is over", op.LogAttr(), "kind", op.Kind, "status", op.Status,
		"by", op.Actor.Name, "way", op.Actor.Way, "took", now.Sub(op.CreatedAt))
	m.operations.WithLabelValues(string(op.Kind), string(op.Status)).Inc()
	if op.EndedAt != nil {
		m.durations.WithLabelValues(string(op.Kind), string(op.Status)).Observe(op.EndedAt.Sub(op.CreatedAt).Seconds())
	}
}

var deliveryKinds = []vps.DeliveryKind{vps.DeliveryWebhook, vps.DeliveryMail}

// deliveryFailed counts tries after which there are more.
const deliveryFailed = "failed"

// Tried counts a try to deliver something. A delivery that is tried three times counts
// three times.
func (m *Metrics) Tried(what vps.Delivery) {
	m.deliveries.WithLabelValues(string(what.Kind), cmp.Or(string(what.Outcome), deliveryFailed)).Inc()
}

func gauge(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("vpssnap_"+name, help, labels, nil)
}

var (
	descBuild     = gauge("build_info", "Always 1; the version is a label.", "version")
	descSnapshots = gauge("snapshots_by_state", "Snapshots by state.", "state")
	descOptions   = gauge("options", "Options that are not released, by state.", "state")
	descOldest    = gauge("operation_oldest_seconds", "Age of the oldest operation that has not ended; 0 without one.")
	descOwed      = gauge("guests_owed", "Guests that the daemon has to thaw or to resume.", "kind")
	descMerges    = gauge("merges", "Merges that copy (running) or wait for their turn (waiting).", "state")
	descMergeMost = gauge("merges_limit", "How many merges may copy at the same time.")
	descDownloads = gauge("downloads", "Downloads of snapshots that run.")
	descDatabase  = gauge("database_up", "1 while the database answers and nothing forbids writing.")
	descSize      = gauge("database_bytes", "Size of the database's files, database or wal.", "file")
	descCommits   = gauge(
		"database_commits_total",
		"Transactions since the daemon's start, by outcome: committed, or failed (also those that were given up, as for a refusal).",
		"outcome",
	)
	descEvents  = gauge("events_total", "Events since the database was made.")
	descWaiting = gauge("deliveries_waiting", "Webhooks and e-mails that are still to be delivered.", "kind")
	descWaitOld = gauge("delivery_oldest_seconds", "Age of the oldest of them; 0 without one.", "kind")
	descDropped = gauge(
		"deliveries_dropped_total",
		"What was not recorded for delivery since the daemon's start, because too much waited for its target.", "kind",
	)
)

// State is what is read at each scrape.
type State struct {
	Store      *store.Store
	Operations *operation.Operations
	Merger     *merge.Merger
	Downloads  *download.Downloads
	Journal    *journal.Journal
	Group      *work.Group
	StateDir   string
	Version    string
	Logger     *slog.Logger
}

// stateCollector reads the state of the daemon at each scrape.
type stateCollector struct{ State }

// Describe is part of prometheus.Collector. Everything is listed: a collector that
// describes nothing is not checked by the registry for doubles.
func (c *stateCollector) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{descBuild, descSnapshots, descOptions, descOldest, descOwed, descMerges,
		descMergeMost, descDownloads, descDatabase, descSize, descCommits, descEvents, descWaiting, descWaitOld, descDropped} {
		out <- desc
	}
}

// sample is where a collector writes to.
type sample chan<- prometheus.Metric

func (out sample) gauge(desc *prometheus.Desc, value float64, labels ...string) {
	out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
}

func (out sample) counter(desc *prometheus.Desc, value float64, labels ...string) {
	out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, value, labels...)
}

func boolGauge(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// Collect is part of prometheus.Collector. What cannot be read is left out: an alert
// sees that it is absent, or that database_up is 0. Scrapes may overlap: it keeps
// nothing between them.
func (c *stateCollector) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(c.Group.Context(), scrapeWithin)
	defer cancel()
	out := sample(to)
	out.gauge(descBuild, 1, c.Version)
	c.merges(out)
	out.gauge(descDownloads, float64(c.Downloads.Running()))
	c.database(ctx, out)
	c.records(ctx, out)
	c.outbox(ctx, out)
}

// merges tells how many merges run and wait, so that an operator sees whether merge_limit
// is what holds deletes up.
func (c *stateCollector) merges(out sample) {
	running, waiting, limit := c.Merger.Count()
	out.gauge(descMerges, float64(running), "running")
	out.gauge(descMerges, float64(waiting), "waiting")
	out.gauge(descMergeMost, float64(limit))
}

// database tells whether SQLite answers, and how large it and its log are. A log that only
// grows is a reader that never ends.
func (c *stateCollector) database(ctx context.Context, out sample) {
	out.gauge(descDatabase, boolGauge(c.Store.Ping(ctx) == nil))
	path := filepath.Join(c.StateDir, store.FileName)
	for label, name := range map[string]string{"database": path, "wal": path + "-wal"} {
		if info, err := os.Stat(name); err == nil {
			out.gauge(descSize, float64(info.Size()), label)
		}
	}
	// Counted in memory: a database that cannot write must still show that.
	committed, failed := c.Store.Commits()
	out.counter(descCommits, float64(committed), "committed")
	out.counter(descCommits, float64(failed), "failed")
	out.counter(descEvents, float64(c.Journal.Count()))
}

// records counts operations, snapshots, options and debts by their state. An error leaves
// the series out: a missing value is honest, a zero is not.
func (c *stateCollector) records(ctx context.Context, out sample) {
	if operations, err := c.Store.ActiveOperations(ctx); err == nil {
		oldest := 0.0
		for _, op := range operations {
			// Parked operations are among them: that one is forgotten is what the alert
			// is for.
			oldest = max(oldest, c.Store.Now().Sub(op.CreatedAt).Seconds())
		}
		out.gauge(descOldest, oldest)
	}
	if snapshots, err := c.Store.Snapshots(ctx); err == nil {
		// States with no snapshot are shown as 0: alerts on an absent series never fire.
		n := map[vps.SnapshotState]int{vps.SnapshotAvailable: 0, vps.SnapshotBroken: 0}
		for _, s := range snapshots {
			n[s.State]++
		}
		each(n, func(s vps.SnapshotState, count int) { out.gauge(descSnapshots, float64(count), string(s)) })
	}
	if options, err := c.Store.OpenOptions(ctx); err == nil {
		n := map[vps.OptionState]int{vps.OptionActive: 0}
		for _, o := range options {
			n[o.State]++
		}
		each(n, func(s vps.OptionState, count int) { out.gauge(descOptions, float64(count), string(s)) })
	}
	if owed, err := c.Store.Debts(ctx); err == nil {
		n := map[store.DebtKind]int{store.DebtThaw: 0, store.DebtResume: 0}
		for _, p := range owed {
			n[p.Kind]++
		}
		each(n, func(k store.DebtKind, count int) { out.gauge(descOwed, float64(count), string(k)) })
	}
}

// outbox tells what waits to be sent, for how long, and what was given up.
func (c *stateCollector) outbox(ctx context.Context, out sample) {
	queues, err := c.Store.DeliveryQueues(ctx)
	for _, kind := range deliveryKinds {
		// It needs no query, so it is told even when the queues cannot be read.
		out.counter(descDropped, float64(c.Store.DroppedDeliveries(kind)), string(kind))
		waiting, oldest := 0, 0.0
		for _, q := range queues {
			if q.Kind == kind {
				waiting += q.Waiting
				oldest = max(oldest, c.Store.Now().Sub(q.Oldest).Seconds())
			}
		}
		if err == nil {
			out.gauge(descWaiting, float64(waiting), string(kind))
			out.gauge(descWaitOld, oldest, string(kind))
		}
	}
}

func each[K comparable](counts map[K]int, do func(K, int)) {
	for k, n := range counts {
		do(k, n)
	}
}
