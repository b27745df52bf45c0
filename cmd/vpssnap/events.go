package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

func eventsCmd(a *app) *cobra.Command {
	var follow bool
	var ref, since string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Print what has happened, and what happens",
		Long: `Print the events that are kept (for 7 days by default), oldest first, or with --follow
those that come, until it is interrupted. With --output json each is one line, and its
id is what --since goes on behind.`,
		Example: `  vpssnap events -f --vps web1
  vpssnap events --since 1763804112345 -o json`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.BoolVarP(&follow, "follow", "f", false, "print what comes, and go on when the daemon is restarted")
	flags.StringVar(&ref, "vps", "", "only events of this VPS")
	flags.StringVar(&since, "since", "", "begin behind the event with this id")
	completeFlag(cmd, "vps", a.namesOfVPS)
	cmd.RunE = a.action(func(ctx context.Context, c *client.Client, _ []string) error {
		p := api.ListenEventsParams{}
		if flags.Changed("since") {
			id, err := strconv.ParseInt(since, 10, 64)
			if err != nil || id < 0 {
				return usagef("--since: %q is not the id of an event", since)
			}
			since = strconv.FormatInt(id, 10)
			p.LastEventID = &since
		}
		if flags.Changed("vps") {
			p.VPS = &ref
		}
		if follow {
			return a.followEvents(ctx, c, p)
		}
		return a.keptEvents(ctx, c, p)
	})
	return cmd
}

// followEvents prints events until the user has enough. It goes on over restarts of the
// daemon, and says so on the standard error.
func (a *app) followEvents(ctx context.Context, c *client.Client, p api.ListenEventsParams) error {
	err := c.Follow(ctx, p, a.printFrame, func(err error) {
		fmt.Fprintf(a.stderr, "vpssnap: %s; trying again\n", clean(lostBecause(err)))
	})
	if errors.Is(err, context.Canceled) {
		return nil // that is how it ends
	}
	return err
}

// lostBecause is why a stream was cut, for people.
func lostBecause(err error) string {
	if err == nil {
		return "the daemon has ended the stream"
	}
	return err.Error()
}

// errEnough ends a stream.
var errEnough = errors.New("that is all")

// keptEvents prints the events that there are now. A new stream tells how far
// that is.
func (a *app) keptEvents(ctx context.Context, c *client.Client, p api.ListenEventsParams) error {
	// Events go on coming while the old ones are printed; this is where to stop.
	var newest int64
	err := c.Listen(ctx, api.ListenEventsParams{}, func(f client.Frame) (err error) {
		if newest, err = strconv.ParseInt(f.ID, 10, 64); err != nil {
			return fmt.Errorf("the daemon's events have ids of another kind: %w", err)
		}
		return errEnough
	})
	if !errors.Is(err, errEnough) {
		return err
	}
	everything := p.LastEventID == nil
	if everything {
		first := "0"
		p.LastEventID = &first
	}
	begun := false
	err = c.Listen(ctx, p, func(f client.Frame) error {
		// The first says where it begins: if not where it was to, what was missed is next.
		if !begun {
			begun = true
			if f.ID != *p.LastEventID {
				return nil
			}
		}
		id, err := strconv.ParseInt(f.ID, 10, 64)
		if err != nil {
			return fmt.Errorf("the daemon's events have ids of another kind: %w", err)
		}
		if first := everything && f.Event != nil && f.Event.Type == api.EventTypeEventsMissed; id <= newest && !first {
			err = a.printFrame(f)
		}
		if err == nil && id >= newest {
			return errEnough
		}
		return err
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// printFrame prints the event of a frame that has one.
func (a *app) printFrame(f client.Frame) error {
	e := f.Event
	if e == nil {
		return nil
	}
	return a.printOne(e, func() {
		a.say("%s  %-12s  %s", moment(e.At), clean(cmp.Or(e.VPSName, "-")), eventLine(*e))
	})
}

// printOne is print for one of many: in JSON it is one line, in YAML one document.
func (a *app) printOne(v any, human func()) error {
	switch a.output.value {
	case "json":
		return a.printJSON(v, "")
	case "yaml":
		a.say("---")
		return a.printYAML(v)
	}
	human()
	return a.written()
}

// eventLine says in words what has happened.
func eventLine(e api.Event) string {
	switch {
	case e.Operation != nil:
		return operationLine(e.Type, *e.Operation)
	case e.Option != nil:
		return with("option "+state(e.Option.State), ": ", clean(e.Option.Note)) + " (by " + clean(e.Option.Actor.Name) + ")"
	case e.Snapshot != nil:
		line := with("snapshot "+state(e.Snapshot.State), ": ", clean(e.Snapshot.Reason))
		return with(line, ", the restore can be undone until ", momentOr(e.Snapshot.UndoUntil, ""))
	case e.Message != nil:
		return "message: " + clean(e.Message.Text)
	case e.Space != nil:
		return spaceLine(*e.Space)
	case e.Type == api.EventTypeEventsMissed:
		return "events were missed: they are kept no more"
	}
	return clean(string(e.Type))
}

// operationLine is eventLine of an operation.
func operationLine(t api.EventType, o api.OperationEvent) string {
	line := kindName(o.Kind) + ": "
	switch {
	case t == api.EventTypeOperationStep:
		line += stepName(api.Operation{Step: o.Step})
	case o.Error != nil:
		line += state(o.Status) + ": " + clean(o.Error.Detail)
	default:
		line = with(line+state(o.Status), ": ", clean(o.Result))
	}
	return line + " (" + clean(o.ID) + ", by " + clean(o.Actor.Name) + ")"
}

// spaceLine is eventLine of a file system.
func spaceLine(s api.SpaceEvent) string {
	line := with(
		fmt.Sprintf("space %s: %s of %s free", state(s.Level), size(s.FreeBytes), size(s.TotalBytes)), " at ",
		clean(s.Path),
	)
	if s.FullInSeconds > 0 {
		line += fmt.Sprintf(", full in %s", time.Duration(s.FullInSeconds)*time.Second)
	}
	return line
}

// with appends what may be missing.
func with(line, before, what string) string {
	if what == "" {
		return line
	}
	return line + before + what
}
