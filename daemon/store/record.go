package store

import (
	"context"
	"database/sql"
	"errors"

	"vpssnapd/daemon/vps"
)

// Record is what is stored about one VPS now: nil for what there is none of.
type Record struct {
	Option    *vps.Option
	Snapshot  *vps.Snapshot
	Operation *vps.Operation
	// StateDamaged: a snapshot or an operation is missing here because its row was damaged,
	// so nobody knows in what state the VPS is. OptionDamaged is the same of the option.
	StateDamaged  bool
	OptionDamaged bool
}

// damaged notes a row that was set aside.
func (r *Record) damaged(kind string) {
	r.StateDamaged = r.StateDamaged || kind != "option"
	r.OptionDamaged = r.OptionDamaged || kind == "option"
}

// Record reads what is stored about a VPS, all of one moment.
func (s *Store) Record(ctx context.Context, vpsID string) (rec Record, err error) {
	err = s.read(ctx, func(q queries) (err error) { rec, err = q.record(ctx, vpsID); return err })
	return rec, err
}

// Records reads what is stored about every VPS, by id, all of one moment: read one
// after the other, a deletion could be shown without its operation.
func (s *Store) Records(ctx context.Context) (all map[string]Record, err error) {
	err = s.read(ctx, func(q queries) (err error) { all, err = q.records(ctx); return err })
	return all, err
}

// record reads all that is known of a VPS within one transaction, so that its parts belong
// to the same moment.
func (s queries) record(ctx context.Context, vpsID string) (Record, error) {
	var rec Record
	op, err := s.ActiveOperation(ctx, vpsID)
	if err := fill(&rec.Operation, op, err); err != nil {
		return rec, err
	}
	o, err := s.OpenOption(ctx, vpsID)
	if err := fill(&rec.Option, o, err); err != nil {
		return rec, err
	}
	snap, err := s.CurrentSnapshot(ctx, vpsID)
	if err := fill(&rec.Snapshot, snap, err); err != nil {
		return rec, err
	}
	rows, err := s.q.QueryContext(ctx, `SELECT kind FROM damaged WHERE vps = ? AND open`, vpsID)
	_, err = collect(rows, err, func(row scanner) (kind string, err error) {
		err = row.Scan(&kind)
		rec.damaged(kind)
		return kind, err
	})
	return rec, err
}

// fill takes up what was read, if there was anything.
func fill[T any](to **T, read T, err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err == nil {
		*to = &read
	}
	return err
}

// records reads everything in four queries.
func (s queries) records(ctx context.Context) (map[string]Record, error) {
	operations, err := s.ActiveOperations(ctx)
	if err != nil {
		return nil, err
	}
	options, err := s.OpenOptions(ctx)
	if err != nil {
		return nil, err
	}
	snapshots, err := s.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	all := map[string]Record{}
	for i, op := range operations {
		all[op.VPS] = Record{Operation: &operations[i]}
	}
	for i, o := range options {
		rec := all[o.VPS]
		rec.Option = &options[i]
		all[o.VPS] = rec
	}
	for i, snap := range snapshots {
		rec := all[snap.VPS]
		if rec.Snapshot == nil || rank(snap.State) < rank(rec.Snapshot.State) {
			rec.Snapshot = &snapshots[i]
		}
		all[snap.VPS] = rec
	}
	damaged, err := s.DamagedRows(ctx)
	for _, d := range damaged {
		if d.Open && d.VPS != "" {
			rec := all[d.VPS]
			rec.damaged(d.Kind)
			all[d.VPS] = rec
		}
	}
	return all, err
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
