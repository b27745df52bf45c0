package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"vpssnapd/api"
	"vpssnapd/api/client"
)

// hostCmd shows what an operator looks at first.
func hostCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "host",
		Short: "Show this host: versions, counts and the room for snapshots",
		Long: `Show this host: versions, whether libvirt answers, how many VPS and snapshots there
are, and for each directory with disks the room that is left, what is kept free for
the VPS themselves ([snapshot] headroom), what the snapshots take, and when it will be
full at the present rate.`,
		Example: "  vpssnap host",
		Args:    cobra.NoArgs,
		RunE: a.action(func(ctx context.Context, c *client.Client, _ []string) error {
			h, err := c.Host(ctx)
			if err != nil {
				return err
			}
			return a.print(h, func() { a.showHost(h) })
		}),
	}
}

func (a *app) showHost(h api.Host) {
	a.sheet(
		[2]string{"Host", clean(h.Hostname)},
		[2]string{"vpssnapd", clean(h.Version)},
		[2]string{"libvirt", clean(h.LibvirtVersion)},
		[2]string{"QEMU", clean(h.HypervisorVersion)},
		[2]string{"Connected to libvirt", yesNo(h.Connected)},
		[2]string{"VPS", strconv.Itoa(h.VPSCount)},
		[2]string{"Snapshots", strconv.Itoa(h.SnapshotCount)},
		[2]string{"Operations running", strconv.Itoa(h.ActiveOperations)},
		[2]string{"Operations that need an operator", strconv.Itoa(h.ParkedOperations)},
	)
	if len(h.Storage) == 0 {
		return
	}
	a.say("")
	t := a.table("directory", "total", "free", "kept free", "snapshots", "takes permitted", "space")
	for _, s := range h.Storage {
		t.AppendRow(
			table.Row{
				clean(s.Path),
				size(s.TotalBytes),
				size(s.FreeBytes),
				size(s.HeadroomBytes),
				size(s.OverlayBytes),
				yesNo(s.TakesPermitted),
				spaceOf(s),
			},
		)
	}
	t.Render()
}

// spaceOf says how serious the lack of space is, and when it will be full.
func spaceOf(s api.Storage) string {
	if s.FullInSeconds <= 0 {
		return string(s.Level)
	}
	return fmt.Sprintf("%s, full in %s", s.Level, (time.Duration(s.FullInSeconds) * time.Second).Round(time.Minute))
}
