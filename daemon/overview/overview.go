// Package overview shows what is known of the host and of each VPS: to callers, to
// systemd and to Prometheus.
package overview

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"vpssnapd/daemon/fault"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/operation"
	"vpssnapd/daemon/snapshot"
	"vpssnapd/daemon/space"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/verdict"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Overview shows one host.
type Overview struct {
	host       hypervisor.Host
	inventory  *inventory.Inventory
	store      *store.Store
	operations *operation.Operations
	snapshots  *snapshot.Snapshots
	images     *image.Images
	space      *space.Space
	version    string
}

// New makes the overview of a host.
func New(
	host hypervisor.Host, inv *inventory.Inventory, db *store.Store, ops *operation.Operations,
	snapshots *snapshot.Snapshots, images *image.Images, space *space.Space, version string,
) *Overview {
	return &Overview{
		host:       host,
		inventory:  inv,
		store:      db,
		operations: ops,
		snapshots:  snapshots,
		images:     images,
		space:      space,
		version:    version,
	}
}

// ListVPS returns every VPS of the host, by name, from the inventory. Codes:
// hypervisor_unavailable. It asks libvirt nothing: a list of hundreds must not wait for
// one QEMU that hangs.
func (o *Overview) ListVPS(ctx context.Context) ([]vps.VPS, error) {
	if !o.inventory.Ready() {
		return nil, fault.Disconnected()
	}
	records, err := o.store.Records(ctx)
	if err != nil {
		return nil, err
	}
	list := []vps.VPS{}
	for _, dom := range o.inventory.All() {
		list = append(list, o.view(ctx, dom, records[dom.ID]))
	}
	return list, nil
}

// ShowVPS returns one VPS, as libvirt has it now, or as last known when it does not answer.
// Codes: not_found, hypervisor_unavailable.
func (o *Overview) ShowVPS(ctx context.Context, ref string) (vps.VPS, error) {
	reading, cancel := context.WithTimeout(ctx, inventory.ShowWithin)
	defer cancel()
	dom, err := o.inventory.Resolve(reading, ref)
	// Only while there is a connection: without one the picture may be days old.
	if known, ok := o.inventory.Find(ref); ok && o.inventory.Ready() && vps.CodeOf(err) == vps.CodeHypervisorUnavailable {
		dom, err = known, nil
	}
	if err != nil {
		return vps.VPS{}, err
	}
	rec, err := o.store.Record(ctx, dom.ID)
	if err != nil {
		return vps.VPS{}, err
	}
	v := o.view(ctx, dom, rec)
	if v.Actions.Take.Allowed {
		if why := o.images.Fit(reading, dom); why != nil { // as a take would
			v.Actions.Take = vps.Verdict{Code: vps.CodeUnsupportedDisk, Reason: *why}
		}
	}
	return v, nil
}

// KnownVPS returns one VPS as last known; libvirt is asked only when it is not known.
// Codes: not_found, hypervisor_unavailable.
func (o *Overview) KnownVPS(ctx context.Context, ref string) (vps.VPS, error) {
	// Not "no such VPS" while nothing is known of any.
	if !o.inventory.Ready() {
		return vps.VPS{}, fault.Disconnected()
	}
	dom, err := o.inventory.Look(ctx, ref)
	if err != nil {
		return vps.VPS{}, err
	}
	rec, err := o.store.Record(ctx, dom.ID)
	if err != nil {
		return vps.VPS{}, err
	}
	return o.view(ctx, dom, rec), nil
}

// view joins what the host and the record say of one VPS.
func (o *Overview) view(ctx context.Context, dom hypervisor.Domain, rec store.Record) vps.VPS {
	v := vps.VPS{
		ID: dom.ID, Name: dom.Name, State: vps.State(dom.State), Agent: vps.AgentState(dom.Agent), Persistent: dom.Persistent,
		Option: rec.Option, Actions: verdict.Of(dom, rec, o.store.Now()),
	}
	for _, disk := range dom.Disks {
		v.Disks = append(v.Disks, image.Cover(disk))
	}
	if rec.Snapshot != nil {
		// One stat per disk; the size is what people look at.
		measured := o.snapshots.Measured(ctx, *rec.Snapshot)
		v.Snapshot = &measured
	}
	if rec.Operation != nil {
		op := o.operations.Live(*rec.Operation)
		v.Operation = &op
	}
	return v
}

// Host returns what is known of the host. It answers without libvirt too.
func (o *Overview) Host(ctx context.Context) (vps.Host, error) {
	h := vps.Host{Version: o.version}
	// Bounded: the answer says that libvirt is away, it does not wait for it.
	asking, cancel := context.WithTimeout(ctx, inventory.ShowWithin)
	defer cancel()
	if info, err := o.host.Info(asking); err == nil {
		h.Connected, h.Hostname = true, info.Hostname
		h.LibvirtVersion, h.HypervisorVersion = info.LibvirtVersion, info.HypervisorVersion
	}
	records, err := o.store.Records(ctx)
	if err != nil {
		return h, err
	}
	overlays := map[string]int64{}
	for _, rec := range records {
		if rec.Operation != nil {
			h.ActiveOperations++
			if rec.Operation.Status == vps.StatusNeedsAttention {
				h.ParkedOperations++
			}
		}
		if rec.Snapshot != nil {
			h.SnapshotCount++
			o.addOverlays(ctx, overlays, *rec.Snapshot)
		}
	}
	domains := o.inventory.All()
	h.VPSCount = len(domains)
	h.Storage = o.space.Storage(ctx, domains, overlays)
	return h, nil
}

// addOverlays adds what a snapshot takes, in bytes, to the directories that its files lie
// in. They need not be those of the bases.
func (o *Overview) addOverlays(ctx context.Context, sums map[string]int64, s vps.Snapshot) {
	for _, disk := range s.Disks {
		for _, path := range []string{disk.Overlay, disk.Undo} {
			// A file that is missing takes no room; doctor names it.
			if file, err := o.host.Stat(ctx, path); err == nil {
				sums[filepath.Dir(path)] += file.Allocated
			}
		}
	}
}

// stuckAfter is how long an operation may take between two steps, where it waits for
// nobody but the database. Within a step it waits for the host, for hours if need be.
const stuckAfter = 2 * time.Minute

// Health is nil unless something of the daemon hangs that a new process cures: the
// writing of the database, the runner of the operations, or the picture of the host. A
// database that answers with an error, and a libvirt that does not answer, are no
// such thing: Ready and Status say so.
func (o *Overview) Health(ctx context.Context) error {
	// In a goroutine, because a lock that is never given back is what is looked for.
	stuck := make(chan error, 1)
	go func() {
		_ = o.inventory.Ready() // its lock can be had
		stuck <- o.operations.Stuck(stuckAfter)
	}()
	// An error is no hang: a new process would find the same database.
	if err := o.store.Ping(ctx); err != nil && ctx.Err() != nil {
		return fmt.Errorf("the database cannot be read: %w", err)
	}
	if err := o.store.Writable(ctx); err != nil {
		return err
	}
	select {
	case err := <-stuck:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the operations, or the picture of the host, cannot be read: %w", ctx.Err())
	}
}

// Status says in one line what is being done, and what is wrong.
func (o *Overview) Status(ctx context.Context) string {
	var parts []string
	// What is wrong comes first: systemctl status cuts the line off at the terminal's
	// width.
	if err := o.Ready(ctx); err != nil && ctx.Err() == nil {
		if e, ok := errors.AsType[*vps.Error](err); ok {
			parts = append(parts, e.Detail)
		}
	}
	if n, err := o.store.CountWithSnapshot(ctx); err == nil {
		parts = append(parts, count(n, "VPS with a snapshot", "VPSes with a snapshot"))
	}
	ops, err := o.store.ActiveOperations(ctx)
	if err != nil {
		return strings.Join(parts, "; ")
	}
	return strings.Join(append(parts, o.doing(ops)...), "; ")
}

// mostShown is how many operations a status names.
const mostShown = 3

// doing names the operations that are worked on, and counts those that wait for an operator.
func (o *Overview) doing(ops []vps.Operation) []string {
	var parts []string
	parked, running := 0, 0
	for _, op := range ops {
		if op.Status == vps.StatusNeedsAttention {
			parked++
			continue
		}
		if running++; running <= mostShown {
			parts = append(parts, fmt.Sprintf("%s of %s %d %%", op.Kind, op.VPSName, o.operations.Live(op).Progress.Percent))
		}
	}
	if running > mostShown {
		parts = append(parts, count(running-mostShown, "more operation", "more operations"))
	}
	if parked > 0 {
		parts = append(parts, count(parked, "operation needs an operator", "operations need an operator"))
	}
	return parts
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// Ready is nil when the database and libvirt answer.
func (o *Overview) Ready(ctx context.Context) error {
	if err := o.store.Ping(ctx); err != nil {
		return vps.Errorf(vps.CodeInternal, "the daemon's database does not answer").Because(err)
	}
	ctx, cancel := context.WithTimeout(ctx, inventory.ShowWithin)
	defer cancel()
	if _, err := o.host.Info(ctx); err != nil {
		return vps.Errorf(vps.CodeHypervisorUnavailable, "libvirt does not answer").Because(err)
	}
	return nil
}
