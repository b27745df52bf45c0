package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

func doctorCmd(a *app) *cobra.Command {
	var repair bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Compare the records with libvirt and the files, and say what to do",
		Long: `Compares the records with libvirt and the files, names everything that is not
as recorded, and prints for each the commands that put it right. Where there are
several ways, choose one.

With --repair the daemon puts right what it can without any risk, and nothing
else; what is left is printed.

The exit code is 0 when all is well, and 10 when something is left to be done.`,
		Example: `  vpssnap doctor
  vpssnap doctor --repair`,
		SuggestFor: []string{"check", "fsck", "repair"},
		Args:       cobra.NoArgs,
		RunE: a.action(func(ctx context.Context, c *client.Client, _ []string) error {
			ask := c.Checks
			if repair {
				ask = c.Repair
			}
			r, err := ask(ctx)
			if err != nil {
				return err
			}
			if err := a.print(r, func() { a.showReport(r) }); err != nil {
				return err
			}
			if len(r.Findings) > 0 {
				return &findingsError{len(r.Findings)}
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "put right what can be put right without any risk")
	return cmd
}

// showReport prints what was done first, then what is left.
func (a *app) showReport(r api.Report) {
	for _, done := range r.Repairs {
		outcome := "repaired"
		if !done.Done {
			outcome = "not repaired"
		}
		a.say("%s: %s: %s", outcome, subject(done.VPSName, "", string(done.Code)), clean(done.Text))
	}
	for i, f := range r.Findings {
		if i > 0 || len(r.Repairs) > 0 {
			a.say("")
		}
		a.showFinding(f)
	}
	if len(r.Findings) == 0 {
		a.say("All is well: %d VPS and %d snapshots were compared.", r.VPSCount, r.SnapshotCount)
	}
}

// subject names what a line is about, as in "web1, disk vda: missing_base".
func subject(name, disk, code string) string {
	about := "host"
	if name != "" {
		about = clean(name)
	}
	if disk != "" {
		about += ", disk " + clean(disk)
	}
	return about + ": " + clean(code)
}

// showFinding numbers ways of which one is to be chosen.
func (a *app) showFinding(f api.Finding) {
	a.say("%s", text.Bold.Sprint(subject(f.VPSName, f.Disk, string(f.Code))))
	a.say("  %s", clean(f.Detail))
	for i, r := range f.Remedies {
		number := ""
		if len(f.Remedies) > 1 {
			number = fmt.Sprintf("%d. ", i+1)
		}
		colon := ""
		if len(r.Commands) > 0 {
			colon = ":"
		}
		a.say("  %s%s%s", number, clean(strings.TrimSuffix(r.Text, ".")), colon)
		for _, line := range r.Commands {
			a.say("      %s", clean(line))
		}
	}
}
