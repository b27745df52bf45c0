package daemon

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// ListVPS returns every VPS of the host, by name, from the inventory.
// Codes: hypervisor_unavailable.
func (d *Daemon) ListVPS(ctx context.Context) ([]vps.VPS, error) {
	if !d.inventory.ready() {
		return nil, errDisconnected()
	}
	records, err := d.allRecords(ctx)
	if err != nil {
		return nil, err
	}
	list := []vps.VPS{}
	for _, dom := range d.inventory.all() {
		list = append(list, d.view(ctx, dom, records[dom.ID]))
	}
	return list, nil
}

// ShowVPS returns one VPS, read anew, or as last known when it does not answer.
// Codes: not_found, hypervisor_unavailable.
func (d *Daemon) ShowVPS(ctx context.Context, ref string) (vps.VPS, error) {
	reading, cancel := context.WithTimeout(ctx, showWithin)
	defer cancel()
	dom, err := d.resolve(reading, ref)
	if known, ok := d.inventory.find(ref); ok && d.inventory.ready() && vps.CodeOf(err) == vps.CodeHypervisorUnavailable {
		dom, err = known, nil
	}
	if err != nil {
		return vps.VPS{}, err
	}
	rec, err := readRecord(ctx, d.store, dom.ID)
	if err != nil {
		return vps.VPS{}, err
	}
	return d.view(ctx, dom, rec), nil
}

// KnownVPS returns one VPS as last known, without asking libvirt.
// Codes: not_found, hypervisor_unavailable.
func (d *Daemon) KnownVPS(ctx context.Context, ref string) (vps.VPS, error) {
	dom, ok := d.inventory.find(ref)
	switch {
	case !d.inventory.ready():
		return vps.VPS{}, errDisconnected()
	case !ok:
		return vps.VPS{}, errNoVPS()
	}
	if err := d.nameIsClear(ctx, ref, dom); err != nil {
		return vps.VPS{}, err
	}
	rec, err := readRecord(ctx, d.store, dom.ID)
	if err != nil {
		return vps.VPS{}, err
	}
	return d.view(ctx, dom, rec), nil
}

// allRecords reads what is stored about every VPS, in three queries.
func (d *Daemon) allRecords(ctx context.Context) (map[string]record, error) {
	options, err1 := d.store.OpenOptions(ctx)
	snapshots, err2 := d.store.Snapshots(ctx)
	operations, err3 := d.store.ActiveOperations(ctx)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	all := map[string]record{}
	for i, o := range options {
		rec := all[o.VPS]
		rec.option = &options[i]
		all[o.VPS] = rec
	}
	for i, s := range snapshots {
		rec := all[s.VPS]
		if rec.snapshot == nil || rank(s.State) < rank(rec.snapshot.State) {
			rec.snapshot = &snapshots[i]
		}
		all[s.VPS] = rec
	}
	for i, o := range operations {
		rec := all[o.VPS]
		rec.operation = &operations[i]
		all[o.VPS] = rec
	}
	return all, nil
}

// rank orders the snapshots of one VPS while it is replaced, as CurrentSnapshot does.
func rank(s vps.SnapshotState) int {
	switch s {
	case vps.SnapshotDeleting:
		return 1
	case vps.SnapshotCreating:
		return 2
	}
	return 0
}

// view joins what the host and the record say of one VPS.
func (d *Daemon) view(ctx context.Context, dom hypervisor.Domain, rec record) vps.VPS {
	v := vps.VPS{
		ID: dom.ID, Name: dom.Name, State: vps.State(dom.State), Agent: vps.AgentState(dom.Agent), Persistent: dom.Persistent,
		Option: rec.option, Actions: verdicts(dom, rec, d.now()),
	}
	for _, disk := range dom.Disks {
		v.Disks = append(v.Disks, cover(disk))
	}
	if rec.snapshot != nil {
		s := d.measured(ctx, *rec.snapshot)
		v.Snapshot = &s
	}
	if rec.operation != nil {
		op := d.runner.Live(*rec.operation)
		v.Operation = &op
	}
	return v
}

// measured adds to a snapshot what was written since. It costs one stat per disk.
func (d *Daemon) measured(ctx context.Context, s vps.Snapshot) vps.Snapshot {
	s.DeltaBytes = d.deltaBytes(ctx, s)
	return s
}

func (d *Daemon) deltaBytes(ctx context.Context, s vps.Snapshot) int64 {
	var sum int64
	for _, disk := range s.Disks {
		if file, err := d.Config.Host.Stat(ctx, disk.Overlay); err == nil && !disk.Pivoted {
			sum += file.Allocated
		}
	}
	return sum
}

// Snapshot returns the snapshot of a VPS. Codes: not_found.
func (d *Daemon) Snapshot(ctx context.Context, ref string) (vps.Snapshot, error) {
	id, err := d.idOf(ctx, ref)
	if err != nil {
		return vps.Snapshot{}, err
	}
	s, err := d.store.CurrentSnapshot(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return s, vps.Errorf(vps.CodeNotFound, "the VPS has no snapshot")
	}
	return d.measured(ctx, s), err
}

// DescribeSnapshot changes the description. Codes: invalid, not_found, precondition_failed.
func (d *Daemon) DescribeSnapshot(ctx context.Context, ref, description string, _ vps.Actor) (vps.Snapshot, error) {
	if err := vps.CheckDescription(description); err != nil {
		return vps.Snapshot{}, err
	}
	id, err := d.idOf(ctx, ref)
	if err != nil {
		return vps.Snapshot{}, err
	}
	// What it measures is asked for before: no image is looked at while the database is held.
	before, err := d.Snapshot(ctx, id)
	if err != nil {
		return before, err
	}
	var snap vps.Snapshot
	err = d.store.Write(ctx, func(tx *store.Tx) error {
		have, err := tx.CurrentSnapshot(ctx, id)
		if err != nil {
			return err
		}
		if err := vps.CallOf(ctx).CheckMatch(have.Version()); err != nil {
			return err
		}
		if err := tx.DescribeSnapshot(ctx, id, description, d.now()); err != nil {
			return err
		}
		if snap, err = tx.CurrentSnapshot(ctx, id); err != nil {
			return err
		}
		if snap.ID == before.ID {
			snap.DeltaBytes = before.DeltaBytes
		}
		return d.remember(ctx, tx, snap)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return vps.Snapshot{}, vps.Errorf(vps.CodeNotFound, "the VPS has no snapshot")
	}
	return snap, err
}

// idOf finds a VPS's id without asking libvirt. The record of a VPS that is gone
// can still be named by its id.
func (d *Daemon) idOf(ctx context.Context, ref string) (string, error) {
	if dom, ok := d.inventory.find(ref); ok {
		return dom.ID, d.nameIsClear(ctx, ref, dom)
	}
	if id := strings.ToLower(ref); d.names.knows(id) {
		return id, nil
	}
	if !d.inventory.ready() {
		return "", errDisconnected()
	}
	return "", errNoVPS()
}

// Operation returns one operation with its progress. Codes: not_found.
func (d *Daemon) Operation(ctx context.Context, id string) (vps.Operation, error) {
	op, err := d.store.Operation(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return op, vps.Errorf(vps.CodeNotFound, "no such operation")
	}
	return d.runner.Live(op), err
}

// Operations returns one page of operations, newest first. Codes: not_found.
func (d *Daemon) Operations(ctx context.Context, q vps.OperationQuery) (vps.OperationPage, error) {
	q.Limit = pageLimit(q.Limit)
	if q.VPS != "" {
		id, err := d.idOf(ctx, q.VPS)
		if err != nil {
			return vps.OperationPage{}, err
		}
		q.VPS = id
	}
	page, err := d.store.Operations(ctx, q)
	for i, op := range page.Operations {
		page.Operations[i] = d.runner.Live(op)
	}
	return page, err
}

// WaitOperation returns the operation when it is final or parked, or after limit as it then is.
func (d *Daemon) WaitOperation(ctx context.Context, id string, limit time.Duration) (vps.Operation, error) {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for {
		changed := d.runner.Changes(id)
		op, err := d.Operation(ctx, id)
		if err != nil || op.Status.Final() || op.Status == vps.StatusNeedsAttention || limit <= 0 {
			d.runner.Forget(id, changed)
			return op, err
		}
		select {
		case <-changed:
			continue
		case <-timeout.C:
			limit = 0
		case <-ctx.Done():
			limit = 0
		}
		d.runner.Forget(id, changed)
	}
}

// CancelOperation asks an operation to stop. It is refused once something
// irrevocable has begun. Codes: not_found, vps_changed.
func (d *Daemon) CancelOperation(ctx context.Context, id string, actor vps.Actor) (vps.Operation, error) {
	op, err := d.Operation(ctx, id)
	if err != nil {
		return op, err
	}
	if op.CancelRequested && !op.Status.Final() {
		return op, d.rememberAlone(ctx, op)
	}
	err = d.runner.Cancel(ctx, id, func(tx *store.Tx) error {
		if op, err = tx.Operation(ctx, id); err != nil {
			return err
		}
		op = d.runner.Live(op)
		return d.remember(ctx, tx, op)
	})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return op, d.tooLate(ctx, id)
	case err != nil:
		return op, err
	}
	d.Logger.Info("operation is to be cancelled", "operation", id, "by", actor.Name)
	return op, nil
}

// tooLate says why an operation can no longer be cancelled.
func (d *Daemon) tooLate(ctx context.Context, id string) error {
	op, err := d.store.Operation(ctx, id)
	switch {
	case err != nil:
		return err
	case op.Status.Final():
		return vps.Errorf(vps.CodeVPSChanged, "cannot cancel operation %s: it has ended (%s)", id, op.Status)
	case op.Status == vps.StatusNeedsAttention:
		return vps.Errorf(vps.CodeVPSChanged, "cannot cancel operation %s: it stopped at step %s and needs an operator", id, op.Step).
			WithRemedy("cure the cause on the host, then resume the operation")
	}
	return vps.Errorf(vps.CodeVPSChanged, "cannot cancel operation %s: step %s cannot be taken back, only finished", id, op.Step).
		WithRemedy("wait for it to end")
}

// ResumeOperation takes up a parked operation again. Codes: not_found, vps_changed.
func (d *Daemon) ResumeOperation(ctx context.Context, id string, actor vps.Actor) (vps.Operation, error) {
	op, err := d.Operation(ctx, id)
	if err != nil {
		return op, err
	}
	if op.Status != vps.StatusNeedsAttention {
		return op, vps.Errorf(vps.CodeVPSChanged, "cannot resume operation %s: it is %s and does not wait for an operator", id, op.Status)
	}
	d.Logger.Info("operation is resumed", "operation", id, "by", actor.Name)
	return d.runner.Resume(ctx, op, func(tx *store.Tx, op vps.Operation) error { return d.remember(ctx, tx, op) })
}

// Host returns what is known of the host. It answers without libvirt too.
func (d *Daemon) Host(ctx context.Context) (vps.Host, error) {
	h := vps.Host{Version: d.Version}
	asking, cancel := context.WithTimeout(ctx, showWithin)
	defer cancel()
	if info, err := d.Config.Host.Info(asking); err == nil {
		h.Connected, h.Hostname = true, info.Hostname
		h.LibvirtVersion, h.HypervisorVersion = info.LibvirtVersion, info.HypervisorVersion
	}
	records, err := d.allRecords(ctx)
	if err != nil {
		return h, err
	}
	overlays := map[string]int64{}
	for _, rec := range records {
		if rec.operation != nil {
			h.ActiveOperations++
			if rec.operation.Status == vps.StatusNeedsAttention {
				h.ParkedOperations++
			}
		}
		if rec.snapshot != nil {
			h.SnapshotCount++
			d.addOverlays(ctx, overlays, *rec.snapshot)
		}
	}
	domains := d.inventory.all()
	h.VPSCount = len(domains)
	h.Storage = d.storage(ctx, domains, overlays)
	return h, nil
}

func (d *Daemon) addOverlays(ctx context.Context, sums map[string]int64, s vps.Snapshot) {
	for _, disk := range s.Disks {
		for _, path := range []string{disk.Overlay, disk.Undo} {
			if file, err := d.Config.Host.Stat(ctx, path); err == nil {
				sums[filepath.Dir(path)] += file.Allocated
			}
		}
	}
}

// storage tells the room in every directory that holds disks.
func (d *Daemon) storage(ctx context.Context, domains []hypervisor.Domain, overlays map[string]int64) []vps.Storage {
	dirs := map[string]bool{}
	for _, dom := range domains {
		for _, disk := range included(dom.Disks) {
			dirs[filepath.Dir(disk.Path)] = true
		}
	}
	var all []vps.Storage
	for _, dir := range slices.SortedFunc(maps.Keys(dirs), strings.Compare) {
		space, err := d.Config.Host.Space(ctx, dir)
		if err != nil {
			continue
		}
		s := vps.Storage{Path: dir, TotalBytes: space.Total, FreeBytes: space.Free, HeadroomBytes: d.present().Headroom,
			OverlayBytes: overlays[dir], TakesPermitted: space.Free >= d.present().Headroom, Level: vps.SpaceOK}
		if f := d.knownFillings()[space.Device]; f != nil {
			s.Level, s.FullInSeconds = f.level, int64(f.fullIn().Seconds())
		}
		all = append(all, s)
	}
	return all
}
