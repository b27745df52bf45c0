package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hypervisor"
)

// Repair does about each finding of Checks what is provably safe: definitions
// and metadata are put right, promises to guests kept, and records made of what
// is there. It removes, moves and changes no file, and gives no record up: a file
// that is missing may be back when its file system is mounted. It returns what
// was done and what is then left.
func (d *Daemon) Repair(ctx context.Context, actor vps.Actor) (vps.Report, error) {
	report, err := d.repairAll(failpoint.Within(onOurOwn(ctx), "daemon", "repair"), actor)
	if err != nil {
		return report, err
	}
	// Each repair commits by itself, and some change the host only; what the answer says
	// is read after the last. So there is no one transaction that the answer could be
	// kept in: who is cut off before it is kept asks again, and what is repaired by then
	// is not done twice.
	return report, d.rememberAlone(ctx, report)
}

func (d *Daemon) repairAll(ctx context.Context, actor vps.Actor) (vps.Report, error) {
	report, err := d.Checks(ctx)
	if err != nil {
		return report, err
	}
	var repairs []vps.Repair
	seen := map[string]bool{}
	for _, f := range report.Findings {
		what := f.VPS + mends[f.Code]
		if !f.Repairable || seen[what] {
			continue
		}
		seen[what] = true
		repairs = append(repairs, d.repair(ctx, f, actor))
	}
	if len(repairs) == 0 {
		return report, nil
	}
	report, err = d.Checks(ctx)
	report.Repairs = repairs
	return report, err
}

// errChanged: it is no longer as it was found.
var errChanged = errors.New("it has changed since it was found")

func (d *Daemon) repair(ctx context.Context, f vps.Finding, actor vps.Actor) vps.Repair {
	r := vps.Repair{Code: f.Code, VPS: f.VPS, VPSName: f.VPSName, Path: f.Path}
	ctx, cancel := context.WithTimeout(ctx, hostRead)
	defer cancel()
	text, err := d.mend(ctx, f, actor)
	if err != nil {
		d.Logger.Warn("not repaired", "code", f.Code, vps.LogAttr(f.VPS, f.VPSName), "path", f.Path, "error", err)
		r.Text = err.Error()
		return r
	}
	d.Logger.Info("repaired", "code", f.Code, vps.LogAttr(f.VPS, f.VPSName), "path", f.Path, "by", actor.Name, "done", text)
	r.Done, r.Text = true, text
	return r
}

// mends is what a repair of each finding does. Findings of one VPS that are
// mended alike are mended once.
var mends = map[vps.CheckCode]string{
	vps.CheckDefinitionNamesBase: "the definition was put right",
	vps.CheckMetadataMissing:     "the definition was put right",
	vps.CheckGuestOwed:           "the guest was let go",
	vps.CheckUnrecordedSnapshot:  "the record was made anew",
}

// mend looks at everything again under the VPS's lock before it changes anything.
func (d *Daemon) mend(ctx context.Context, f vps.Finding, actor vps.Actor) (string, error) {
	if f.Code == vps.CheckDefinitionNamesBase || f.Code == vps.CheckMetadataMissing {
		return mends[f.Code], d.rightDefinition(ctx, f.VPS)
	}
	release, err := d.locks.acquire(ctx, f.VPS)
	if err != nil {
		return "", err
	}
	defer release()
	switch f.Code {
	case vps.CheckGuestOwed:
		return mends[f.Code], d.keepOwed(ctx, f.VPS)
	case vps.CheckUnrecordedSnapshot:
		return d.adopt(ctx, f.VPS, actor)
	}
	return "", fmt.Errorf("there is no repair for %s", f.Code)
}

// keepOwed keeps what is promised to a guest on which no operation works.
func (d *Daemon) keepOwed(ctx context.Context, id string) error {
	owed, err := d.store.Promises(ctx)
	if err != nil {
		return err
	}
	for _, p := range owed {
		switch {
		case p.VPS != id:
		case p.Kind == store.PromiseThaw:
			err = errors.Join(err, d.keepThaw(ctx, p))
		default:
			err = errors.Join(err, d.keepResumeOfParked(ctx, p))
		}
	}
	return err
}

// adopt records a snapshot that a VPS has and no record knows, as far as what is
// there proves it; or takes leftover metadata away.
func (d *Daemon) adopt(ctx context.Context, id string, actor vps.Actor) (string, error) {
	rec, err := readRecord(ctx, d.store, id)
	if err != nil {
		return "", err
	}
	if rec.snapshot != nil || rec.operation != nil {
		return "", errChanged
	}
	dom, err := d.inventory.domain(ctx, id)
	if err != nil {
		return "", err
	}
	if !speaksOfSnapshot(dom) {
		return "", errChanged
	}
	r := d.reconstruct(ctx, dom)
	switch {
	case r.hopeless:
		return "", errors.New(r.why)
	case !r.exists && !r.leftover:
		return "", errors.New(r.why)
	case !r.exists:
		return "the leftover metadata was removed", d.Config.Host.SetMetadata(ctx, id, "")
	}
	if err := d.store.Write(ctx, func(tx *store.Tx) error { return d.recordFound(ctx, tx, dom, r, actor) }); err != nil {
		return "", err
	}
	if r.snap.State != vps.SnapshotAvailable {
		return "the snapshot was recorded as " + string(r.snap.State) + ": " + r.why, nil
	}
	return mends[vps.CheckUnrecordedSnapshot], d.rightMetadata(ctx, dom, r.snap)
}

// rightMetadata makes the copy in the definition say what the record says. What
// is broken keeps the copy from before, and what is being restored its own.
func (d *Daemon) rightMetadata(ctx context.Context, dom hypervisor.Domain, snap vps.Snapshot) error {
	text, err := metadataOf(snap, restoreNotes{})
	steady := snap.State == vps.SnapshotAvailable || snap.State == vps.SnapshotDeleting
	if err != nil || !steady || metadataDiffers(dom.Metadata, snap) == "" {
		return err
	}
	return d.Config.Host.SetMetadata(ctx, dom.ID, text)
}

// recordFound makes the record of what reconstruct found.
func (d *Daemon) recordFound(ctx context.Context, tx *store.Tx, dom hypervisor.Domain, r reconstruction, actor vps.Actor) error {
	if known, err := tx.Snapshot(ctx, r.snap.ID); err == nil && (mergedAway(known) || known.VPS != dom.ID) {
		return fmt.Errorf("the snapshot %s is recorded already, as %s and of the VPS %s", known.ID, known.State, known.VPS)
	}
	if err := tx.SaveSnapshot(ctx, r.snap); err != nil {
		return err
	}
	m := vps.Message{VPS: dom.ID, VPSName: dom.Name, Kind: vps.MessageWarning, Actor: actor,
		Phrase: vps.PhraseSnapshotFound,
		Detail: "state " + string(r.snap.State)}
	if r.why != "" {
		m.Detail += ": " + r.why
	}
	for _, disk := range r.snap.Disks {
		m.Detail += "; " + disk.Target + " " + filepath.Base(disk.Overlay)
	}
	return d.say(ctx, tx, m)
}
