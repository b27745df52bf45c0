package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"golang.org/x/sys/unix"

	"vpssnapd/cmd/internal/site"
)

// bench measures on one site.
type bench struct {
	*site.Site
	options options
	out     io.Writer
	limits  limits
	figures []figure
	made    int // VPSes
}

// figure is one thing measured in two ways.
type figure struct {
	What string `json:"what"`
	Unit string `json:"unit"`
	// Ours and Theirs are the medians; Theirs is what With does.
	Ours   float64 `json:"ours"`
	Theirs float64 `json:"theirs,omitempty"`
	With   string  `json:"with,omitempty"`
	// Ratio is Theirs by Ours: above 1 ours costs less.
	Ratio float64 `json:"ratio,omitempty"`
	// Limit is what the machine allows at best.
	Limit  float64   `json:"limit,omitempty"`
	Rounds []float64 `json:"rounds"`
}

// median of none is 0; the table leaves it empty.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return 0
	}
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// note keeps a figure, and says so at once: the bench takes minutes.
func (b *bench) note(what, unit string, ours, theirs []float64, with string, limit float64) {
	f := figure{What: what, Unit: unit, Ours: median(ours), Theirs: median(theirs), With: with, Limit: limit, Rounds: ours}
	if len(theirs) > 0 && f.Ours > 0 {
		f.Ratio = f.Theirs / f.Ours
	}
	b.figures = append(b.figures, f)
	fmt.Fprintf(b.out, "%-58s %10s %10s\n", what, number(f.Ours, unit), number(f.Theirs, unit))
}

// number writes a figure with the digits that a reader compares.
func number(v float64, unit string) string {
	switch {
	case v == 0:
		return ""
	case v < 0.01 && unit == "s":
		return fmt.Sprintf("%.1f ms", v*1000)
	case v < 0.0995:
		return fmt.Sprintf("%.3f %s", v, unit)
	case v < 9.95:
		return fmt.Sprintf("%.2f %s", v, unit)
	}
	return fmt.Sprintf("%.0f %s", v, unit)
}

// report is what the JSON file holds.
type report struct {
	When    time.Time `json:"when"`
	Machine string    `json:"machine"`
	Limits  limits    `json:"limits"`
	Figures []figure  `json:"figures"`
}

// show prints the table, and writes the file that was asked for.
func (b *bench) show() error {
	r := report{When: time.Now().UTC().Truncate(time.Second), Machine: machine(), Limits: b.limits, Figures: b.figures}
	t := table.NewWriter()
	t.SetOutputMirror(b.out)
	t.AppendHeader(table.Row{"what", "ours", "theirs", "theirs:ours", "at best", "ours:best", "theirs is"})
	for _, f := range r.Figures {
		best := 0.0
		if f.Limit > 0 {
			best = f.Ours / f.Limit
		}
		t.AppendRow(
			table.Row{
				f.What,
				number(f.Ours, f.Unit),
				number(f.Theirs, f.Unit),
				number(f.Ratio, ""),
				number(f.Limit, f.Unit),
				number(best, ""),
				f.With,
			},
		)
	}
	fmt.Fprintf(
		b.out, "\n%s, %s\ndisk: writes %.0f MB/s, %.0f direct 4 KiB writes/s (32 at a time), write and fsync %.2f ms\n",
		r.When.Format(time.DateOnly), r.Machine, r.Limits.SequentialMB, r.Limits.ScatteredPerSecond, r.Limits.FsyncMS,
	)
	t.Render()
	if b.options.json == "" {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(b.options.json, append(text, '\n'), 0o644) //nolint:gosec // figures are no secret
}

// machine names what was measured on, as far as it matters. Figures of different
// machines are not compared.
func machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	system := "Linux"
	if text, err := os.ReadFile("/etc/os-release"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
				system = strings.Trim(strings.TrimSpace(name), `"`)
			}
		}
	}
	return fmt.Sprintf("%d processors, %s, kernel %s", runtime.NumCPU(), system, unix.ByteSliceToString(u.Release[:]))
}
