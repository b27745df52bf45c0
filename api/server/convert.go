package server

import (
	"time"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

// each converts a list; the result is never nil, so that JSON has [].
func each[A, B any](list []A, convert func(A) B) []B {
	out := make([]B, 0, len(list))
	for _, a := range list {
		out = append(out, convert(a))
	}
	return out
}

// utc writes times as the API promises, in UTC.
func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC()
	return &u
}

// The functions wire… turn nouns of the daemon into types of the API, which are
// generated and belong to the contract: a field that is not copied here is not shown.
func wireVPS(v vps.VPS, r reader) api.VPS {
	w := api.VPS{
		ID:         v.ID,
		Name:       v.Name,
		State:      api.VPSState(v.State),
		Agent:      api.AgentState(v.Agent),
		Persistent: v.Persistent,
		Disks:      each(v.Disks, func(d vps.Disk) api.Disk { return wireDisk(d, r) }),
		Actions: api.Actions{
			Take:        wireVerdict(v.Actions.Take, r),
			Restore:     wireVerdict(v.Actions.Restore, r),
			UndoRestore: wireVerdict(v.Actions.UndoRestore, r),
			Delete:      wireVerdict(v.Actions.Delete, r),
		},
	}
	if v.Option != nil {
		o := wireOption(*v.Option)
		w.Option = &o
	}
	if v.Snapshot != nil {
		s := r.snapshot(*v.Snapshot)
		w.Snapshot = &s
	}
	if v.Operation != nil {
		op := r.operation(*v.Operation)
		w.Operation = &op
	}
	return w
}

// wireDisk shows paths of the host to operators only.
func wireDisk(d vps.Disk, r reader) api.Disk {
	w := api.Disk{
		Target:    d.Target,
		Format:    d.Format,
		SizeBytes: d.SizeBytes,
		Included:  d.Included,
		Refused:   d.Refused,
		Reason:    r.words(d.Reason, vps.CodeUnsupportedDisk),
	}
	if r.operator {
		w.Path = d.Path
	}
	return w
}

func wireVerdict(v vps.Verdict, r reader) api.Verdict {
	return api.Verdict{Allowed: v.Allowed, Code: api.Code(v.Code), Reason: r.words(v.Reason, v.Code)}
}

func wirePrice(p vps.Price) api.Price {
	return api.Price{Amount: p.Amount, Currency: p.Currency, Period: api.Period(p.Period)}
}

func wireOffer(o vps.Offer) api.Offer {
	return api.Offer{
		ID:          o.ID,
		Name:        o.Name,
		Description: o.Description,
		Price:       wirePrice(o.Price),
		Conditions:  each(o.Conditions, func(s string) string { return s }),
	}
}

func wireOption(o vps.Option) api.Option {
	return api.Option{
		ID:           o.ID,
		VPS:          o.VPS,
		State:        api.OptionState(o.State),
		OrderRef:     o.OrderRef,
		Price:        wirePrice(o.Price),
		ContactEmail: o.ContactEmail,
		Locale:       o.Locale,
		OrderedAt:    o.OrderedAt.UTC(),
		ActivatedAt:  utc(o.ActivatedAt),
		EndsAt:       utc(o.EndsAt),
		CancelledAt:  utc(o.CancelledAt),
		GraceUntil:   utc(o.GraceUntil),
		ReleasedAt:   utc(o.ReleasedAt),
		UpdatedAt:    o.UpdatedAt.UTC(),
	}
}

// wireSnapshot leaves out the disks and the NVRAM: they are the daemon's.
func wireSnapshot(s vps.Snapshot) api.Snapshot {
	return api.Snapshot{
		ID:          s.ID,
		VPS:         s.VPS,
		State:       api.SnapshotState(s.State),
		Reason:      s.Reason,
		Description: s.Description,
		CreatedAt:   s.CreatedAt.UTC(),
		Consistency: api.Consistency(s.Consistency),
		FreezeMS:    s.FreezeMS,
		SizeBytes:   s.SizeBytes,
		DeltaBytes:  s.DeltaBytes,
		RestoredAt:  utc(s.RestoredAt),
		UndoUntil:   utc(s.UndoUntil),
		UpdatedAt:   s.UpdatedAt.UTC(),
	}
}

// wireOperation leaves out request and plan: they are for the next daemon, not for callers.
func wireOperation(o vps.Operation) api.Operation {
	w := api.Operation{
		ID:              o.ID,
		VPS:             o.VPS,
		VPSName:         o.VPSName,
		Kind:            api.OperationKind(o.Kind),
		Status:          api.OperationStatus(o.Status),
		Step:            o.Step,
		Cancellable:     !o.Irrevocable && !o.Status.Final(),
		CancelRequested: o.CancelRequested,
		Progress: api.Progress{
			DoneBytes:  o.Progress.DoneBytes,
			TotalBytes: o.Progress.TotalBytes,
			Percent:    o.Progress.Percent,
			ETASeconds: o.Progress.ETASeconds,
			Note:       o.Progress.Note,
		},
		Actor:      wireActor(o.Actor),
		SnapshotID: o.SnapshotID,
		CreatedAt:  o.CreatedAt.UTC(),
		StartedAt:  utc(o.StartedAt),
		EndedAt:    utc(o.EndedAt),
		Result:     o.Result,

		LongestPauseMS: o.LongestPauseMS,
	}
	if o.Error != nil {
		w.Error = &api.Failure{Code: api.Code(o.Error.Code), Detail: o.Error.Detail, Remedy: o.Error.Remedy}
	}
	return w
}

func wireActor(a vps.Actor) api.Actor {
	return api.Actor{Name: a.Name, Way: api.Way(a.Way)}
}

// wireMessage leaves the detail, which may name files, to operators.
func wireMessage(m vps.Message, r reader) api.Message {
	w := api.Message{
		ID:          m.ID,
		At:          m.At.UTC(),
		VPS:         m.VPS,
		VPSName:     m.VPSName,
		Kind:        api.MessageKind(m.Kind),
		Actor:       wireActor(m.Actor),
		OperationID: m.Operation,
		Text:        m.In(r.in),
	}
	if r.operator {
		w.Detail = m.Detail
	}
	return w
}

func wireHost(h vps.Host) api.Host {
	return api.Host{
		Hostname:          h.Hostname,
		Version:           h.Version,
		LibvirtVersion:    h.LibvirtVersion,
		HypervisorVersion: h.HypervisorVersion,
		Connected:         h.Connected,
		VPSCount:          h.VPSCount,
		SnapshotCount:     h.SnapshotCount,
		ActiveOperations:  h.ActiveOperations,
		ParkedOperations:  h.ParkedOperations,
		Storage:           each(h.Storage, wireStorage),
	}
}

func wireStorage(s vps.Storage) api.Storage {
	return api.Storage{
		Path:           s.Path,
		TotalBytes:     s.TotalBytes,
		FreeBytes:      s.FreeBytes,
		HeadroomBytes:  s.HeadroomBytes,
		OverlayBytes:   s.OverlayBytes,
		TakesPermitted: s.TakesPermitted,
		Level:          api.StorageLevel(s.Level),
		FullInSeconds:  s.FullInSeconds,
	}
}
