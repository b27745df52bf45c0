// Command vpssnap-bench-api measures the API of one daemon with many VPSes: how
// long its calls take while operations run and its database has a history, and what
// listeners to events cost.
// The host is the fake one, so that it is the daemon, its database and the API that
// are measured, and not libvirt. Server and clients share one process and its
// processors. See make bench-api.
//
// Exit codes: 0 measured, 1 it could not be, 2 usage.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/table"
)

// results is what is printed, as a table and as JSON.
type results struct {
	VPS        int           `json:"vps"`
	Days       int           `json:"days_of_history"`
	Snapshots  int           `json:"snapshots"`
	Operations int64         `json:"operations_meanwhile"`
	Calls      []callResult  `json:"calls"`
	Listeners  []listenCosts `json:"listeners"`
}

// callResult is how long one kind of call took.
type callResult struct {
	Call  string  `json:"call"`
	Bytes int64   `json:"bytes"`
	N     int     `json:"n"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	Max   float64 `json:"max_ms"`
}

// listenCosts is what so many listeners cost, both of their ends together.
type listenCosts struct {
	Listeners int     `json:"listeners"`
	Doing     string  `json:"doing"`
	CPU       float64 `json:"cpu_percent_of_one_core"`
	Memory    int64   `json:"memory_bytes"`
	Events    int64   `json:"events_received"`
}

func main() {
	vpses := flag.Int("vps", 500, "how many `VPSes` the host has")
	days := flag.Int("days", 365, "for how many `days` each of them has had a take a day")
	calls := flag.Int("calls", 500, "how many `calls` of each kind are made")
	listeners := flag.Int("listeners", 100, "how many `listeners` to events there are")
	window := flag.Duration("window", 10*time.Second, "how `long` listeners are observed")
	file := flag.String("json", "", "write the figures to this `file`, too")
	flag.Parse()
	if flag.NArg() > 0 || *vpses < 1 || *days < 0 || *calls < 1 || *listeners < 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *vpses, *days, *calls, *listeners, *window, *file); err != nil {
		fmt.Fprintln(os.Stderr, "vpssnap-bench-api:", err)
		os.Exit(1) //nolint:gocritic // a signal that comes now ends the process all the same
	}
}

func run(ctx context.Context, vpses, days, calls, listeners int, window time.Duration, file string) (err error) {
	h, err := openHost(ctx, vpses, days)
	if err != nil {
		return err
	}
	defer func() { err = firstOf(err, h.close()) }()
	r := results{VPS: vpses, Days: days, Snapshots: h.snapshots}
	stop := h.work(ctx)
	for _, c := range []struct {
		name string
		path func(i int) string
	}{
		{"list", func(int) string { return "/v1/vps" }},
		{"show", func(i int) string { return "/v1/vps/" + name(i%vpses) }},
		{"operations", func(int) string { return "/v1/operations" }},
		{"operations of a VPS", func(i int) string { return "/v1/operations?vps=" + name(i%vpses) }},
		{"operations that failed", func(int) string { return "/v1/operations?status=failed" }},
		{"messages", func(int) string { return "/v1/messages" }},
		{"messages of a VPS", func(i int) string { return "/v1/vps/" + name(i%vpses) + "/messages" }},
		{"messages of an hour", func(int) string { return "/v1/messages?since=" + time.Now().Add(-time.Hour).UTC().Format(time.RFC3339) }},
		{"option's history", func(i int) string { return "/v1/vps/" + name(i%vpses) + "/option/history" }},
	} {
		one, err := h.measure(ctx, c.name, calls, c.path)
		if err != nil {
			_, stopped := stop()
			return errors.Join(err, stopped)
		}
		r.Calls = append(r.Calls, one)
	}
	if r.Operations, err = stop(); err != nil {
		return err
	}
	if r.Listeners, err = h.listen(ctx, listeners, window); err != nil {
		return err
	}
	r.print(os.Stdout)
	return r.write(file)
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// print shows a table for people.
func (r results) print(w io.Writer) {
	fmt.Fprintf(
		w,
		"%d VPSes on a fake host, %d of them with a snapshot, and a take a day of each for %d days; %d operations ran meanwhile\n\n",
		r.VPS, r.Snapshots, r.Days, r.Operations,
	)
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.AppendHeader(table.Row{"call", "answer", "n", "p50", "p99", "max"})
	for _, c := range r.Calls {
		t.AppendRow(table.Row{c.Call, humanize.IBytes(uint64(c.Bytes)), c.N, //nolint:gosec // a length
			fmt.Sprintf("%.1f ms", c.P50), fmt.Sprintf("%.1f ms", c.P99), fmt.Sprintf("%.1f ms", c.Max)})
	}
	t.Render()
	fmt.Fprintln(w)
	l := table.NewWriter()
	l.SetOutputMirror(w)
	l.AppendHeader(table.Row{"listeners", "while", "of one core", "memory", "events received"})
	for _, c := range r.Listeners {
		l.AppendRow(
			table.Row{
				c.Listeners,
				c.Doing,
				fmt.Sprintf("%.2f %%", c.CPU),
				humanize.IBytes(uint64(max(c.Memory, 0))),
				c.Events,
			},
		)
	}
	l.Render()
}

// write keeps the figures for a comparison.
func (r results) write(file string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if file == "" {
		_, err = fmt.Printf("\n%s\n", text)
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o600)
}
