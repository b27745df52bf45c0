package daemon

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Take begins to take the snapshot of a VPS: every disk gets an overlay that
// the VPS writes to from then on, and the images below stay as they are.
//
// Codes: invalid, not_found, option_required, snapshot_exists, operation_in_progress,
// unsupported_disk, insufficient_space, vps_changed, hypervisor_unavailable.
func (d *Daemon) Take(ctx context.Context, ref string, r vps.TakeRequest, actor vps.Actor) (vps.Operation, error) {
	if err := r.Check(); err != nil {
		return vps.Operation{}, err
	}
	if r.Quiesce == "" {
		r.Quiesce = vps.QuiescePrefer
	}
	var snap vps.Snapshot
	return d.accept(ctx, ref, request{
		kind: vps.KindTake, actor: actor, body: &r,
		check: func(dom hypervisor.Domain, rec record, op *vps.Operation) error {
			if err := refused(takeVerdict(dom, rec, r.Replace), takeRemedy(rec)); err != nil {
				return err
			}
			// Nothing to replace is an ordinary take.
			r.Replace = r.Replace && rec.snapshot != nil
			var err error
			if snap, err = d.designSnapshot(ctx, dom, rec); err != nil {
				return err
			}
			snap.Description = r.Description
			op.SnapshotID = snap.ID
			plan := takeNotes{Quiesce: r.Quiesce}
			if r.Replace {
				plan.Replaces = rec.snapshot.ID
				left, err := d.layerLeft(ctx, *rec.snapshot)
				if err != nil {
					return err
				}
				if left != "" {
					return errLayerLeft(dom)
				}
			}
			return setPlan(op, plan)
		},
		insert: func(tx *store.Tx) error {
			// Between check and here the option may have ended, and been released
			// for want of a snapshot: nothing would ever delete this one.
			o, err := tx.OpenOption(ctx, snap.VPS)
			if errors.Is(err, sql.ErrNoRows) || err == nil && o.State != vps.OptionActive {
				return vps.Errorf(vps.CodeOptionRequired, "the snapshot option ended just now").WithRemedy(orderOption)
			}
			if err != nil {
				return err
			}
			return tx.SaveSnapshot(ctx, snap)
		},
	})
}

// orderOption is the remedy where the option is missing.
const orderOption = "order and activate the snapshot option first (PUT /v1/vps/{vps}/option)"

func errLayerLeft(dom hypervisor.Domain) error {
	return vps.Errorf(vps.CodeSnapshotExists, "the snapshot of %s cannot be replaced: the one before it could not be merged away yet", dom.Name).
		WithRemedy("delete the snapshot, which merges both, then take a new one")
}

func takeRemedy(rec record) vps.Words {
	switch {
	case rec.option == nil || rec.option.State != vps.OptionActive:
		return vps.Say(orderOption)
	case rec.operation != nil:
		return vps.Say("wait for it to end (GET /v1/operations)")
	case rec.snapshot != nil:
		return vps.Say("delete the snapshot first, or replace it (\"replace\": true)")
	}
	return vps.Words{}
}

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
func (d *Daemon) designSnapshot(ctx context.Context, dom hypervisor.Domain, rec record) (vps.Snapshot, error) {
	now := d.now()
	snap := vps.Snapshot{ID: newSnapshotID(), VPS: dom.ID, State: vps.SnapshotCreating, CreatedAt: now, UpdatedAt: now}
	if err := d.designNVRAM(ctx, dom, &snap); err != nil {
		return snap, err
	}
	for _, disk := range included(dom.Disks) {
		if err := d.undisturbed(dom, disk, rec.snapshot); err != nil {
			return snap, err
		}
		img, err := d.inspectBase(ctx, dom, disk)
		if err != nil {
			return snap, err
		}
		file, err := d.Config.Host.Stat(ctx, disk.Path)
		if err != nil {
			return snap, explainAs("cannot take a snapshot of "+dom.Name, err)
		}
		snap.SizeBytes += img.VirtualSize
		snap.Disks = append(snap.Disks, vps.SnapshotDisk{
			Target: disk.Target, Base: disk.Path, BaseFormat: disk.Format, BaseInode: file.Inode, SizeBytes: img.VirtualSize,
			Overlay: overlayPath(disk.Path, snap.ID, disk.Target),
		})
	}
	if rec.snapshot != nil { // whose overlays a replace merges
		if err := d.checkUnshared(ctx, dom, imagesOf(*rec.snapshot)); err != nil {
			return snap, explainAs("cannot take a snapshot of "+dom.Name, err)
		}
	}
	if target := d.sharedDisk(ctx, dom, imagesOf(snap)); target != "" {
		return snap, vps.Errorf(vps.CodeUnsupportedDisk, "cannot take a snapshot of %s: disk %s: %s", dom.Name, target, vps.Say("another VPS of this host uses its image too"))
	}
	return snap, d.checkHeadroom(ctx, dom, snap)
}

// undisturbed makes sure that nothing else works on a disk and that the next
// boot would use the same one.
func (d *Daemon) undisturbed(dom hypervisor.Domain, disk hypervisor.Disk, previous *vps.Snapshot) error {
	changed := func(why string) *vps.Error {
		return vps.Errorf(vps.CodeVPSChanged, "cannot take a snapshot of %s: disk %s: %s", dom.Name, disk.Target, why)
	}
	if disk.Job {
		return changed("a block job runs on it").WithRemedy("wait until it has ended (virsh blockjob %s %s)", dom.Name, disk.Target)
	}
	next, ok := diskOf(dom.PersistentDisks, disk.Target)
	if !ok || next.Path != disk.Path || next.Format != disk.Format {
		return changed("it is not the disk that the next boot will use").WithRemedy("compare virsh dumpxml %s with virsh dumpxml --inactive %s", dom.Name, dom.Name)
	}
	if previous == nil && ourFile.MatchString(filepath.Base(disk.Path)) {
		return changed("it uses a file of a snapshot of which there is no record").WithRemedy("have the record made anew first (vpssnap doctor --repair)")
	}
	if previous == nil {
		return nil
	}
	for _, p := range previous.Disks {
		if p.Target == disk.Target && p.Overlay == disk.Path {
			return nil
		}
	}
	return changed("it does not use the overlay of the snapshot that is to be replaced")
}

// checkHeadroom refuses a take when a file system that would hold an overlay is short of room.
func (d *Daemon) checkHeadroom(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) error {
	for _, disk := range snap.Disks {
		space, err := d.spaceToCome(ctx, filepath.Dir(disk.Overlay))
		if err != nil {
			return explainAs("cannot take a snapshot of "+dom.Name, err)
		}
		if space.Free < d.present().Headroom {
			return vps.Errorf(vps.CodeInsufficientSpace, "cannot take a snapshot of %s: %d bytes are free for disk %s, %d are required",
				dom.Name, space.Free, disk.Target, d.present().Headroom).WithRemedy("free space on the host, or lower the required headroom")
		}
	}
	return nil
}

// roomWait is how long a take may wait for the room of what was just removed: up to
// 1.3 s was seen for one overlay.
const roomWait = 5 * time.Second

// spaceToCome reads a file system; where it is short of room, anew when the room of
// what was removed has come back.
func (d *Daemon) spaceToCome(ctx context.Context, dir string) (hypervisor.Space, error) {
	space, err := d.Config.Host.Space(ctx, dir)
	if err != nil || space.Free >= d.present().Headroom {
		return space, err
	}
	waiting, cancel := context.WithTimeout(ctx, roomWait)
	defer cancel()
	_ = d.Config.Host.AwaitRoom(waiting, dir) // what has come back until then counts
	return d.Config.Host.Space(ctx, dir)
}

// takePlan is the steps of a take. A replace goes on to merge the old snapshot
// away; from the moment of the switch there is a new one.
func (d *Daemon) takePlan(op vps.Operation) (operation.Plan, error) {
	var notes takeNotes
	if err := readPlan(op, &notes); err != nil {
		return nil, err
	}
	plan := operation.Plan{
		{Name: "overlays", Do: d.makeOverlays, Undo: d.removeOverlays},
		{Name: "switch", Do: d.switchDisks, Irrevocable: true, Uncut: true},
		{Name: "verify", Do: d.verifyTake, Irrevocable: true, Uncut: true},
		{Name: "metadata", Do: d.writeMetadata, Irrevocable: true},
	}
	if notes.Replaces != "" {
		plan = append(plan, d.replaceSteps()...)
	}
	return plan, nil
}

// makeOverlays makes the files. It is not taken up again after a restart: the
// customer wanted the state of an earlier moment.
func (d *Daemon) makeOverlays(ctx context.Context, r *operation.Run) error {
	if r.Again() {
		return operation.RollBack(errInterrupted(r.Op))
	}
	snap, notes, err := d.takeState(ctx, r)
	if err != nil {
		return err
	}
	notes.Made = map[string]hypervisor.File{}
	for i, disk := range snap.Disks {
		file, err := d.Config.Host.CreateOverlay(ctx, hypervisor.Overlay{
			Path: disk.Overlay, Base: disk.Base, BaseFormat: disk.BaseFormat, SizeBytes: disk.SizeBytes})
		if err != nil {
			return fmt.Errorf("overlay of disk %s: %w", disk.Target, err)
		}
		snap.Disks[i].OverlayInode = file.Inode
		notes.Made[disk.Target] = file
		r.Progress(int64(i+1), int64(len(snap.Disks)))
	}
	if err := d.saveNVRAM(ctx, snap, &notes); err != nil {
		return err
	}
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return r.SetPlan(notes)
}

// removeOverlays takes makeOverlays back: files that we made, nothing uses and
// nobody has written to.
func (d *Daemon) removeOverlays(ctx context.Context, r *operation.Run) error {
	snap, notes, err := d.takeState(ctx, r)
	if err != nil {
		return err
	}
	dom, err := d.inventory.domain(ctx, r.Op.VPS)
	if err != nil && !errors.Is(err, hypervisor.ErrNotFound) {
		return err
	}
	for _, disk := range snap.Disks {
		written, err := d.written(ctx, disk, notes)
		if err != nil {
			return err
		}
		if written || uses(dom, disk.Overlay) {
			return vps.Errorf(vps.CodeVPSChanged, "%s has written to an overlay of a take that failed", r.Op.VPSName).
				WithRemedy("keep the overlay of disk %s: it may hold the newest data of %s", disk.Target, r.Op.VPSName)
		}
		if err := d.removeOwn(ctx, disk.Overlay); err != nil {
			return err
		}
	}
	if err := d.removeOwn(ctx, snap.NVRAMSaved); err != nil {
		return err
	}
	snap.State, snap.UpdatedAt = vps.SnapshotGone, d.now()
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return nil
}

// written says whether anybody has written to an overlay since we made it. The
// time tells, also after a power cut: a first write allocates, and the file system
// keeps both together. What is allocated does not: libvirt labels the file.
func (d *Daemon) written(ctx context.Context, disk vps.SnapshotDisk, notes takeNotes) (bool, error) {
	made, known := notes.Made[disk.Target]
	if !known {
		return false, nil // the take ended before anybody was told of the file
	}
	now, err := d.Config.Host.Stat(ctx, disk.Overlay)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return !now.Modified.Equal(made.Modified), err
}

// switchDisks is the moment of the snapshot. Within the freeze there is nothing
// but the switch.
func (d *Daemon) switchDisks(ctx context.Context, r *operation.Run) error {
	snap, notes, err := d.takeState(ctx, r)
	if err != nil {
		return err
	}
	if r.Again() {
		return d.adoptSwitch(ctx, r, snap, notes)
	}
	dom, err := d.inventory.domain(ctx, snap.VPS)
	if err != nil {
		return rollBackUnlessUnavailable(err)
	}
	if err := sameBases(dom, snap); err != nil {
		return operation.RollBack(err)
	}
	frozen, err := d.freeze(ctx, dom, notes.Quiesce)
	if err != nil {
		d.thaw(ctx, dom)
		return operation.RollBack(err)
	}
	snap.CreatedAt = d.now()
	err = d.switchInTime(ctx, snap, frozen)
	if frozen.asked {
		d.thaw(ctx, dom)
	}
	if err != nil {
		return fmt.Errorf("disks not switched: %w", rollBackUnlessUnavailable(err))
	}
	snap.Consistency = consistencyOf(dom.State, frozen.done)
	if frozen.done {
		snap.FreezeMS = d.Now().Sub(frozen.began).Milliseconds()
	}
	return d.stageSwitch(ctx, r, snap, frozen.note)
}

// switchInTime switches the disks, and no longer waits for libvirt than the
// guest may stand frozen.
func (d *Daemon) switchInTime(ctx context.Context, snap vps.Snapshot, frozen freezing) error {
	if frozen.done {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.present().FreezeLimit-d.Now().Sub(frozen.began))
		defer cancel()
	}
	return d.Config.Host.SwitchToOverlays(ctx, snap.VPS, switches(snap))
}

// adoptSwitch finds out, after a crash or a lost connection, whether the disks
// were switched. What libvirt and the files say counts.
func (d *Daemon) adoptSwitch(ctx context.Context, r *operation.Run, snap vps.Snapshot, notes takeNotes) error {
	// Nothing is rolled back on an error here: what is not known to be unused is not removed.
	if err := d.outwait(ctx, snap.VPS); err != nil {
		return err
	}
	dom, err := d.inventory.domain(ctx, snap.VPS)
	if err != nil {
		return err
	}
	d.thaw(ctx, dom)
	switched := 0
	for _, disk := range snap.Disks {
		if now, ok := diskOf(dom.Disks, disk.Target); ok && now.Path == disk.Overlay {
			switched++
		}
	}
	if switched == len(snap.Disks) {
		// Whether the guest had stood frozen is not known any more; claim the less.
		snap.Consistency = consistencyOf(dom.State, false)
		return d.stageSwitch(ctx, r, snap, "taken over after an interruption")
	}
	for _, disk := range snap.Disks {
		if err := d.notOpen(ctx, dom, disk); err != nil {
			return err
		}
		written, err := d.written(ctx, disk, notes)
		if err != nil {
			return err
		}
		if written || switched > 0 {
			// QEMU had switched and died before libvirt wrote it down. The
			// overlay may hold what the guest wrote since.
			return d.adoptLostSwitch(ctx, r, dom, snap)
		}
	}
	return operation.RollBack(errInterrupted(r.Op))
}

// notOpen makes sure that QEMU does not write to an overlay that libvirt knows
// nothing of: it may have died between QEMU's switch and its own note of it.
func (d *Daemon) notOpen(ctx context.Context, dom hypervisor.Domain, disk vps.SnapshotDisk) error {
	err := d.Config.Host.Unused(ctx, disk.Overlay, "qcow2")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case !errors.Is(err, hypervisor.ErrBusy):
		return err
	}
	return operation.Park(vps.Errorf(vps.CodeVPSChanged, "%s writes disk %s to a new overlay, and libvirt does not know it", dom.Name, disk.Target).
		WithRemedy("shut %s down (virsh shutdown %s), do not start it, and resume the operation", dom.Name, dom.Name).Because(err))
}

// outwait returns when a call that we gave up waiting for has ended in libvirt.
// Writing the metadata needs the domain's job, so it queues behind that call.
func (d *Daemon) outwait(ctx context.Context, id string) error {
	text := ""
	if dom, err := d.inventory.domain(ctx, id); err == nil {
		text = dom.Metadata
	}
	return d.Config.Host.SetMetadata(ctx, id, text)
}

// adoptLostSwitch points the definition at the overlays, when that is safe:
// the VPS is off and the bases have not been written since the overlays were.
func (d *Daemon) adoptLostSwitch(ctx context.Context, r *operation.Run, dom hypervisor.Domain, snap vps.Snapshot) error {
	for _, disk := range snap.Disks {
		base, err1 := d.Config.Host.Stat(ctx, disk.Base)
		overlay, err2 := d.Config.Host.Stat(ctx, disk.Overlay)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if dom.State != hypervisor.Off || base.Modified.After(overlay.Modified) {
			return operation.Park(vps.Errorf(vps.CodeVPSChanged,
				"disk %s of %s was switched to its overlay, but the VPS was started on the base again: both may hold new data", disk.Target, r.Op.VPSName).
				WithRemedy("shut %s down and decide which file holds the customer's data, base or overlay; keep both until then", r.Op.VPSName).
				Because(fmt.Errorf("base %s, overlay %s", disk.Base, disk.Overlay)))
		}
	}
	if err := d.Config.Host.PointDisks(ctx, snap.VPS, overlaySources(snap)); err != nil {
		return err
	}
	snap.Consistency = vps.ConsistencyCrash
	return d.stageSwitch(ctx, r, snap, "taken over after an interruption")
}

// stageSwitch records the switch, and what the bases were like from then on.
func (d *Daemon) stageSwitch(ctx context.Context, r *operation.Run, snap vps.Snapshot, note string) error {
	for i, disk := range snap.Disks {
		base, err := d.Config.Host.Stat(ctx, disk.Base)
		if err != nil {
			return err
		}
		snap.Disks[i].BaseModified = base.Modified
	}
	snap.UpdatedAt = d.now()
	r.Op.Result = resultOfTake(snap, note)
	r.Stage(func(ctx context.Context, tx *store.Tx) error { return tx.SaveSnapshot(ctx, snap) })
	return nil
}

// verifyTake makes sure that the running VPS and its next boot use the
// overlays, that this survives a power cut, and then calls the snapshot available.
func (d *Daemon) verifyTake(ctx context.Context, r *operation.Run) error {
	snap, notes, err := d.takeState(ctx, r)
	if err != nil {
		return err
	}
	dom, err := d.inventory.sized(ctx, snap.VPS)
	if err != nil {
		return err
	}
	if err := d.pointAtOverlays(ctx, dom, snap); err != nil {
		return err
	}
	if err := d.Config.Host.SyncDefinition(ctx, snap.VPS); err != nil {
		return err
	}
	if err := d.refreshNVRAM(ctx, snap, notes); err != nil {
		return err
	}
	snap.State, snap.UpdatedAt = vps.SnapshotAvailable, d.now()
	r.Stage(func(ctx context.Context, tx *store.Tx) error {
		if notes.Replaces == "" {
			return tx.SaveSnapshot(ctx, snap)
		}
		return d.supersede(ctx, tx, notes.Replaces, snap)
	})
	return nil
}

// pointAtOverlays checks each disk of the running VPS and puts the persistent
// definition right where it differs.
func (d *Daemon) pointAtOverlays(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) error {
	var wrong []hypervisor.DiskSource
	for _, disk := range snap.Disks {
		live, ok := diskOf(dom.Disks, disk.Target)
		next, okNext := diskOf(dom.PersistentDisks, disk.Target)
		if !ok || !okNext {
			return vps.Errorf(vps.CodeVPSChanged, "disk %s of %s was removed", disk.Target, dom.Name)
		}
		if dom.State != hypervisor.Off && live.Path != disk.Overlay {
			return vps.Errorf(vps.CodeVPSChanged, "disk %s of %s does not use its overlay", disk.Target, dom.Name)
		}
		if live.SizeBytes != 0 && live.SizeBytes != disk.SizeBytes {
			return vps.Errorf(vps.CodeVPSChanged, "disk %s of %s has %d bytes instead of %d", disk.Target, dom.Name, live.SizeBytes, disk.SizeBytes)
		}
		if next.Path == disk.Overlay {
			continue
		}
		safe, err := d.overlayIsAuthority(ctx, dom, disk)
		if err != nil {
			return err
		}
		if !safe {
			return vps.Errorf(vps.CodeVPSChanged, "disk %s of %s was switched to its overlay, and then its base was used again: both may hold new data", disk.Target, dom.Name).
				WithRemedy("find out which of the two holds the customer's data, base or overlay; keep both until then").
				Because(fmt.Errorf("base %s, overlay %s", disk.Base, disk.Overlay))
		}
		wrong = append(wrong, hypervisor.DiskSource{Target: disk.Target, Path: disk.Overlay, Format: "qcow2"})
	}
	if len(wrong) == 0 {
		return nil
	}
	return d.Config.Host.PointDisks(ctx, dom.ID, wrong)
}

func (d *Daemon) takeState(ctx context.Context, r *operation.Run) (vps.Snapshot, takeNotes, error) {
	var notes takeNotes
	if err := r.Plan(&notes); err != nil {
		return vps.Snapshot{}, notes, err
	}
	snap, err := d.store.Snapshot(ctx, r.Op.SnapshotID)
	return snap, notes, err
}

// sameBases makes sure that between request and switch nobody changed the disks.
func sameBases(dom hypervisor.Domain, snap vps.Snapshot) error {
	if n := len(included(dom.Disks)); n != len(snap.Disks) {
		return vps.Errorf(vps.CodeVPSChanged, "cannot take a snapshot of %s: its disks changed meanwhile", dom.Name).WithRemedy("take it again")
	}
	for _, disk := range snap.Disks {
		if now, ok := diskOf(dom.Disks, disk.Target); !ok || now.Path != disk.Base {
			return vps.Errorf(vps.CodeVPSChanged, "cannot take a snapshot of %s: disk %s changed meanwhile", dom.Name, disk.Target).WithRemedy("take it again")
		}
	}
	return nil
}

func switches(snap vps.Snapshot) []hypervisor.DiskSwitch {
	var s []hypervisor.DiskSwitch
	for _, disk := range snap.Disks {
		s = append(s, hypervisor.DiskSwitch{Target: disk.Target, Overlay: disk.Overlay})
	}
	return s
}

func overlaySources(snap vps.Snapshot) []hypervisor.DiskSource {
	var s []hypervisor.DiskSource
	for _, disk := range snap.Disks {
		s = append(s, hypervisor.DiskSource{Target: disk.Target, Path: disk.Overlay, Format: "qcow2"})
	}
	return s
}

func consistencyOf(s hypervisor.State, frozen bool) vps.Consistency {
	switch {
	case s == hypervisor.Off:
		return vps.ConsistencyOffline
	case frozen:
		return vps.ConsistencyFilesystem
	}
	return vps.ConsistencyCrash
}

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
	if unavailable(err) {
		return err
	}
	return operation.RollBack(err)
}

func errInterrupted(op vps.Operation) error {
	return vps.Errorf(vps.CodeHypervisorUnavailable, "cannot %s of %s: it was interrupted before the disks were switched", actions[op.Kind], op.VPSName).
		WithRemedy("nothing was changed; ask for it again")
}
