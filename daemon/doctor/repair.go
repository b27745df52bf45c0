package doctor

import (
	"context"
	"errors"
	"fmt"

	"vpssnapd/daemon/failpoint"
	"vpssnapd/daemon/inventory"
	"vpssnapd/daemon/vps"
)

// Repair does about each finding of Checks what is provably safe: definitions
// and metadata are put right, promises to guests kept, and records made of what
// is there. It removes, moves and changes no file, and gives no record up: a file
// that is missing may be back when its file system is mounted. It returns what
// was done and what is then left.
func (d *Doctor) Repair(ctx context.Context, actor vps.Actor) (vps.Report, error) {
	report, err := d.repairAll(failpoint.Within(vps.WithCall(ctx, vps.Call{}), "daemon", "repair"), actor)
	if err != nil {
		return report, err
	}
	// Each repair commits by itself, and some change the host only; what the answer says
	// is read after the last. So there is no one transaction that the answer could be
	// kept in: a caller cut off before it is kept asks again, and what is repaired by then
	// is not done twice.
	return report, d.store.KeepAnswer(ctx, report)
}

// repairAll repairs one finding after another. Findings that one repair cures together are
// repaired once.
func (d *Doctor) repairAll(ctx context.Context, actor vps.Actor) (vps.Report, error) {
	report, err := d.Checks(ctx)
	if err != nil {
		return report, err
	}
	var repairs []vps.Repair
	// Some findings have the same cure: once is enough, and a second try would report
	// that there is nothing to do.
	seen := map[string]bool{}
	for _, f := range report.Findings {
		what := f.VPS + sameMend[f.Code]
		if !f.Repairable || seen[what] {
			continue
		}
		seen[what] = true
		repairs = append(repairs, d.repair(ctx, f, actor))
	}
	if len(repairs) == 0 {
		return report, nil
	}
	// What is left is found by looking again, and not by believing the repairs.
	report, err = d.Checks(ctx)
	report.Repairs = repairs
	return report, err
}

// repair cures one finding within the time that a read of the host may take, and says how
// it went. A finding that only an operator can cure stays as it is.
func (d *Doctor) repair(ctx context.Context, f vps.Finding, actor vps.Actor) vps.Repair {
	r := vps.Repair{Code: f.Code, VPS: f.VPS, VPSName: f.VPSName, Path: f.Path}
	// One VPS whose QEMU hangs must not stop the repair of the others.
	ctx, cancel := context.WithTimeout(ctx, inventory.HostRead)
	defer cancel()
	text, err := d.mend(ctx, f, actor)
	if err != nil {
		d.logger.Warn("not repaired", "code", f.Code, vps.LogAttr(f.VPS, f.VPSName), "path", f.Path, "error", err)
		r.Text = err.Error()
		return r
	}
	d.logger.Info("repaired", "code", f.Code, vps.LogAttr(f.VPS, f.VPSName), "path", f.Path, "by",
		actor.Name, "done", text)
	r.Done, r.Text = true, text
	return r
}

// sameMend is what a repair of each finding is about: findings of one VPS that are
// mended alike are mended once.
var sameMend = map[vps.CheckCode]string{
	vps.CheckDefinitionNamesBase: "definition",
	vps.CheckMetadataMissing:     "definition",
	vps.CheckGuestOwed:           "guest",
	vps.CheckUnrecordedSnapshot:  "record",
	vps.CheckRecordDamaged:       "damaged record",
	vps.CheckUnfinished:          "unfinished record",
}

var errBegun = errors.New("an operation has begun on the VPS")

// mend looks at everything again under the VPS's lock before it changes anything.
// RightDefinition takes the lock itself.
func (d *Doctor) mend(ctx context.Context, f vps.Finding, actor vps.Actor) (string, error) {
	if f.Code == vps.CheckDefinitionNamesBase || f.Code == vps.CheckMetadataMissing {
		return "the definition was put right", d.integrity.RightDefinition(ctx, f.VPS)
	}
	release, err := d.inventory.Lock(ctx, f.VPS)
	if err != nil {
		return "", err
	}
	defer release()
	switch f.Code {
	case vps.CheckGuestOwed:
		return "the guest was let go", d.guests.KeepOwed(ctx, f.VPS)
	case vps.CheckRecordDamaged:
		return d.recordAgain(ctx, f, actor)
	case vps.CheckUnfinished:
		// It was nobody's when it was found; an operation that has begun since owns it.
		if rec, err := d.store.Record(ctx, f.VPS); err != nil || rec.Operation != nil {
			return "", errors.Join(err, errBegun)
		}
		return d.adoptAgain(ctx, f.VPS, actor)
	case vps.CheckUnrecordedSnapshot:
		return d.adopter.Adopt(ctx, f.VPS, actor)
	}
	return "", fmt.Errorf("there is no repair for %s", f.Code)
}
