package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jedib0t/go-pretty/v6/progress"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

// noWaitFlag adds --no-wait to a command that begins an operation.
func noWaitFlag(flags *pflag.FlagSet, noWait *bool) {
	flags.BoolVar(noWait, "no-wait", false, "do not wait for the operation to end")
}

// follow prints op when it has ended, or at once with noWait. An operation that
// did not succeed is an error.
func (a *app) follow(ctx context.Context, c *client.Client, op api.Operation, noWait bool) error {
	op, err := a.wait(ctx, c, op, noWait)
	if err != nil {
		return err
	}
	ended := client.Ended(op)
	err = a.print(op, func() {
		switch {
		case !ended:
			a.say("%s of %s has begun: %s", kindName(op.Kind), clean(op.VPSName), op.ID)
		case op.Status == api.OperationStatusSucceeded:
			a.say("%s: %s", clean(op.VPSName), done(op))
		}
	})
	if err == nil && ended && op.Status != api.OperationStatusSucceeded {
		return &outcomeError{op}
	}
	return err
}

// Interrupted, it says where the operation is now.
func (a *app) wait(ctx context.Context, c *client.Client, op api.Operation, noWait bool) (api.Operation, error) {
	if noWait {
		return op, nil
	}
	seen, interval, stop := a.watch(op)
	last, err := c.Await(ctx, op, interval, seen)
	stop()
	if errors.Is(err, context.Canceled) {
		return last, &interruptedError{last}
	}
	return last, err
}

// watch shows how far something is, and how often it is worth while to look. stop must
// be called before anything else is printed. A log gets lines, and fewer of them.
func (a *app) watch(op api.Operation) (seen func(api.Operation), interval time.Duration, stop func()) {
	if isTerminal(a.stderr) && !isDumb() {
		seen, stop = a.bar(op)
		return seen, 500 * time.Millisecond, stop
	}
	return a.lines(), 2 * time.Second, func() {}
}

// done says what came of an operation that succeeded.
func done(op api.Operation) string {
	what := map[api.OperationKind]string{
		api.OperationKindTake:        "the snapshot was taken",
		api.OperationKindRestore:     "the snapshot was restored",
		api.OperationKindUndoRestore: "the restore was undone",
		api.OperationKindDelete:      "the snapshot was deleted",
	}[op.Kind]
	if op.Result != "" && op.Result != what {
		what += ": " + clean(op.Result)
	}
	return what
}

// lines reports progress for logs: one line per step, and per tenth of the way.
func (a *app) lines() func(api.Operation) {
	last := ""
	return func(op api.Operation) {
		key := fmt.Sprint(op.Status, op.Step, op.Progress.Percent/10, op.Progress.Note)
		if key == last || op.Step == "" || client.Ended(op) {
			return
		}
		last = key
		fmt.Fprintf(a.stderr, "%s: %s\n", clean(op.VPSName), standing(op))
	}
}

// standing tells how far an operation is.
func standing(op api.Operation) string {
	s := stepName(op)
	p := op.Progress
	if p.TotalBytes > 0 {
		s += fmt.Sprintf(", %d %%, %s of %s", p.Percent, size(p.DoneBytes), size(p.TotalBytes))
	}
	if p.ETASeconds != nil {
		s += fmt.Sprintf(", about %s left", time.Duration(*p.ETASeconds)*time.Second)
	}
	if p.Note != "" {
		s += "; " + clean(p.Note)
	}
	return s
}

// steps says in words what an operation is at.
var steps = map[string]string{
	"overlays":   "making overlays",
	"switch":     "switching the disks to the overlays",
	"verify":     "checking the disks",
	"metadata":   "noting the snapshot in the VPS's definition",
	"old_merge":  "merging the replaced snapshot",
	"old_settle": "writing the VPS's definition",
	"old_unlink": "removing the replaced snapshot's files",

	"spares":     "preparing the disks",
	"try":        "trying what the restore will need",
	"stop":       "stopping the VPS",
	"exchange":   "exchanging the disks",
	"definition": "checking the VPS's definition",
	"start":      "starting the VPS",
	"answer":     "waiting for the guest to answer",
	"tidy":       "tidying up",

	"queue":    "waiting for other merges",
	"end_undo": "giving up the undo of the last restore",
	"merge":    "merging the disks",
	"pivot":    "switching the VPS to the merged disks",
	"settle":   "writing the VPS's definition",
	"resume":   "letting the VPS go on",
	"unlink":   "removing the snapshot's files",
}

// stepName names the step, in its own name if this version has no words for it.
func stepName(op api.Operation) string {
	switch words, ok := steps[op.Step]; {
	case op.Step == "":
		return "about to begin"
	case ok:
		return words
	}
	return clean(op.Step)
}

// bar draws a progress bar, in one line that is gone afterwards. stop must be
// called before anything else is printed.
func (a *app) bar(op api.Operation) (seen func(api.Operation), stop func()) {
	w := progress.NewWriter()
	w.SetOutputWriter(a.stderr)
	w.SetAutoStop(true)
	w.SetTrackerLength(barWidth)
	// A line that wraps would not be drawn over.
	w.SetMessageLength(max(20, width(a.stderr)-besideMessage))
	w.SetUpdateFrequency(100 * time.Millisecond)
	w.SetStyle(progress.StyleBlocks)
	style := w.Style()
	// The message has the numbers.
	style.Visibility.Percentage, style.Visibility.Value, style.Visibility.ETA = false, false, false
	style.Options.Separator, style.Options.TimeInProgressPrecision = " ", time.Second
	// With RemoveOnCompletion the library would not draw over the line before.
	t := &progress.Tracker{Message: stepName(op), Total: 100, AutoStopDisabled: true}
	w.AppendTracker(t)
	ended := make(chan struct{})
	go func() {
		w.Render()
		close(ended)
	}()
	seen = func(op api.Operation) {
		t.SetValue(int64(op.Progress.Percent))
		t.UpdateMessage(clean(op.VPSName) + ": " + standing(op))
	}
	return seen, func() {
		t.MarkAsDone()
		// The library draws in a goroutine; nothing else may print before it has ended.
		<-ended
		fmt.Fprint(a.stderr, text.CursorUp.Sprint(), text.EraseLine.Sprint())
	}
}

const (
	barWidth = 20
	// besideMessage is the bar, and a time as in " [1h59m59s] ".
	besideMessage = barWidth + 14
)

// width is how many columns a terminal has.
func width(f any) int {
	columns, _ := screenSize(f)
	return columns
}

// screenSize is that of a terminal, or a usual one.
func screenSize(f any) (columns, rows int) {
	if file, ok := fileOf(f); ok {
		if columns, rows, err := term.GetSize(int(file.Fd())); err == nil && columns > 0 && rows > 0 {
			return columns, rows
		}
	}
	return 80, 24
}
