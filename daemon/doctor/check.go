// Package doctor compares the records with what libvirt and the files say, names every
// difference with its remedies, and puts right what is provably safe to put right.
package doctor

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"vpssnapd/daemon/adoption"
	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/guest"
	"vpssnapd/daemon/image"
	"vpssnapd/daemon/integrity"
	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vouch"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Doctor compares one host with its records.
type Doctor struct {
	host      hypervisor.Host
	inventory *inventory.Inventory
	store     *store.Store
	images    *image.Images
	guests    *guest.Guests
	integrity *integrity.Integrity
	adopter   *adoption.Adopter
	vouchers  *vouch.Vouchers
	// canTakeBack reports whether a parked operation can be undone.
	canTakeBack func(vps.Operation) bool
	judge       func(context.Context) []error
	logger      *slog.Logger
	drift       *drift
}

// New makes a doctor that looks at a VPS whenever something happened to it. judge returns
// what is wrong with the daemon's own files; nil: they are not judged.
func New(
	host hypervisor.Host, inv *inventory.Inventory, db *store.Store, images *image.Images, guests *guest.Guests,
	in *integrity.Integrity, adopter *adoption.Adopter, vouchers *vouch.Vouchers, canTakeBack func(vps.Operation) bool,
	judge func(context.Context) []error, logger *slog.Logger,
) *Doctor {
	d := &Doctor{host: host, inventory: inv, store: db, images: images, guests: guests, integrity: in, adopter: adopter,
		vouchers: vouchers, canTakeBack: canTakeBack, judge: judge, logger: logger, drift: newDrift()}
	inv.Subscribe(inventory.Watcher{
		Connected: func(context.Context) { d.drift.all.Wake() },
		Defined:   d.lookAt, Job: d.lookAt, Undefined: d.lookAt,
	})
	return d
}

// Checks compares the records with what libvirt and the files say, and names
// every difference with its remedies. It changes no VPS and no file. An error means that
// the records could not be read; a libvirt or a file that does not answer is a finding.
func (d *Doctor) Checks(ctx context.Context) (vps.Report, error) {
	ctx = failpoint.Within(ctx, "daemon", "check")
	report := vps.Report{At: d.store.Now()}
	if err := d.store.Verify(ctx); err != nil {
		return report, err
	}
	domains, err := d.host.List(ctx)
	silent := err != nil
	if silent {
		report.Findings = append(report.Findings, unreachableHost(err))
	}
	d.inventory.Saw(domains...)
	d.recall(domains)
	recorded, err := d.recorded(ctx)
	if err != nil {
		return report, err
	}
	listed := map[string]hypervisor.Domain{}
	for _, dom := range domains {
		listed[dom.ID], recorded[dom.ID] = dom, true
	}
	report.VPSCount = len(recorded)
	var inspections []*inspection
	for _, id := range slices.Sorted(maps.Keys(recorded)) {
		i := &inspection{d: d, id: id, silent: silent}
		if dom, ok := listed[id]; ok {
			i.listed = &dom
		}
		inspections = append(inspections, i)
	}
	if err := d.checkAll(ctx, inspections, &report); err != nil {
		return report, err
	}
	orphans, err := d.checkFiles(ctx, domains, silent)
	if err != nil {
		return report, err
	}
	report.Findings = append(report.Findings, orphans...)
	report.Findings = append(report.Findings, d.checkOwn(ctx)...)
	damaged, err := d.checkRecord(ctx)
	if err != nil {
		return report, err
	}
	report.Findings = append(report.Findings, damaged...)
	slices.SortStableFunc(report.Findings, func(a, b vps.Finding) int {
		return cmp.Or(strings.Compare(a.VPSName, b.VPSName), strings.Compare(a.VPS, b.VPS))
	})
	return report, ctx.Err()
}

// recall puts what is known of domains whose QEMU hangs in the place of what a list could
// tell of them: a file that one of them uses must not be told as one that nobody needs.
func (d *Doctor) recall(listed []hypervisor.Domain) {
	for i := range listed {
		if !listed[i].Silent {
			continue
		}
		if known, ok := d.inventory.Find(listed[i].ID); ok {
			listed[i] = known
			listed[i].Silent = true
		}
	}
}

// checksAtOnce is how many VPSes are compared side by side: one that hangs costs
// the report inventory.AnswerWithin, and must not cost it that once for each.
const checksAtOnce = 8

// checkAll compares VPSes side by side and reports in their order.
func (d *Doctor) checkAll(ctx context.Context, inspections []*inspection, report *vps.Report) error {
	findings, snapshots := make([][]vps.Finding, len(inspections)), make([]int, len(inspections))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(checksAtOnce)
	for n, i := range inspections {
		group.Go(func() (err error) {
			findings[n], snapshots[n], err = d.checkVPS(ctx, i)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for n := range inspections {
		report.Findings = append(report.Findings, findings[n]...)
		report.SnapshotCount += snapshots[n]
	}
	return nil
}

// recorded are the ids of all VPSes about which something is stored.
func (d *Doctor) recorded(ctx context.Context) (map[string]bool, error) {
	records, err := d.store.Records(ctx)
	if err != nil {
		return nil, err
	}
	// Also a VPS without a record may still have a guest of its frozen by us.
	owed, err := d.store.Debts(ctx)
	ids := map[string]bool{}
	for id := range records {
		ids[id] = true
	}
	for _, p := range owed {
		ids[p.VPS] = true
	}
	return ids, err
}

// inspection is one VPS being compared with what is stored about it.
type inspection struct {
	d  *Doctor
	id string
	// silent: libvirt does not answer, and is not asked.
	silent bool
	// listed is what a list of all VPSes said, enough for one without a record.
	listed *hypervisor.Domain

	rec  store.Record
	name string
	// dom is what libvirt says, when answered; present is set when it knows the VPS.
	dom      hypervisor.Domain
	answered bool
	present  bool
	findings []vps.Finding
}

// checkVPS compares one VPS. An operation that is being worked on reads the host
// itself; a record that changes meanwhile is read again.
func (d *Doctor) checkVPS(ctx context.Context, i *inspection) (findings []vps.Finding, snapshots int, err error) {
	for range 3 {
		rec, err := d.store.Record(ctx, i.id)
		if err != nil {
			return nil, 0, err
		}
		if rec.Snapshot != nil {
			snapshots = 1
		}
		try := &inspection{d: d, id: i.id, silent: i.silent, listed: i.listed, rec: rec, name: d.inventory.Name(i.id)}
		if err := try.run(ctx); err != nil {
			return nil, snapshots, err
		}
		after, err := d.store.Record(ctx, i.id)
		if err != nil {
			return nil, snapshots, err
		}
		// Telling half of the old and half of the new would name faults that nobody
		// made.
		if !sameRecord(rec, after) {
			continue
		}
		judged, err := d.settleHealth(ctx, try)
		if err != nil || !judged {
			return try.findings, snapshots, err
		}
	}
	return nil, snapshots, nil // it is being worked on
}

// sameRecord reports whether nothing was recorded between two reads. Only then do findings
// of the host between them belong to that record, and are worth telling.
func sameRecord(a, b store.Record) bool {
	return reflect.DeepEqual(a.Snapshot, b.Snapshot) && reflect.DeepEqual(a.Operation, b.Operation) &&
		reflect.DeepEqual(a.Option, b.Option)
}

// run makes the findings.
func (i *inspection) run(ctx context.Context) error {
	// What its step is doing looks like damage from outside.
	if op := i.rec.Operation; op != nil && op.Status != vps.StatusNeedsAttention {
		return i.checkOwed(ctx, true)
	}
	// Without a snapshot the list is enough; asking for each of hundreds of VPSes again
	// would keep libvirt busy for nothing.
	if i.listed != nil && i.listed.Astray != nil {
		i.checkAstray(*i.listed)
	} else if i.listed != nil && !i.listed.Silent && i.rec.Snapshot == nil {
		i.dom, i.name, i.answered, i.present = *i.listed, i.listed.Name, true, true
	} else if !i.silent {
		i.read(ctx)
	}
	if err := i.checkOwed(ctx, false); err != nil {
		return err
	}
	if op := i.rec.Operation; op != nil {
		i.add(vps.CheckOperationParked, "", "", i.parkedDetail(*op), i.remediesParked(*op)...)
		i.findings[len(i.findings)-1].Operation = op.ID
		return nil // its files and definition are as its step left them
	}
	snapshots, err := i.d.store.SnapshotsOf(ctx, i.id)
	if err != nil {
		return err
	}
	// Only an answer of libvirt counts as "gone"; silence does not.
	if i.gone() {
		i.checkGone(snapshots)
	}
	for _, s := range snapshots {
		if s.State == vps.SnapshotAvailable || s.State == vps.SnapshotBroken {
			i.checkSnapshot(ctx, s)
		} else {
			i.checkUnfinished(s)
		}
	}
	if len(snapshots) == 0 && i.present {
		// A VPS that came with a panel's definition, a backup or from another host may
		// speak of a snapshot that this host's record has lost.
		i.checkUnrecorded(ctx)
	}
	return nil
}

// read asks libvirt for the VPS.
func (i *inspection) read(ctx context.Context) {
	// A QEMU that hangs makes libvirt wait for its domain's lock, up to 30 s.
	ctx, cancel := context.WithTimeout(ctx, inventory.AnswerWithin)
	defer cancel()
	dom, err := i.d.inventory.Read(ctx, i.id)
	i.answered, i.present = err == nil || errors.Is(err, hypervisor.ErrNotFound), err == nil
	astray, isAstray := errors.AsType[*hypervisor.AstrayError](err)
	switch {
	case isAstray:
		i.checkAstray(astray.Domain)
	case i.present:
		i.dom, i.name = dom, dom.Name
	case !i.answered:
		i.add(vps.CheckUnreachable, "", "", "libvirt does not tell about the VPS: "+err.Error(), remedyUnreachable())
	}
}

// add makes a finding.
func (i *inspection) add(code vps.CheckCode, disk, path, detail string, remedies ...vps.Remedy) {
	f := vps.Finding{Code: code, VPS: i.id, VPSName: i.name, Disk: disk, Path: path, Detail: detail, Remedies: remedies}
	if i.rec.Snapshot != nil {
		f.Snapshot = i.rec.Snapshot.ID
	}
	i.findings = append(i.findings, f)
}

// repairable marks the finding that was just added.
func (i *inspection) repairable() { i.findings[len(i.findings)-1].Repairable = true }

// owedTooLong is when a debt to a guest is no longer a step's everyday business.
const owedTooLong = 15 * time.Second

// checkOwed finds guests that we froze or suspended long ago. Within an operation
// a guest may be suspended for as long as a step needs.
func (i *inspection) checkOwed(ctx context.Context, working bool) error {
	owed, err := i.d.store.Debts(ctx)
	if err != nil {
		return err
	}
	for _, p := range owed {
		if p.VPS != i.id || i.d.store.Now().Sub(p.Since) < owedTooLong || working && p.Kind == store.DebtResume {
			continue
		}
		i.add(vps.CheckGuestOwed, "", "", owedDetail(p), remedyOwed(p))
		i.repairable()
	}
	return nil
}

// settleHealth makes a snapshot broken that lacks what it needs, and available
// again when that is back; then it is to be looked at again. The VPS is not touched.
func (d *Doctor) settleHealth(ctx context.Context, i *inspection) (judged bool, err error) {
	if before, err := d.integrity.QuietSnapshot(ctx, i.id); err != nil || before == nil || !i.present {
		return false, err
	}
	// Read again under the lock: an operation may have begun since the inspection, and it
	// owns the snapshot then.
	release, err := d.inventory.Lock(ctx, i.id)
	if err != nil {
		return false, err
	}
	defer release()
	snap, err := d.integrity.QuietSnapshot(ctx, i.id)
	if err != nil || snap == nil || !reflect.DeepEqual(snap, i.rec.Snapshot) {
		return true, err // somebody was quicker
	}
	// A snapshot can become broken here without any operation: by a file that somebody
	// moved.
	if err := d.integrity.Judge(ctx, i.dom, *snap); err != nil {
		return false, err
	}
	after, err := d.integrity.QuietSnapshot(ctx, i.id)
	return after == nil || after.State != snap.State, err
}
