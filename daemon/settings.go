package daemon

import (
	"vpssnapd/daemon/download"
	"vpssnapd/daemon/guest"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/merge"
	"vpssnapd/daemon/notify"
	"vpssnapd/daemon/option"
	"vpssnapd/daemon/snapshot"
	"vpssnapd/daemon/space"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
)

// Settings are what may change while the daemon works (Apply).
type Settings struct {
	// Offer is the option on sale.
	Offer    vps.Offer
	Snapshot snapshot.Policy
	Guest    guest.Policy
	Merge    merge.Policy
	Space    space.Policy
	// Images says what disks may lie on.
	Images image.Policy
	// Download limits downloads; its zero value: there are none.
	Download download.Policy
	// Notify says when customers are told, and how long a snapshot outlives its option.
	Notify notify.Policy
	// Retention is how long what is over stays in the record.
	Retention store.Retention
}

// Apply lets other settings count from now on. What was decided by the old ones
// stays: the end of an undo, the price of an order. A merge that has its place
// keeps it, when fewer may copy now.
func (d *Daemon) Apply(s Settings) {
	d.settings.Store(&s)
	d.merger.Apply()
}

func (d *Daemon) optionPolicy() option.Policy {
	s := d.settings.Load()
	return option.Policy{Offer: s.Offer, Grace: s.Notify.Grace}
}

func (d *Daemon) snapshotPolicy() snapshot.Policy { return d.settings.Load().Snapshot }
func (d *Daemon) guestPolicy() guest.Policy       { return d.settings.Load().Guest }
func (d *Daemon) mergePolicy() merge.Policy       { return d.settings.Load().Merge }
func (d *Daemon) spacePolicy() space.Policy       { return d.settings.Load().Space }
func (d *Daemon) imagePolicy() image.Policy       { return d.settings.Load().Images }
func (d *Daemon) downloadPolicy() download.Policy { return d.settings.Load().Download }
func (d *Daemon) notifyPolicy() notify.Policy     { return d.settings.Load().Notify }
