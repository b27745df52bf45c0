package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vpssnapd/api"
	"vpssnapd/api/client"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor/lab"
)

// consistentWithin is how long the daemon may take to have everything in its
// place after the end of an operation.
const consistentWithin = 5 * time.Second

// eventually gives the daemon a moment: an undo may just be ending.
func eventually(ctx context.Context, ok func() error) error {
	for end := time.Now().Add(consistentWithin); ; {
		err := ok()
		if err == nil || time.Now().After(end) {
			return err
		}
		if stopped := pause(ctx, 20*time.Millisecond); stopped != nil {
			return stopped
		}
	}
}

// check applies the outcome to what is known of the VPS, and compares.
func (c *campaign) check(ctx context.Context, w *work) error {
	v := w.victim
	// First: what the guest has said is the measure of all.
	if err := v.console.read(); err != nil {
		return err
	}
	var d lab.Definition
	err := eventually(ctx, func() (err error) {
		if d, err = c.site.Lab.Definition(ctx, v.name); err != nil {
			return err
		}
		if d.State != v.state && (!w.killed || d.State != "shut off") {
			return fmt.Errorf("it is %s, it was %s", d.State, v.state)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if w.op.Status == "succeeded" {
		if err := c.apply(ctx, w, d.State == v.state); err != nil {
			return err
		}
	}
	if err := c.backUp(ctx, w, d); err != nil {
		return err
	}
	return eventually(ctx, func() error { return c.compare(ctx, v) })
}

// apply does to what is known what the operation did to the VPS, and makes sure
// that it did. on reports whether the VPS is as it was, and was not left off by a kill.
func (c *campaign) apply(ctx context.Context, w *work, on bool) (err error) {
	v := w.victim
	if ends(w.kind) {
		v.snapshot, v.undo = nil, nil
		return nil
	}
	s, err := c.recordOf(ctx, v)
	if err != nil {
		return err
	}
	if s == nil {
		return errors.New("there is no snapshot on record")
	}
	switch w.kind {
	case take, replace:
		v.undo = nil
		v.snapshot, err = c.taken(ctx, w, basesOf(*s))
	case restore:
		v.undo, err = c.restored(ctx, v, v.snapshot, *s, on)
	case undoRestore:
		v.undo, err = c.restored(ctx, v, v.undo, *s, on)
	}
	if s.UndoUntil != nil {
		v.undoUntil = *s.UndoUntil
	}
	return err
}

// taken reads a new snapshot: everything that the guest had flushed before the
// request is in it, and nothing that it had not written at its end.
func (c *campaign) taken(ctx context.Context, w *work, bases map[string]image) (moment, error) {
	v := w.victim
	low, high := w.acked, v.console.acked+1
	// Nobody writes: the snapshot must be the disks to the byte.
	if v.now != nil {
		low, high = 0, ^uint32(0)
	}
	m, err := c.momentOf(ctx, v, bases, low, high)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the snapshot: %w", err)
	case v.now != nil && !m.equal(v.now):
		return nil, errors.New("the snapshot is not what the disks were, and nobody wrote to them")
	}
	return m, nil
}

// restored makes sure that the guest stands where it stood at origin, and reads
// what can bring it back to before.
func (c *campaign) restored(ctx context.Context, v *victim, origin moment, s vps.Snapshot, on bool) (moment, error) {
	if !undoKept(s) {
		return nil, errors.New("the restore cannot be undone")
	}
	// Off, the disks are exchanged and nothing else happens to them.
	if !v.running() {
		before := v.now
		v.now = origin
		m, err := c.momentOf(ctx, v, undosOf(s), 0, ^uint32(0))
		if err == nil && !m.equal(before) {
			err = errors.New("what is kept for undo is not what the disks were, and nobody wrote to them")
		}
		return m, err
	}
	last, err := v.wentBackTo(origin[v.targets[0]].found, on)
	if err != nil {
		return nil, err
	}
	m, err := c.momentOf(ctx, v, undosOf(s), last, last+1)
	if err != nil {
		err = fmt.Errorf("what is kept for undo: %w", err)
	}
	return m, err
}

// wentBackTo waits until the guest has booted with the record found, and returns
// what it had acknowledged before. A guest that a kill has left off may not have
// booted; its disks are read then.
func (v *victim) wentBackTo(found uint32, on bool) (uint32, error) {
	booted := func() bool {
		return slices.ContainsFunc(v.console.boots, func(b boot) bool { return b.found == found })
	}
	if on {
		if err := v.console.wait(aliveWithin, booted); err != nil {
			return 0, fmt.Errorf(
				"it has not booted with record %d, which it was put back to (%v): %w", found, v.console.boots, err,
			)
		}
	}
	last := v.console.acked
	if !booted() {
		v.console.acked = max(found, 1) - 1
		return last, nil
	}
	return v.console.boots[slices.IndexFunc(v.console.boots, func(b boot) bool { return b.found == found })].before, nil
}

// backUp brings a VPS up again whose QEMU was killed, and makes sure that every
// boot found what the guest had flushed.
func (c *campaign) backUp(ctx context.Context, w *work, d lab.Definition) error {
	v := w.victim
	if d.State != v.state {
		if v.now == nil {
			if _, err := c.momentOf(ctx, v, imagesOf(d.Inactive), v.console.acked, v.console.acked+1); err != nil {
				return fmt.Errorf("after QEMU was killed: %w", err)
			}
		}
		if err := c.bring(ctx, v); err != nil {
			return err
		}
	}
	if !v.running() {
		return nil
	}
	if err := v.advances(); err != nil {
		return err
	}
	for _, b := range v.console.boots {
		// A restore is the one reason to boot with less than was flushed.
		back := w.kind == restore && v.snapshot[v.targets[0]].found == b.found ||
			w.kind == undoRestore && w.op.Status == "succeeded"
		if b.found != b.before && b.found != b.before+1 && !back {
			return fmt.Errorf("the guest booted with record %d, it had flushed %d", b.found, b.before)
		}
	}
	return nil
}

// compare holds record, definitions, headers and content of one VPS against
// each other and against what is known.
func (c *campaign) compare(ctx context.Context, v *victim) error {
	s, err := c.recordOf(ctx, v)
	if err != nil {
		return err
	}
	if err := v.sameRecord(s); err != nil {
		return err
	}
	d, err := c.site.Lab.Definition(ctx, v.name)
	if err != nil {
		return err
	}
	for _, disks := range [][]lab.DiskUse{d.Live, d.Inactive} {
		if err := v.sameDisks(s, disks); err != nil {
			return err
		}
	}
	if s != nil {
		if err := c.sameHeaders(ctx, *s); err != nil {
			return err
		}
	}
	return c.sameContent(ctx, v, s, imagesOf(d.Inactive))
}

// recordOf is the snapshot in the database; nil for none. Read from the database and not
// asked of the daemon, which may be dead.
func (c *campaign) recordOf(ctx context.Context, v *victim) (*vps.Snapshot, error) {
	db, err := store.OpenReadOnly(c.site.Database())
	if err != nil {
		return nil, err
	}
	defer db.Close()
	snapshots, err := db.SnapshotsOf(ctx, v.id)
	switch {
	case err != nil || len(snapshots) == 0:
		return nil, err
	case len(snapshots) > 1:
		return nil, fmt.Errorf("there are %d snapshots on record", len(snapshots))
	}
	return &snapshots[0], nil
}

// sameRecord compares the record with what the operations have come to.
func (v *victim) sameRecord(s *vps.Snapshot) error {
	switch {
	case s == nil && v.snapshot == nil:
		return nil
	case s == nil:
		return errors.New("there is no snapshot on record, there must be one")
	case v.snapshot == nil:
		return fmt.Errorf("there is a snapshot on record (%s), there must be none", s.State)
	case s.State != vps.SnapshotAvailable:
		return fmt.Errorf("the snapshot is %s: %s", s.State, s.Reason)
	case len(s.Disks) != len(v.targets):
		return fmt.Errorf("the snapshot has %d disks, the VPS %d", len(s.Disks), len(v.targets))
	}
	// Its time is over; whether it has been removed yet is open.
	if !undoKept(*s) && v.undo != nil && !time.Now().Before(v.undoUntil) {
		v.undo = nil
	}
	if undoKept(*s) != (v.undo != nil) {
		return fmt.Errorf("an undo is on record: %t, expected: %t", undoKept(*s), v.undo != nil)
	}
	for _, disk := range s.Disks {
		if base := v.bases[disk.Target]; disk.Base != base.path || disk.BaseFormat != base.format || disk.Pivoted {
			return fmt.Errorf("disk %s on record: %+v", disk.Target, disk)
		}
	}
	return nil
}

// undoKept reports whether a restore could still be undone, by the record.
func undoKept(s vps.Snapshot) bool {
	return slices.ContainsFunc(s.Disks, func(d vps.SnapshotDisk) bool { return d.Undo != "" })
}

// basesOf are the images that hold the snapshot.
func basesOf(s vps.Snapshot) map[string]image {
	images := map[string]image{}
	for _, d := range s.Disks {
		images[d.Target] = image{d.Base, d.BaseFormat}
	}
	return images
}

// undosOf are the images that an undo would bring back.
func undosOf(s vps.Snapshot) map[string]image {
	images := map[string]image{}
	for _, d := range s.Disks {
		images[d.Target] = image{d.Undo, "qcow2"}
	}
	return images
}

// sameDisks compares a definition with the record: its overlays on the bases, or
// the bases alone.
func (v *victim) sameDisks(s *vps.Snapshot, disks []lab.DiskUse) error {
	want := map[string]lab.DiskUse{}
	for target, base := range v.bases {
		want[target] = lab.DiskUse{Target: target, Path: base.path, Format: base.format}
	}
	if s != nil {
		for _, d := range s.Disks {
			want[d.Target] = lab.DiskUse{Target: d.Target, Path: d.Overlay, Format: "qcow2", Backing: []string{d.Base}}
		}
	}
	if len(disks) != len(want) {
		return fmt.Errorf("a definition has %d disks instead of %d", len(disks), len(want))
	}
	for _, d := range disks {
		w := want[d.Target]
		if d.Path != w.Path || d.Format != w.Format || d.Backing != nil && !slices.Equal(d.Backing, w.Backing) {
			return fmt.Errorf("a definition has %+v instead of %+v", d, w)
		}
	}
	return nil
}

// sameHeaders makes sure that every overlay lies on its base, by its own header. What
// libvirt says of the chain would hide a header that is wrong at the next boot.
func (c *campaign) sameHeaders(ctx context.Context, s vps.Snapshot) error {
	for _, d := range s.Disks {
		for _, path := range []string{d.Overlay, d.Undo} {
			if path == "" {
				continue
			}
			backing, format, err := c.site.Lab.Backing(ctx, path)
			if err != nil {
				return err
			}
			if backing != d.Base || format != d.BaseFormat {
				return fmt.Errorf(
					"%s lies on %s (%s) by its header, not on %s (%s)", path, backing, format, d.Base, d.BaseFormat,
				)
			}
		}
	}
	return nil
}

// sameContent compares every byte of the disks, of the snapshot and of what undo needs.
// Every byte, each round: damage that shows only months later is the worst.
func (c *campaign) sameContent(ctx context.Context, v *victim, s *vps.Snapshot, present map[string]image) error {
	if v.running() {
		if err := c.writtenTo(ctx, v, present); err != nil {
			return err
		}
	} else if err := c.still(ctx, v, "the disk", present, v.now); err != nil {
		return err
	}
	if s == nil {
		return nil
	}
	if err := c.still(ctx, v, "the snapshot", basesOf(*s), v.snapshot); err != nil {
		return err
	}
	if v.undo == nil {
		return nil
	}
	return c.still(ctx, v, "what is kept for undo", undosOf(*s), v.undo)
}

// still makes sure that nothing has changed in images that nobody may change.
func (c *campaign) still(ctx context.Context, v *victim, what string, images map[string]image, was moment) error {
	is, err := c.momentOf(ctx, v, images, 0, ^uint32(0))
	if err == nil && !is.equal(was) {
		err = fmt.Errorf("it has come to record %d, it was at %d", is[v.targets[0]].found, was[v.targets[0]].found)
	}
	if err != nil {
		return fmt.Errorf("%s is not what it was: %w", what, err)
	}
	return nil
}

// wholeHost makes sure that nothing is left over on the host, and that the
// daemon itself finds everything as recorded.
func (c *campaign) wholeHost(ctx context.Context) error {
	return eventually(ctx, func() error {
		if err := c.nothingOpen(ctx); err != nil {
			return err
		}
		if err := c.sameFiles(ctx); err != nil {
			return err
		}
		report, err := c.site.Client.Checks(ctx)
		var unreachable *client.UnreachableError
		switch {
		case errors.As(err, &unreachable):
			return fmt.Errorf("the daemon is not back: %w", err)
		case err != nil:
			return err
		}
		if found := findings(report); found != "" {
			return fmt.Errorf("the daemon's own checks find:%s", found)
		}
		return nil
	})
}

// findings are what a report says besides that the decoys are nobody's.
func findings(r api.Report) string {
	var text strings.Builder
	for _, f := range r.Findings {
		if f.Code != api.CheckCodeOrphanOverlay || !slices.Contains(decoys, filepath.Base(f.Path)) {
			fmt.Fprintf(&text, "\n  %s: %s: %s", f.VPSName, f.Code, f.Detail)
		}
	}
	return text.String()
}

// nothingOpen makes sure that the database has no operation that is not ended, and that
// no guest is owed anything. A debt that is forgotten leaves a guest frozen for ever.
func (c *campaign) nothingOpen(ctx context.Context) error {
	db, err := store.OpenReadOnly(c.site.Database())
	if err != nil {
		return err
	}
	defer db.Close()
	operations, err1 := db.ActiveOperations(ctx)
	owed, err2 := db.Debts(ctx)
	switch err := errors.Join(err1, err2); {
	case err != nil:
		return err
	case len(operations) > 0:
		return fmt.Errorf(
			"operation %s (%s of %s) is %s", operations[0].ID, operations[0].Kind, operations[0].VPSName,
			operations[0].Status,
		)
	case len(owed) > 0:
		return fmt.Errorf("the guest %s is still owed: %s", owed[0].VPS, owed[0].Kind)
	}
	return nil
}
