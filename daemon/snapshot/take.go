package snapshot

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/guest"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/verdict"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
	"vpssnapd/hypervisor/pathname"
)

// Take begins to take the snapshot of a VPS: every disk gets an overlay that
// the VPS writes to from then on, and the images below stay as they are.
//
// Codes: invalid, not_found, option_required, snapshot_exists, operation_in_progress,
// unsupported_disk, insufficient_space, vps_changed, hypervisor_unavailable.
func (s *Snapshots) Take(ctx context.Context, ref string, r vps.TakeRequest, actor vps.Actor) (vps.Operation, error) {
	if err := r.Check(); err != nil {
		return vps.Operation{}, err
	}
	if r.Quiesce == "" {
		r.Quiesce = vps.QuiescePrefer
	}
	// Begin holds the VPS's lock until Release: no other request is accepted between
	// check and commit.
	c, err := s.operations.Begin(ctx, ref, actor)
	if err != nil {
		return vps.Operation{}, err
	}
	defer c.Release()
	if err := verdict.Refused(verdict.Take(c.Domain, c.Record, r.Replace), takeRemedy(c.Record)); err != nil {
		return vps.Operation{}, err
	}
	r.Replace = r.Replace && c.Record.Snapshot != nil // nothing to replace is an ordinary take
	snap, err := s.designSnapshot(ctx, c.Domain, c.Record)
	if err != nil {
		return vps.Operation{}, err
	}
	snap.Description, c.SnapshotID = r.Description, snap.ID
	notes := takeNotes{Quiesce: r.Quiesce}
	if r.Replace {
		notes.Replaces = c.Record.Snapshot.ID
		left, err := s.layerLeft(ctx, *c.Record.Snapshot)
		if err != nil {
			return vps.Operation{}, err
		}
		// Two layers below cannot be told apart by a merge of one; see layerLeft.
		if left != "" {
			return vps.Operation{}, errLayerLeft(c.Domain)
		}
	}
	return c.Commit(ctx, vps.KindTake, r, notes, func(tx *store.Tx) error { return insertSnapshot(ctx, tx, snap) })
}

// insertSnapshot records what a take will make. Between the check and here the option
// may have ended, and been released for want of a snapshot: nothing would ever delete
// this one.
func insertSnapshot(ctx context.Context, tx *store.Tx, snap vps.Snapshot) error {
	o, err := tx.OpenOption(ctx, snap.VPS)
	if errors.Is(err, sql.ErrNoRows) || err == nil && o.State != vps.OptionActive {
		return vps.Errorf(vps.CodeOptionRequired, "the snapshot option ended just now").WithRemedy(orderOption)
	}
	if err != nil {
		return err
	}
	return tx.SaveSnapshot(ctx, snap)
}

// orderOption is the remedy where the option is missing.
const orderOption = "order and activate the snapshot option first (PUT /v1/vps/{vps}/option)"

// errLayerLeft refuses a third layer: a replace knows one old layer between its overlay and
// the base, and that one has to be merged away before the next.
func errLayerLeft(dom hypervisor.Domain) error {
	return vps.Errorf(vps.CodeSnapshotExists,
		"the snapshot of %s cannot be replaced: the one before it could not be merged away yet", dom.Name).
		WithRemedy("delete the snapshot, which merges both, then take a new one")
}

// takeRemedy says what the caller does before the snapshot can be taken.
func takeRemedy(rec store.Record) vps.Words {
	switch {
	case rec.Option == nil || rec.Option.State != vps.OptionActive:
		return vps.Say(orderOption)
	case rec.Operation != nil:
		return vps.Say("wait for it to end (GET /v1/operations)")
	case rec.Snapshot != nil:
		return vps.Say("delete the snapshot first, or replace it (\"replace\": true)")
	}
	return vps.Words{}
}

// taker does the steps of a take.
type taker struct{ *Snapshots }

// takeNotes is what the steps of a take keep for each other.
type takeNotes struct {
	Quiesce vps.Quiesce
	// Replaces is the snapshot that goes when this one is there; "" for none.
	Replaces string
	// Made is each overlay as we made it, by target.
	Made map[string]hypervisor.File
	// NVRAMAt is when the UEFI variables had last changed as we copied them.
	NVRAMAt time.Time
}

// designSnapshot checks the VPS and lays down what its snapshot will consist of.
func (s *Snapshots) designSnapshot(ctx context.Context, dom hypervisor.Domain, rec store.Record) (vps.Snapshot, error) {
	now := s.store.Now()
	snap := vps.Snapshot{ID: vps.NewSnapshotID(), VPS: dom.ID, State: vps.SnapshotCreating,
		CreatedAt: now, UpdatedAt: now}
	if err := s.designNVRAM(ctx, dom, &snap); err != nil {
		return snap, err
	}
	for _, disk := range image.Included(dom.Disks) {
		if err := s.checkIdle(dom, disk, rec.Snapshot); err != nil {
			return snap, err
		}
		img, err := s.images.Base(ctx, dom, disk)
		if err != nil {
			return snap, err
		}
		// The inode becomes the authority for "is it still this file?", and is recorded
		// with the intent.
		file, err := s.host.Stat(ctx, disk.Path)
		if err != nil {
			return snap, fault.Explain("cannot take a snapshot of "+dom.Name, err)
		}
		base, err := pathname.Plain(disk.Path)
		if err != nil {
			return snap, fault.Explain("cannot take a snapshot of "+dom.Name, err)
		}
		snap.SizeBytes += img.VirtualSize
		snap.Disks = append(snap.Disks, vps.SnapshotDisk{
			Target: disk.Target, Base: base, BaseFormat: disk.Format, BaseInode: file.Inode,
			SizeBytes: img.VirtualSize,
			// The path is recorded with the intent, before the file is made: a file that
			// no record names is an orphan.
			Overlay: image.OverlayPath(base, snap.ID, disk.Target),
		})
	}
	if rec.Snapshot != nil { // whose overlays a replace merges
		if err := s.images.CheckUnshared(ctx, dom, image.Of(*rec.Snapshot)); err != nil {
			return snap, fault.Explain("cannot take a snapshot of "+dom.Name, err)
		}
	}
	if target := s.images.SharedDisk(ctx, dom, image.Of(snap)); target != "" {
		return snap, vps.Errorf(
			vps.CodeUnsupportedDisk, "cannot take a snapshot of %s: disk %s: %s", dom.Name, target,
			vps.Say("another VPS of this host uses its image too"),
		)
	}
	if err := s.space.CheckHeadroom(ctx, dom, snap); err != nil {
		return snap, err
	}
	return snap, s.images.CheckExchange(ctx, cannotTake, dom.Name, snap, image.BaseOfDisk)
}

// checkIdle makes sure that nothing else works on a disk and that the next
// boot would use the same one.
func (s *Snapshots) checkIdle(dom hypervisor.Domain, disk hypervisor.Disk, previous *vps.Snapshot) error {
	changed := func(why string) *vps.Error {
		return vps.Errorf(vps.CodeVPSChanged, "cannot take a snapshot of %s: disk %s: %s", dom.Name, disk.Target, why)
	}
	if disk.JobLost {
		return changed("libvirt died when a block job on it ended, and believes that it goes on").WithRemedy(
			"shut %s down and start it again", dom.Name,
		)
	}
	if disk.Job {
		return changed("a block job runs on it").WithRemedy(
			"wait until it has ended (virsh blockjob %s %s)", dom.Name, disk.Target,
		)
	}
	next, ok := dom.NextDisk(disk.Target)
	// A take would freeze an image that the next boot does not use, and the overlay
	// would be lost with it.
	if !ok || !next.Is(disk.Path) || next.Format != disk.Format {
		return changed("it is not the disk that the next boot will use").WithRemedy(
			"compare virsh dumpxml %s with virsh dumpxml --inactive %s", dom.Name, dom.Name,
		)
	}
	if previous == nil && image.SnapshotOf(disk.Path) != "" {
		return changed("it uses a file of a snapshot of which there is no record").WithRemedy(
			"have the record made anew first (vpssnap doctor --repair)",
		)
	}
	if previous == nil {
		return nil
	}
	for _, p := range previous.Disks {
		if disk.Is(p.Overlay) {
			return nil
		}
	}
	return changed("it does not use the overlay of the snapshot that is to be replaced")
}

// takePlan is the steps of a take. A replace goes on to merge the old snapshot
// away; from the moment of the switch there is a new one.
func (s taker) takePlan(op vps.Operation) (operation.Plan, error) {
	var notes takeNotes
	if err := operation.ReadPlan(op, &notes); err != nil {
		return nil, err
	}
	// "switch" is the moment of no return: QEMU writes to the overlays from then on.
	plan := operation.Plan{
		{Name: "overlays", Do: s.makeOverlays, Undo: s.removeOverlays},
		{Name: "switch", Do: s.switchDisks, Irrevocable: true, Uncut: true},
		{Name: "verify", Do: s.verifyTake, Irrevocable: true, Uncut: true},
		{Name: "metadata", Do: s.integrity.WriteMetadata, Irrevocable: true},
	}
	if notes.Replaces != "" {
		plan = append(plan, replacer(s).replaceSteps()...)
	}
	return plan, nil
}

// makeOverlays makes the files. It is not taken up again after a restart: the
// customer wanted the state of an earlier moment.
func (s taker) makeOverlays(ctx context.Context, r *operation.Run) error {
	if r.Again() {
		return operation.RollBack(s.errInterrupted(r.Op))
	}
	snap, notes, err := s.takeState(ctx, r)
	if err != nil {
		return err
	}
	notes.Made = map[string]hypervisor.File{}
	for i, disk := range snap.Disks {
		// Made by us, 0600 and exclusive: libvirt 9.0 leaves overlays that it makes
		// itself readable by everybody (CVE-2025-13193).
		file, err := s.host.CreateOverlay(ctx, hypervisor.Overlay{
			Path: disk.Overlay, Base: disk.Base, BaseFormat: disk.BaseFormat, SizeBytes: disk.SizeBytes})
		if err != nil {
			// Not tried again, whatever it was: the moment is over, and the reason would be lost.
			return operation.RollBack(fmt.Errorf("overlay of disk %s: %w", disk.Target, err))
		}
		snap.Disks[i].OverlayInode = file.Inode
		notes.Made[disk.Target] = file
		r.Progress(int64(i+1), int64(len(snap.Disks)))
	}
	// Copied before the freeze, which shall last no longer than the switch.
	if err := s.saveNVRAM(ctx, snap, &notes); err != nil {
		return operation.RollBack(err)
	}
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return r.SetPlan(notes)
}

// removeOverlays takes makeOverlays back: files that we made, nothing uses and
// nobody has written to.
func (s taker) removeOverlays(ctx context.Context, r *operation.Run) error {
	snap, notes, err := s.takeState(ctx, r)
	if err != nil {
		return err
	}
	dom, err := s.inventory.Read(ctx, r.Op.VPS)
	// A VPS that is gone uses nothing, and its unused files go with it.
	if err != nil && !errors.Is(err, hypervisor.ErrNotFound) {
		return err
	}
	for _, disk := range snap.Disks {
		written, err := s.written(ctx, disk, notes)
		if err != nil {
			return err
		}
		// A failed take can still have been switched by QEMU. A file that was written to
		// stays, whatever libvirt says of it.
		if written && !disk.Pivoted || dom.Uses(disk.Overlay) {
			return vps.Errorf(vps.CodeVPSChanged, "%s has written to an overlay of a take that failed", r.Op.VPSName).
				WithRemedy("keep the overlay of disk %s: it may hold the newest data of %s", disk.Target, r.Op.VPSName)
		}
		if err := s.removeOwn(ctx, disk.Overlay); err != nil {
			return err
		}
	}
	if err := s.removeOwn(ctx, snap.NVRAMSaved); err != nil {
		return err
	}
	snap.State, snap.UpdatedAt = vps.SnapshotGone, s.store.Now()
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return nil
}

// written reports whether anybody has written to an overlay since we made it. The
// time tells, also after a power cut: a first write allocates, and the file system
// keeps both together. What is allocated does not: libvirt labels the file.
func (s taker) written(ctx context.Context, disk vps.SnapshotDisk, notes takeNotes) (bool, error) {
	made, known := notes.Made[disk.Target]
	if !known {
		return false, nil // the take ended before anybody was told of the file
	}
	now, err := s.host.Stat(ctx, disk.Overlay)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return !now.Modified.Equal(made.Modified), err
}

// switchDisks is the moment of the snapshot. Within the freeze there is nothing
// but the switch.
func (s taker) switchDisks(ctx context.Context, r *operation.Run) error {
	snap, notes, err := s.takeState(ctx, r)
	if err != nil {
		return err
	}
	if r.Again() {
		// Never a second switch to the same overlays: QEMU may hold them open already
		// ("Duplicate nodes with node-name", FAULTS.md row 44).
		return s.adoptSwitch(ctx, r, snap, notes)
	}
	dom, err := s.inventory.Read(ctx, snap.VPS)
	if err != nil {
		return rollBackUnlessUnavailable(err)
	}
	if err := sameBases(dom, snap); err != nil {
		return operation.RollBack(err)
	}
	frozen, err := s.guests.Freeze(ctx, dom, notes.Quiesce)
	if err != nil {
		// Also when the freeze failed: one that libvirt gave up waiting for can still
		// happen in the guest, and then lasts until somebody thaws it (seen for over 50
		// s).
		s.guests.Thaw(ctx, dom.ID)
		return operation.RollBack(err)
	}
	snap.CreatedAt = s.store.Now()
	err = s.switchInTime(ctx, dom, snap, frozen)
	if frozen.Asked {
		// Before the outcome is looked at: a guest never waits for our bookkeeping.
		s.guests.Thaw(ctx, dom.ID)
	}
	if err != nil {
		return fmt.Errorf("disks not switched: %w", rollBackUnlessUnavailable(err))
	}
	snap.Consistency = consistencyOf(dom.State, frozen.Done)
	if frozen.Done {
		snap.FreezeMS = s.store.Now().Sub(frozen.Began).Milliseconds()
	}
	return s.stageSwitch(ctx, r, snap, frozen.Note)
}

// switchInTime switches the disks, and no longer waits for libvirt than the
// guest may stand frozen.
func (s taker) switchInTime(
	ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot, frozen guest.Freezing,
) error {
	ctx, cancel := s.guests.WhileFrozen(ctx, frozen)
	defer cancel()
	return s.host.SwitchToOverlays(ctx, snap.VPS, switches(dom, snap))
}

// adoptSwitch finds out, after a crash or a lost connection, whether the disks
// were switched. What libvirt and the files say counts.
func (s taker) adoptSwitch(ctx context.Context, r *operation.Run, snap vps.Snapshot, notes takeNotes) error {
	// Nothing is rolled back on an error here: what is not known to be unused is not removed.
	if err := s.outwait(ctx, snap.VPS); err != nil {
		return err
	}
	dom, err := s.inventory.Read(ctx, snap.VPS)
	if err != nil {
		return err
	}
	// FAULTS.md, row 5: a guest that the daemon left frozen is thawed before anything
	// else is found out.
	s.guests.Thaw(ctx, dom.ID)
	if snap.Consistency != "" {
		return s.takeBackSwitch(ctx, r, dom, snap) // an earlier try has begun with that
	}
	switched := 0
	for _, disk := range snap.Disks {
		if now, ok := image.Live(dom, disk); ok && now.Is(disk.Overlay) {
			switched++
		}
	}
	if switched == len(snap.Disks) {
		// Whether the guest had stood frozen is not known any more; claim the less.
		snap.Consistency = consistencyOf(dom.State, false)
		return s.stageSwitch(ctx, r, snap, "taken over after an interruption")
	}
	for _, disk := range snap.Disks {
		open, err := s.isOpen(ctx, disk)
		if err != nil {
			return err
		}
		if open {
			return s.takeBackSwitch(ctx, r, dom, snap)
		}
		written, err := s.written(ctx, disk, notes)
		if err != nil {
			return err
		}
		if written || switched > 0 {
			// QEMU had switched and died before libvirt wrote it down. The
			// overlay may hold what the guest wrote since.
			return s.adoptLostSwitch(ctx, r, dom, snap)
		}
	}
	if dom.State != hypervisor.Off {
		// No guest uses them, but QEMU may have begun to open one.
		if _, err := s.host.TakeBackSwitch(ctx, snap.VPS, switches(dom, snap), false); err != nil {
			s.logger.Warn("an overlay that was given up may still be open", r.Op.LogAttr(), "error", err)
		}
	}
	return operation.RollBack(s.errInterrupted(r.Op))
}

// isOpen reports whether QEMU may write to an overlay that libvirt knows nothing of: it may
// have died between QEMU's switch and its own note of it.
func (s taker) isOpen(ctx context.Context, disk vps.SnapshotDisk) (bool, error) {
	// QEMU's lock on the file tells, which libvirt's picture cannot.
	err := s.host.Unused(ctx, disk.Overlay, "qcow2")
	switch {
	case errors.Is(err, hypervisor.ErrBusy):
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	}
	return false, err
}

// outwait returns when a call that we gave up waiting for has ended in libvirt.
// Writing the metadata needs the domain's job, so it queues behind that call.
func (s taker) outwait(ctx context.Context, id string) error {
	text := ""
	if dom, err := s.inventory.Read(ctx, id); err == nil {
		text = dom.Metadata
	}
	// Written as it was read: the call is made for its place in the queue only.
	return s.host.SetMetadata(ctx, id, text)
}

// adoptLostSwitch points the definition at the overlays, when that is safe:
// the VPS is off and the bases have not been written since the overlays were.
func (s taker) adoptLostSwitch(ctx context.Context, r *operation.Run, dom hypervisor.Domain, snap vps.Snapshot) error {
	for _, disk := range snap.Disks {
		base, err1 := s.host.Stat(ctx, disk.Base)
		overlay, err2 := s.host.Stat(ctx, disk.Overlay)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		// The base was written after the overlay: the VPS has run on either since, and
		// nobody can tell which counts.
		if dom.State != hypervisor.Off || base.Modified.After(overlay.Modified) {
			return operation.Park(vps.Errorf(vps.CodeVPSChanged,
				"disk %s of %s was switched to its overlay, but the VPS was started on the base again: both may hold "+
					"new data", disk.Target, r.Op.VPSName).
				WithRemedy("shut %s down and decide which file holds the customer's data, base or overlay; "+
					"keep both until then", r.Op.VPSName).
				Because(fmt.Errorf("base %s, overlay %s", disk.Base, disk.Overlay)))
		}
	}
	if err := s.host.PointDisks(ctx, snap.VPS, image.OverlaySources(dom, snap)); err != nil {
		return err
	}
	snap.Consistency = vps.ConsistencyCrash
	return s.stageSwitch(ctx, r, snap, "taken over after an interruption")
}

// stageSwitch records the switch, and what the bases were like from then on.
func (s taker) stageSwitch(ctx context.Context, r *operation.Run, snap vps.Snapshot, note string) error {
	for i, disk := range snap.Disks {
		base, err := s.host.Stat(ctx, disk.Base)
		if err != nil {
			return err
		}
		snap.Disks[i].BaseModified = base.Modified
	}
	snap.UpdatedAt = s.store.Now()
	r.Op.Result = resultOfTake(snap, note)
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return nil
}

// verifyTake makes sure that the running VPS and its next boot use the
// overlays, that this survives a power cut, and then calls the snapshot available.
func (s taker) verifyTake(ctx context.Context, r *operation.Run) error {
	snap, notes, err := s.takeState(ctx, r)
	if err != nil {
		return err
	}
	dom, err := s.inventory.ReadFull(ctx, snap.VPS)
	if err != nil {
		return err
	}
	if err := s.pointAtOverlays(ctx, dom, snap); err != nil {
		return err
	}
	// libvirt 9.0 fsyncs the file and not its directory: after a power cut the VPS could
	// boot on the base.
	if err := s.host.SyncDefinition(ctx, snap.VPS); err != nil {
		return err
	}
	// After the switch, so that a change just before it is part of the snapshot.
	if err := s.refreshNVRAM(ctx, snap, notes); err != nil {
		return err
	}
	snap.State, snap.UpdatedAt = vps.SnapshotAvailable, s.store.Now()
	r.Stage(func(ctx context.Context, tx *store.Tx) error {
		if notes.Replaces == "" {
			return tx.SaveSnapshot(ctx, snap)
		}
		return replacer(s).supersede(ctx, tx, notes.Replaces, snap)
	})
	return nil
}

// pointAtOverlays checks each disk of the running VPS and puts the persistent
// definition right where it differs.
func (s taker) pointAtOverlays(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) error {
	var wrong []hypervisor.DiskSource
	for _, disk := range snap.Disks {
		live, ok := image.Live(dom, disk)
		next, okNext := image.Next(dom, disk)
		if !ok || !okNext {
			return vps.Errorf(vps.CodeVPSChanged, "disk %s of %s was removed", disk.Target, dom.Name)
		}
		if dom.State != hypervisor.Off && !live.Is(disk.Overlay) {
			return vps.Errorf(vps.CodeVPSChanged, "disk %s of %s does not use its overlay", disk.Target, dom.Name)
		}
		// An overlay of another size shows the guest a disk that shrank: libvirt's
		// REUSE_EXT takes any file of the right type.
		if live.SizeBytes != 0 && live.SizeBytes != disk.SizeBytes {
			return vps.Errorf(
				vps.CodeVPSChanged, "disk %s of %s has %d bytes instead of %d", disk.Target, dom.Name, live.SizeBytes,
				disk.SizeBytes,
			)
		}
		if next.Is(disk.Overlay) {
			continue
		}
		safe, err := s.integrity.OverlayIsAuthority(ctx, dom, disk)
		if err != nil {
			return err
		}
		if !safe {
			return vps.Errorf(vps.CodeVPSChanged,
				"disk %s of %s was switched to its overlay, and then its base was used again: both may hold new data",
				disk.Target, dom.Name).
				WithRemedy("find out which of the two holds the customer's data, base or overlay; " +
					"keep both until then").
				Because(fmt.Errorf("base %s, overlay %s", disk.Base, disk.Overlay))
		}
		wrong = append(wrong, image.OnOverlay(dom, disk))
	}
	if len(wrong) == 0 {
		return nil
	}
	return s.host.PointDisks(ctx, dom.ID, wrong)
}

// takeState reads the snapshot that is being taken and what earlier steps noted.
func (s *Snapshots) takeState(ctx context.Context, r *operation.Run) (vps.Snapshot, takeNotes, error) {
	var notes takeNotes
	if err := r.Plan(&notes); err != nil {
		return vps.Snapshot{}, notes, err
	}
	snap, err := s.store.Snapshot(ctx, r.Op.SnapshotID)
	return snap, notes, err
}

// sameBases makes sure that between request and switch nobody changed the disks. The
// number counts too: a disk that was added would be left out of the snapshot without a
// word.
func sameBases(dom hypervisor.Domain, snap vps.Snapshot) error {
	if n := len(image.Included(dom.Disks)); n != len(snap.Disks) {
		return vps.Errorf(vps.CodeVPSChanged, "cannot take a snapshot of %s: its disks changed meanwhile", dom.Name).
			WithRemedy("take it again")
	}
	for _, disk := range snap.Disks {
		if now, ok := image.Live(dom, disk); !ok || !now.Is(disk.Base) {
			return vps.Errorf(vps.CodeVPSChanged, "cannot take a snapshot of %s: disk %s changed meanwhile", dom.Name,
				disk.Target).
				WithRemedy("take it again")
		}
	}
	return nil
}

// switches lists for libvirt which disk goes over to which overlay.
func switches(dom hypervisor.Domain, snap vps.Snapshot) []hypervisor.DiskSwitch {
	var s []hypervisor.DiskSwitch
	for _, disk := range snap.Disks {
		s = append(s, hypervisor.DiskSwitch{Target: image.LiveName(dom, disk), Overlay: disk.Overlay})
	}
	return s
}

// consistencyOf says how whole the data in the bases is: a guest that is off wrote all of
// it, a frozen one all that its file systems promised, any other what a power cut would
// leave.
func consistencyOf(s hypervisor.State, frozen bool) vps.Consistency {
	switch {
	case s == hypervisor.Off:
		return vps.ConsistencyOffline
	case frozen:
		return vps.ConsistencyFilesystem
	}
	return vps.ConsistencyCrash
}

// resultOfTake is the operation's result as operators read it.
func resultOfTake(snap vps.Snapshot, note string) string {
	text := map[vps.Consistency]string{
		vps.ConsistencyFilesystem: fmt.Sprintf("the guest's file systems were frozen for %d ms", snap.FreezeMS),
		vps.ConsistencyCrash:      "the disks are as after a power cut",
		vps.ConsistencyOffline:    "the VPS was off",
	}[snap.Consistency]
	if note != "" {
		text += "; " + note
	}
	return text
}

// rollBackUnlessUnavailable: when libvirt answered with an error nothing was
// switched; when it did not answer, the step runs again and reads the host.
func rollBackUnlessUnavailable(err error) error {
	if fault.Unavailable(err) {
		return err
	}
	return operation.RollBack(err)
}

// errInterrupted is for a take that died before the switch: the definition names the base, so
// the overlays are removed as unused and asking again is safe.
func (s taker) errInterrupted(op vps.Operation) error {
	return vps.Errorf(vps.CodeHypervisorUnavailable,
		"cannot %s of %s: it was interrupted before the disks were switched",
		s.operations.Of(op.Kind).Verb, op.VPSName).
		WithRemedy("nothing was changed; ask for it again")
}
