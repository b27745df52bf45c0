package main

import (
	"context"
	"fmt"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

// showCmd asks libvirt, unlike list.
func showCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show VPS",
		Short: "Show a VPS, its snapshot, and what can be done with it",
		Long: `Show a VPS, its disks, option and snapshot, and which actions are possible now; of
the others it says why not.`,
		Example:           "  vpssnap show web1",
		SuggestFor:        []string{"info", "get"},
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVPS,
		RunE: a.action(func(ctx context.Context, c *client.Client, args []string) error {
			v, err := c.VPS(ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(v, func() { a.showVPS(v) })
		}),
	}
}

func (a *app) showVPS(v api.VPS) {
	pairs := [][2]string{
		{"Name", clean(v.Name)},
		{"Id", clean(v.ID)},
		{"State", state(v.State)},
		{"Guest agent", string(v.Agent)},
	}
	if !v.Persistent {
		pairs = append(pairs, [2]string{"Persistent", "no"})
	}
	if o := v.Option; o != nil {
		pairs = append(pairs, [2]string{"Option", optionLine(*o)})
	}
	if s := v.Snapshot; s != nil {
		pairs = append(pairs, snapshotPairs(*s)...)
	} else {
		pairs = append(pairs, [2]string{"Snapshot", "none"})
	}
	if op := v.Operation; op != nil {
		pairs = append(pairs, [2]string{"Operation", fmt.Sprintf("%s: %s, %s", op.ID, op.Kind, standing(*op))})
	}
	a.sheet(pairs...)
	a.say("")
	a.diskTable(v.Disks)
	a.say("")
	a.actionTable(v.Actions)
}

func optionLine(o api.Option) string {
	line := state(o.State)
	if o.GraceUntil != nil {
		line += ", the snapshot will be deleted on " + moment(*o.GraceUntil)
	} else if o.EndsAt != nil {
		line += " until " + moment(*o.EndsAt)
	}
	return line
}

func snapshotPairs(s api.Snapshot) [][2]string {
	pairs := [][2]string{
		{"Snapshot", clean(s.ID) + ", " + state(s.State)},
		{"Broken", clean(s.Reason)},
		{"Description", clean(s.Description)},
		{"Taken", moment(s.CreatedAt)},
		{"Consistency", consistency(s)},
		{"Size", size(s.SizeBytes)},
		{"Written since", size(s.DeltaBytes)},
	}
	if s.RestoredAt != nil {
		pairs = append(pairs, [2]string{"Restored", moment(*s.RestoredAt)})
	}
	if s.UndoUntil != nil {
		pairs = append(pairs, [2]string{"Undo until", moment(*s.UndoUntil)})
	}
	return pairs
}

func (a *app) diskTable(disks []api.Disk) {
	t := a.table("disk", "format", "size", "in the snapshot", "file")
	for _, d := range disks {
		included := yesNo(d.Included)
		if d.Refused {
			included = "prevents it"
		}
		if d.Reason != "" {
			included += " (" + clean(d.Reason) + ")"
		}
		t.AppendRow(table.Row{clean(d.Target), clean(d.Format), size(d.SizeBytes), included, clean(d.Path)})
	}
	t.Render()
}

func (a *app) actionTable(actions api.Actions) {
	t := a.table("action", "possible", "")
	for _, row := range []struct {
		name string
		v    api.Verdict
	}{
		{"take", actions.Take}, {"restore", actions.Restore}, {"undo-restore", actions.UndoRestore}, {"delete", actions.Delete},
	} {
		t.AppendRow(table.Row{row.name, yesNo(row.v.Allowed), clean(row.v.Reason)})
	}
	t.Render()
}
