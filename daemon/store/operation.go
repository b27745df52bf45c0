package store

import (
	"context"
	"time"

	"vpssnapd/daemon/vps"
)

const operationColumns = `id, vps, vps_name, kind, status, step, irrevocable, cancel_requested, actor_name, actor_way,
	snapshot, created_at, started_at, ended_at, error_code, error_detail, error_remedy, result, request, plan,
	longest_pause_ms`

func scanOperation(row scanner) (vps.Operation, error) {
	var o vps.Operation
	var e vps.Error
	err := row.Scan(&o.ID, &o.VPS, &o.VPSName, &o.Kind, &o.Status, &o.Step, &o.Irrevocable, &o.CancelRequested,
		&o.Actor.Name, &o.Actor.Way, &o.SnapshotID, moment{&o.CreatedAt}, momentOrNil{&o.StartedAt}, momentOrNil{&o.EndedAt},
		&e.Code, &e.Detail, &e.Remedy, &o.Result, &o.Request, &o.Plan, &o.LongestPauseMS)
	if e.Code != "" {
		o.Error = &e
	}
	return o, err
}

// Operation returns one operation; sql.ErrNoRows when there is none.
func (s queries) Operation(ctx context.Context, id string) (vps.Operation, error) {
	return scanOperation(s.q.QueryRowContext(ctx, `SELECT `+operationColumns+` FROM operation WHERE id = ?`, id))
}

// NewOperationID makes an id that sorts behind those of all operations on record.
func (s queries) NewOperationID(ctx context.Context, now time.Time) (string, error) {
	var last string
	err := s.q.QueryRowContext(ctx, `SELECT coalesce(max(id), '') FROM operation`).Scan(&last)
	return vps.NewOperationID(now, last), err
}

// ActiveOperation returns the operation of a VPS that is not final; sql.ErrNoRows when
// there is none. A unique index makes sure that there is one at most.
func (s queries) ActiveOperation(ctx context.Context, vpsID string) (vps.Operation, error) {
	return scanOperation(s.q.QueryRowContext(ctx, `SELECT `+operationColumns+` FROM operation
		WHERE vps = ? AND status IN ('pending', 'running', 'needs_attention')`, vpsID))
}

// ActiveOperations returns every operation that is not final, oldest first.
func (s queries) ActiveOperations(ctx context.Context) ([]vps.Operation, error) {
	rows, err := s.q.QueryContext(ctx, `SELECT `+operationColumns+` FROM operation
		WHERE status IN ('pending', 'running', 'needs_attention') ORDER BY id`)
	return collect(rows, err, scanOperation)
}

// Operations returns one page, newest first. Limit must be positive.
func (s queries) Operations(ctx context.Context, q vps.OperationQuery) (vps.OperationPage, error) {
	var f filter
	if q.VPS != "" {
		f.add("vps = ?", q.VPS)
	}
	switch {
	case q.Status != "" && q.VPS != "":
		f.add("+status = ?", q.Status) // one VPS has fewer operations than one status
	case q.Status != "":
		f.add("status = ?", q.Status)
	}
	if q.Before != "" {
		f.add("id < ?", q.Before)
	}
	rows, err := s.q.QueryContext(ctx, `SELECT `+operationColumns+` FROM operation`+f.where()+` ORDER BY id DESC LIMIT ?`,
		append(f.args, q.Limit+1)...)
	all, err := collect(rows, err, scanOperation)
	page := vps.OperationPage{Operations: all}
	if len(all) > q.Limit {
		page.Operations = all[:q.Limit]
		page.Next = all[q.Limit-1].ID
	}
	return page, err
}

// InsertOperation makes an operation durable. IsUnique(err) reports whether the VPS
// has another one that is not final.
func (t *Tx) InsertOperation(ctx context.Context, o vps.Operation) error {
	if err := t.tellOperation(ctx, o); err != nil {
		return err
	}
	code, detail, remedy := errorColumns(o.Error)
	return t.exec(ctx, `INSERT INTO operation (`+operationColumns+`) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`,
		o.ID, o.VPS, o.VPSName, o.Kind, o.Status, o.Step, o.Irrevocable, o.CancelRequested, o.Actor.Name, o.Actor.Way,
		o.SnapshotID, micros(o.CreatedAt), microsOrNull(o.StartedAt), microsOrNull(o.EndedAt),
		code, detail, remedy, o.Result, o.Request, o.Plan, o.LongestPauseMS)
}

// SaveOperation updates what changes in an operation, all but CancelRequested and
// LongestPauseMS. CancelRequested is written by RequestCancel alone, or a step that saves
// would take the request back.
func (t *Tx) SaveOperation(ctx context.Context, o vps.Operation) error {
	if err := t.tellOperation(ctx, o); err != nil {
		return err
	}
	code, detail, remedy := errorColumns(o.Error)
	return t.execOne(
		ctx,
		`UPDATE operation SET status = ?, step = ?, irrevocable = ?, snapshot = ?, started_at = ?, ended_at = ?,
		error_code = ?, error_detail = ?, error_remedy = ?, result = ?, plan = ? WHERE id = ?`,
		o.Status,
		o.Step,
		o.Irrevocable,
		o.SnapshotID,
		microsOrNull(o.StartedAt),
		microsOrNull(o.EndedAt),
		code,
		detail,
		remedy,
		o.Result,
		o.Plan,
		o.ID,
	)
}

// NotePause notes how long a guest was suspended for the operation that works on it, if
// that is its longest pause.
func (t *Tx) NotePause(ctx context.Context, vpsID string, long time.Duration) error {
	return t.exec(ctx, `UPDATE operation SET longest_pause_ms = max(longest_pause_ms, ?)
		WHERE vps = ? AND status IN ('pending', 'running', 'needs_attention')`, max(1, long.Milliseconds()), vpsID)
}

// RequestCancel marks an operation that is neither final nor irrevocable. sql.ErrNoRows
// (wrapped) when it is. The condition is in the statement, so that it cannot come too
// late.
func (t *Tx) RequestCancel(ctx context.Context, id string) error {
	return t.execOne(ctx, `UPDATE operation SET cancel_requested = 1
		WHERE id = ? AND irrevocable = 0 AND status IN ('pending', 'running')`, id)
}

// DropCancel forgets that a cancel was asked for: it cannot be obeyed.
func (t *Tx) DropCancel(ctx context.Context, id string) error {
	return t.execOne(ctx, `UPDATE operation SET cancel_requested = 0 WHERE id = ?`, id)
}

func errorColumns(e *vps.Error) (code vps.Code, detail, remedy string) {
	if e == nil {
		return "", "", ""
	}
	return e.Code, e.Detail, e.Remedy
}
