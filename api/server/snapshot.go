package server

import (
	"context"

	"vpssnapd/api"
	"vpssnapd/daemon/vps"
)

// Snapshots takes, restores and deletes snapshots.
type Snapshots interface {
	Snapshot(ctx context.Context, ref string) (vps.Snapshot, error)
	DescribeSnapshot(ctx context.Context, ref, description string, a vps.Actor) (vps.Snapshot, error)
	Take(ctx context.Context, ref string, r vps.TakeRequest, a vps.Actor) (vps.Operation, error)
	Restore(ctx context.Context, ref string, r vps.RestoreRequest, a vps.Actor) (vps.Operation, error)
	UndoRestore(ctx context.Context, ref string, a vps.Actor) (vps.Operation, error)
	Delete(ctx context.Context, ref string, a vps.Actor) (vps.Operation, error)
}

// Vouchers takes the word of operators.
type Vouchers interface {
	Vouch(ctx context.Context, ref, confirm string, a vps.Actor) (vps.Snapshot, error)
}

func (h *handlers) ShowSnapshot(ctx context.Context, r ShowSnapshotRequestObject) (ShowSnapshotResponseObject, error) {
	id, err := h.resolve(ctx, r.VPS)
	if err != nil {
		return nil, err
	}
	s, err := h.services.Snapshots.Snapshot(ctx, id)
	if err != nil {
		return nil, err
	}
	return ShowSnapshot200JSONResponse{
		Body:    readerOf(ctx).snapshot(s),
		Headers: ShowSnapshot200ResponseHeaders{ETag: etag(s.Version())},
	}, nil
}

func (h *handlers) DescribeSnapshot(
	ctx context.Context, r DescribeSnapshotRequestObject,
) (DescribeSnapshotResponseObject, error) {
	id, err := h.resolve(ctx, r.VPS)
	if err != nil {
		return nil, err
	}
	s, err := h.services.Snapshots.DescribeSnapshot(ctx, id, r.Body.Description, callerOf(ctx).actor)
	if err != nil {
		return nil, err
	}
	return DescribeSnapshot200JSONResponse{
		Body:    readerOf(ctx).snapshot(s),
		Headers: DescribeSnapshot200ResponseHeaders{ETag: etag(s.Version())},
	}, nil
}

func (h *handlers) TakeSnapshot(ctx context.Context, r TakeSnapshotRequestObject) (TakeSnapshotResponseObject, error) {
	var b api.TakeRequest
	if r.Body != nil {
		b = *r.Body
	}
	done, err := h.begin(ctx, r.VPS, func(id string, a vps.Actor) (vps.Operation, error) {
		return h.services.Snapshots.Take(ctx, id, vps.TakeRequest{
			Description: b.Description,
			Quiesce:     vps.Quiesce(b.Quiesce),
			Replace:     b.Replace,
		}, a)
	})
	return TakeSnapshot202JSONResponse{done}, err
}

func (h *handlers) RestoreSnapshot(
	ctx context.Context, r RestoreSnapshotRequestObject,
) (RestoreSnapshotResponseObject, error) {
	var b api.RestoreRequest
	if r.Body != nil {
		b = *r.Body
	}
	done, err := h.begin(ctx, r.VPS, func(id string, a vps.Actor) (vps.Operation, error) {
		return h.services.Snapshots.Restore(ctx, id, vps.RestoreRequest{
			Confirm:    b.Confirm,
			PowerAfter: vps.PowerAfter(b.PowerAfter),
		}, a)
	})
	return RestoreSnapshot202JSONResponse{done}, err
}

func (h *handlers) UndoRestore(ctx context.Context, r UndoRestoreRequestObject) (UndoRestoreResponseObject, error) {
	done, err := h.begin(ctx, r.VPS, func(id string, a vps.Actor) (vps.Operation, error) {
		return h.services.Snapshots.UndoRestore(ctx, id, a)
	})
	return UndoRestore202JSONResponse{done}, err
}

func (h *handlers) VouchForSnapshot(
	ctx context.Context, r VouchForSnapshotRequestObject,
) (VouchForSnapshotResponseObject, error) {
	var b api.VouchRequest
	if r.Body != nil {
		b = *r.Body
	}
	id, err := h.resolve(ctx, r.VPS)
	if err != nil {
		return nil, err
	}
	s, err := h.services.Vouchers.Vouch(ctx, id, b.Confirm, callerOf(ctx).actor)
	if err != nil {
		return nil, err
	}
	return VouchForSnapshot200JSONResponse{
		Body:    readerOf(ctx).snapshot(s),
		Headers: VouchForSnapshot200ResponseHeaders{ETag: etag(s.Version())},
	}, nil
}

func (h *handlers) DeleteSnapshot(ctx context.Context, r DeleteSnapshotRequestObject) (DeleteSnapshotResponseObject, error) {
	done, err := h.begin(ctx, r.VPS, func(id string, a vps.Actor) (vps.Operation, error) {
		return h.services.Snapshots.Delete(ctx, id, a)
	})
	return DeleteSnapshot202JSONResponse{done}, err
}

// begin starts long work on the VPS behind ref and answers with the operation.
func (h *handlers) begin(
	ctx context.Context, ref string, start func(id string, a vps.Actor) (vps.Operation, error),
) (AcceptedJSONResponse, error) {
	id, err := h.resolve(ctx, ref)
	if err != nil {
		return AcceptedJSONResponse{}, err
	}
	op, err := start(id, callerOf(ctx).actor)
	if err != nil {
		return AcceptedJSONResponse{}, err
	}
	return accepted(ctx, op), nil
}

func location(op vps.Operation) string { return "/v1/operations/" + op.ID }

// accepted answers with an operation, and names it in the request's line of the log.
func accepted(ctx context.Context, op vps.Operation) AcceptedJSONResponse {
	noteOf(ctx).operation = op.ID
	return AcceptedJSONResponse{
		Body:    readerOf(ctx).operation(op),
		Headers: AcceptedResponseHeaders{Location: location(op)},
	}
}
