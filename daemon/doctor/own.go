package doctor

import (
	"context"
	"errors"
	"fmt"

	"vpssnapd/daemon/adoption"
	"vpssnapd/daemon/store"
	"vpssnapd/daemon/vps"
	"vpssnapd/hostfile"
)

// checkOwn judges the daemon's own files: the configuration and what it names, and the
// record.
func (d *Doctor) checkOwn(ctx context.Context) []vps.Finding {
	if d.judge == nil {
		return nil
	}
	var findings []vps.Finding
	for _, err := range d.judge(ctx) {
		f := vps.Finding{Code: vps.CheckUnreachable, Detail: err.Error(), Remedies: []vps.Remedy{
			remedy(vps.RemedyRead, "put a regular file there that can be read at once; the daemon would not start with this one")}}
		if unsafe, ok := errors.AsType[*hostfile.Unsafe](err); ok {
			f.Code, f.Path = vps.CheckWrongModeOrOwner, unsafe.Path
			f.Detail = unsafe.Path + " is not safe: " + unsafe.Why + "; the daemon would not start with it"
			f.Remedies = []vps.Remedy{remedy(vps.RemedyTakeRightsAway, "take the rights away from others", unsafe.Cure)}
		}
		findings = append(findings, f)
	}
	return findings
}

// checkRecord tells of the rows of the record that were found damaged, and set aside.
func (d *Doctor) checkRecord(ctx context.Context) ([]vps.Finding, error) {
	rows, err := d.store.DamagedRows(ctx)
	var findings []vps.Finding
	for _, row := range rows {
		f := vps.Finding{Code: vps.CheckRecordDamaged, VPS: row.VPS, Detail: fmt.Sprintf(
			"the record of the %s %s is not as it was written, and is not used: a bit of the database has flipped, or "+
				"another program has changed it; look at the disk of the state directory (smartctl, dmesg)", row.Kind, row.ID)}
		if row.VPS != "" {
			f.VPSName = d.inventory.Name(row.VPS)
		}
		switch row.Kind {
		case "snapshot":
			f.Snapshot = row.ID
		case "operation":
			f.Operation = row.ID
		}
		f.Remedies, f.Repairable = remedyDamaged(row), row.Kind == "snapshot" || row.Kind == "operation" || !row.Open
		findings = append(findings, f)
	}
	return findings, err
}

// remedyDamaged: what the host knows too is made again from it, and what an order system
// or an operator had made they make again.
func remedyDamaged(row store.DamagedRow) []vps.Remedy {
	switch {
	case !row.Open:
		return []vps.Remedy{repairBy("nothing depends on it: it was over; have it forgotten")}
	case row.Kind == "option":
		return []vps.Remedy{remedy(vps.RemedyOrderOption, "order it again, as the order system does, with its reference and its end",
			argv("vpssnap", "option", "history", row.VPS), argv("vpssnap", "option", "order", row.VPS))}
	case row.Kind == "token":
		return []vps.Remedy{remedy(vps.RemedyRevokeToken, "whoever uses it is refused: make another, and revoke this one",
			argv("vpssnap", "token", "revoke", row.ID))}
	}
	return []vps.Remedy{repairBy("have the record of the VPS made again from its definition and its files")}
}

// recordAgain makes the record of a VPS from the host, as far as that tells of a snapshot,
// in the place of one that was damaged. The VPS's lock is held.
func (d *Doctor) recordAgain(ctx context.Context, f vps.Finding, actor vps.Actor) (string, error) {
	open, err := d.store.DamagedState(ctx, f.VPS)
	if err != nil {
		return "", err
	}
	if !open {
		return "what was over is forgotten", d.store.Write(ctx, func(tx *store.Tx) error {
			return tx.ForgetDamagedOver(ctx, f.VPS)
		})
	}
	return d.adoptAgain(ctx, f.VPS, actor)
}

// adoptAgain makes what is recorded of a VPS's snapshot and operation again from the host.
func (d *Doctor) adoptAgain(ctx context.Context, id string, actor vps.Actor) (string, error) {
	dom, err := d.inventory.Read(ctx, id)
	if err != nil {
		return "", err
	}
	if err := d.store.Write(ctx, func(tx *store.Tx) error { return tx.SetAside(ctx, id) }); err != nil {
		return "", err
	}
	done := "the host tells of no snapshot, so none is recorded"
	if adoption.Speaks(dom) {
		if done, err = d.adopter.Adopt(ctx, id, actor); err != nil {
			return "", err
		}
	}
	return done, d.store.Write(ctx, func(tx *store.Tx) error { return tx.ForgetDamagedState(ctx, id) })
}
