package server

import (
	"context"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

// Doctor compares the host with its record.
type Doctor interface {
	Checks(ctx context.Context) (vps.Report, error)
	Repair(ctx context.Context, a vps.Actor) (vps.Report, error)
}

func (h *handlers) CheckHost(ctx context.Context, _ CheckHostRequestObject) (CheckHostResponseObject, error) {
	report, err := h.services.Doctor.Checks(ctx)
	if err != nil {
		return nil, err
	}
	return CheckHost200JSONResponse(wireReport(report)), nil
}

// Repair changes what is provably safe to change, see the daemon.
func (h *handlers) RepairHost(ctx context.Context, _ RepairHostRequestObject) (RepairHostResponseObject, error) {
	report, err := h.services.Doctor.Repair(ctx, callerOf(ctx).actor)
	if err != nil {
		return nil, err
	}
	return RepairHost200JSONResponse(wireReport(report)), nil
}

func wireReport(r vps.Report) api.Report {
	w := api.Report{
		At:            r.At.UTC(),
		VPSCount:      r.VPSCount,
		SnapshotCount: r.SnapshotCount,
		Findings:      each(r.Findings, wireFinding),
	}
	if len(r.Repairs) > 0 {
		w.Repairs = each(r.Repairs, wireRepair)
	}
	return w
}

func wireFinding(f vps.Finding) api.Finding {
	return api.Finding{
		Code:        api.CheckCode(f.Code),
		VPS:         f.VPS,
		VPSName:     f.VPSName,
		Disk:        f.Disk,
		Path:        f.Path,
		SnapshotID:  f.Snapshot,
		OperationID: f.Operation,
		Detail:      f.Detail,
		Repairable:  f.Repairable,
		Remedies: each(f.Remedies, func(r vps.Remedy) api.Remedy {
			return api.Remedy{Kind: api.RemedyKind(r.Kind), Text: r.Text, Commands: each(r.Commands, vps.Command.String)}
		}),
	}
}

func wireRepair(r vps.Repair) api.Repair {
	return api.Repair{Code: api.CheckCode(r.Code), VPS: r.VPS, VPSName: r.VPSName, Path: r.Path, Done: r.Done, Text: r.Text}
}
