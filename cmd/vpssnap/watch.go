package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

const (
	// busyLook is how often the daemon is asked while an operation runs, idleLook
	// otherwise: what happens tells itself, but not how far it is.
	busyLook = time.Second
	idleLook = 15 * time.Second
)

func watchCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "watch [VPS]",
		Short: "Show the VPS, or one of them, and how it changes",
		Long: `Show the VPS of this host, or one of them, and how far its operations are, until it
is interrupted. On a terminal the picture is drawn anew; elsewhere each change is a
line.`,
		Example:           "  vpssnap watch\n  vpssnap watch web1",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeVPS,
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			w := &watch{a: a, c: c, seen: map[string]string{}}
			if len(args) == 1 {
				w.ref = args[0]
			}
			if isTerminal(a.stdout) && a.output.value == "table" {
				fmt.Fprint(a.stdout, enterScreen)
				defer fmt.Fprint(a.stdout, leaveScreen)
				w.terminal = true
			}
			err := w.run(ctx)
			if errors.Is(err, context.Canceled) {
				return nil // that is how it ends
			}
			return err
		}),
	}
}

// watch is one look after another.
type watch struct {
	a        *app
	c        *client.Client
	ref      string // "" for all
	terminal bool
	seen     map[string]string // by id, what was printed last
	lost     bool              // the daemon did not answer the last time
}

// run looks whenever something has happened, and now and then, until ctx ends.
func (w *watch) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	// Before listening: a wrong name must be an error at once.
	list, err := w.look(ctx)
	if err != nil {
		cancel()
		return err
	}
	happened, ended := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(ended)
		w.listen(ctx, happened)
	}()
	defer func() {
		cancel()
		<-ended
	}()
	for {
		if err == nil {
			w.lost = false
			if err := w.show(list, ""); err != nil {
				return err
			}
		} else if err := w.complain(list, err); err != nil {
			return err
		}
		if err := await(ctx, happened, list); err != nil {
			return err
		}
		var next []api.VPS
		if next, err = w.look(ctx); err == nil {
			list = next
		}
	}
}

// listen tells whenever something has happened, and when it begins to listen. Without it
// there is a look now and then all the same. The channel holds one word: many events at
// once are one look.
func (w *watch) listen(ctx context.Context, happened chan<- struct{}) {
	p := api.ListenEventsParams{}
	if w.ref != "" {
		p.VPS = &w.ref
	}
	_ = w.c.Follow(ctx, p, func(client.Frame) error {
		select {
		case happened <- struct{}{}:
		default:
		}
		return nil
	}, func(error) {})
}

// look reads what is watched.
func (w *watch) look(ctx context.Context) ([]api.VPS, error) {
	if w.ref == "" {
		return w.c.ListVPS(ctx)
	}
	v, err := w.c.VPS(ctx, w.ref)
	return []api.VPS{v}, err
}

// await returns when it is time for the next look.
func await(ctx context.Context, happened <-chan struct{}, list []api.VPS) error {
	pause := idleLook
	for _, v := range list {
		if v.Operation != nil && !client.Ended(*v.Operation) {
			pause = busyLook
		}
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-happened:
	case <-time.After(pause):
	}
	return nil
}

// complain says that the daemon did not answer, once, and goes on: it may be
// restarting. What it refuses ends the watch.
func (w *watch) complain(list []api.VPS, err error) error {
	_, away := errors.AsType[*client.UnreachableError](err)
	if !away && client.CodeOf(err) != api.CodeHypervisorUnavailable {
		return err
	}
	why := clean(err.Error()) + "; trying again"
	if w.terminal {
		return w.show(list, why)
	}
	if !w.lost {
		fmt.Fprintln(w.a.stderr, "vpssnap:", why)
	}
	w.lost = true
	return nil
}

// show is a picture on a terminal, lines elsewhere.
func (w *watch) show(list []api.VPS, why string) error {
	if !w.terminal {
		return w.changes(list)
	}
	return w.draw(list, why)
}

// changes prints a line for each VPS that is not as it was.
func (w *watch) changes(list []api.VPS) error {
	there := map[string]bool{}
	for _, v := range list {
		there[v.ID] = true
		line := watchLine(v)
		if w.seen[v.ID] == line {
			continue
		}
		w.seen[v.ID] = line
		if err := w.a.printOne(v, func() { w.a.say("%s  %-12s  %s", moment(time.Now()), clean(v.Name), line) }); err != nil {
			return err
		}
	}
	for id := range w.seen {
		if !there[id] {
			delete(w.seen, id)
			fmt.Fprintf(w.a.stderr, "vpssnap: %s is gone\n", clean(id))
		}
	}
	return nil
}

// watchLine is what of a VPS is worth a line when it changes.
func watchLine(v api.VPS) string {
	option, snapshot := "no option", "no snapshot"
	if v.Option != nil {
		option = "option " + state(v.Option.State)
	}
	if v.Snapshot != nil {
		snapshot = "snapshot " + state(v.Snapshot.State)
	}
	line := strings.Join([]string{state(v.State), option, snapshot}, ", ")
	if op := v.Operation; op != nil {
		at := *op
		// A line for each tenth of the way is enough.
		at.Progress.Percent -= at.Progress.Percent % 10
		at.Progress.TotalBytes, at.Progress.ETASeconds = 0, nil
		line += fmt.Sprintf(", %s %s: %s", op.Kind, state(op.Status), standing(at))
		if op.Progress.TotalBytes > 0 {
			line += fmt.Sprintf(", %d %%", at.Progress.Percent)
		}
	}
	return line
}

// What a terminal is told: to show another screen than that with the user's lines,
// and to show that again.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	screenTop   = "\x1b[H"
	eraseRest   = "\x1b[K"
	eraseBelow  = "\x1b[J"
)

// draw puts the picture in the place of the last one, in one piece, so that it does
// not flicker.
func (w *watch) draw(list []api.VPS, why string) error {
	columns, rows := screenSize(w.a.stdout)
	_, err := io.WriteString(w.a.stdout, fit(w.picture(list, why), columns, rows))
	return err
}

// picture is made as by list and show, into memory.
func (w *watch) picture(list []api.VPS, why string) string {
	var picture bytes.Buffer
	to := *w.a
	to.stdout = &picture
	to.say("%s  vpssnap watch, Ctrl-C ends it\n", moment(time.Now()))
	if why != "" {
		to.say("%s\n", text.FgRed.Sprint(why))
	}
	if w.ref != "" && len(list) == 1 {
		to.showVPS(list[0])
		return picture.String()
	}
	for _, v := range list {
		if op := v.Operation; op != nil {
			to.say("%s: %s, %s", clean(v.Name), kindName(op.Kind), standing(*op))
		}
	}
	to.say("")
	to.listTable(list)
	return picture.String()
}

// fit cuts a picture to a screen, and lets it take the place of what is there. A line
// that wrapped would push the picture out of its place.
func fit(picture string, columns, rows int) string {
	lines := strings.Split(strings.TrimRight(picture, "\n"), "\n")
	lines = lines[:min(len(lines), rows)]
	for i, line := range lines {
		lines[i] = text.Trim(line, columns) + eraseRest
	}
	return screenTop + strings.Join(lines, "\r\n") + eraseBelow
}
