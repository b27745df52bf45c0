package servertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"vpssnapd/daemon/vps"
)

func (s *Service) Snapshot(_ context.Context, ref string) (vps.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	if err != nil {
		return vps.Snapshot{}, err
	}
	if v.Snapshot == nil {
		return vps.Snapshot{}, vps.Errorf(vps.CodeNotFound, "%s has no snapshot", v.Name)
	}
	return *v.Snapshot, nil
}

func (s *Service) DescribeSnapshot(_ context.Context, ref, description string, a vps.Actor) (vps.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.withSnapshot(ref)
	if err != nil {
		return vps.Snapshot{}, err
	}
	s.called("describe", v.Name, a)
	v.Snapshot.Description = description
	return *v.Snapshot, nil
}

func (s *Service) withSnapshot(ref string) (*vps.VPS, error) {
	v, err := s.find(ref)
	if err == nil && v.Snapshot == nil {
		err = vps.Errorf(vps.CodeNotFound, "%s has no snapshot", v.Name)
	}
	return v, err
}

func (s *Service) Take(_ context.Context, ref string, r vps.TakeRequest, a vps.Actor) (vps.Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	switch {
	case err != nil:
		return vps.Operation{}, err
	case v.Option == nil || v.Option.State != vps.OptionActive:
		return vps.Operation{}, vps.Errorf(vps.CodeOptionRequired, "%s has no active snapshot option", v.Name).
			WithRemedy("order the option first")
	case v.Snapshot != nil && !r.Replace:
		return vps.Operation{}, vps.Errorf(vps.CodeSnapshotExists, "%s has a snapshot already", v.Name).
			WithRemedy("delete it, or replace it")
	}
	op, err := s.begin("take", vps.KindTake, v, a)
	if err == nil {
		v.Snapshot = s.snapshot(v.ID, r.Description)
	}
	return op, err
}

func (s *Service) Restore(_ context.Context, ref string, r vps.RestoreRequest, a vps.Actor) (vps.Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.withSnapshot(ref)
	switch {
	case err != nil:
		return vps.Operation{}, err
	case r.Confirm == "":
		return vps.Operation{}, vps.Errorf(vps.CodeConfirmationRequired,
			"everything written to %s since the snapshot will be lost; for 24 hours it can be undone", v.Name).
			WithRemedy("send the snapshot's id as confirm")
	case r.Confirm != v.Snapshot.ID:
		return vps.Operation{}, vps.Errorf(vps.CodeVPSChanged, "%s has another snapshot now", v.Name)
	}
	op, err := s.begin("restore", vps.KindRestore, v, a)
	if err == nil {
		until := Epoch.Add(24 * time.Hour)
		v.Snapshot.RestoredAt, v.Snapshot.UndoUntil = &Epoch, &until
	}
	return op, err
}

func (s *Service) UndoRestore(_ context.Context, ref string, a vps.Actor) (vps.Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.withSnapshot(ref)
	if err != nil {
		return vps.Operation{}, err
	}
	return s.begin("undo-restore", vps.KindUndoRestore, v, a)
}

func (s *Service) Delete(_ context.Context, ref string, a vps.Actor) (vps.Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.withSnapshot(ref)
	if err != nil {
		return vps.Operation{}, err
	}
	op, err := s.begin("delete", vps.KindDelete, v, a)
	if err == nil {
		v.Snapshot = nil
	}
	return op, err
}

func (s *Service) begin(what string, kind vps.Kind, v *vps.VPS, a vps.Actor) (vps.Operation, error) {
	if v.Operation != nil {
		return vps.Operation{}, vps.Errorf(vps.CodeOperationInProgress, "another operation of %s is not finished", v.Name)
	}
	s.called(what, v.Name, a)
	op := &vps.Operation{
		ID: fmt.Sprintf("op-%d", len(s.ops)+1), VPS: v.ID, VPSName: v.Name, Kind: kind,
		Status: vps.StatusPending, Step: "waiting", Actor: a, CreatedAt: Epoch, Request: []byte("secret"),
	}
	s.ops = append(s.ops, op)
	return *op, nil
}

// advance moves op one status on.
func (s *Service) advance(op *vps.Operation) {
	eta := int64(3)
	switch {
	case s.Hold || op.Status.Final() || op.Status == vps.StatusNeedsAttention:
	case op.Status == vps.StatusPending:
		op.Status, op.Step, op.StartedAt = vps.StatusRunning, "copying", &Epoch
		op.Progress = vps.Progress{DoneBytes: 1 << 30, TotalBytes: 4 << 30, Percent: 25, ETASeconds: &eta}
	case s.Outcome == vps.StatusFailed, s.Outcome == vps.StatusNeedsAttention:
		op.Status, op.EndedAt = s.Outcome, &Epoch
		op.Error = vps.Errorf(vps.CodeInsufficientSpace, "the disk is full").WithRemedy("make room")
	case op.CancelRequested, s.Outcome == vps.StatusCancelled:
		op.Status, op.EndedAt = vps.StatusCancelled, &Epoch
	default:
		op.Status, op.Step, op.EndedAt, op.Result = vps.StatusSucceeded, "", &Epoch, "All went well."
		op.Progress = vps.Progress{DoneBytes: 4 << 30, TotalBytes: 4 << 30, Percent: 100}
	}
}

func (s *Service) operation(id string) (*vps.Operation, error) {
	if s.Err != nil {
		return nil, s.Err
	}
	for _, op := range s.ops {
		if op.ID == id {
			return op, nil
		}
	}
	return nil, vps.Errorf(vps.CodeNotFound, "no such operation")
}

func (s *Service) Operation(_ context.Context, id string) (vps.Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op, err := s.operation(id)
	if err != nil {
		return vps.Operation{}, err
	}
	return *op, nil
}

// WaitOperation moves the operation on by one status, or with Hold really waits.
func (s *Service) WaitOperation(ctx context.Context, id string, limit time.Duration) (vps.Operation, error) {
	s.mu.Lock()
	hold := s.Hold
	s.mu.Unlock()
	if hold {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		s.waiting.Add(1)
		defer s.waiting.Add(-1)
		<-ctx.Done()
		if errors.Is(ctx.Err(), context.Canceled) {
			return vps.Operation{}, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	op, err := s.operation(id)
	if err != nil {
		return vps.Operation{}, err
	}
	s.advance(op)
	return *op, nil
}

// Waiting counts the calls that wait because of Hold.
func (s *Service) Waiting() int { return int(s.waiting.Load()) }

func (s *Service) CancelOperation(_ context.Context, id string, a vps.Actor) (vps.Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op, err := s.operation(id)
	if err != nil {
		return vps.Operation{}, err
	}
	if op.Status.Final() {
		return vps.Operation{}, vps.Errorf(vps.CodeInvalid, "the operation has ended")
	}
	s.called("cancel", op.ID, a)
	op.CancelRequested = true
	return *op, nil
}

func (s *Service) ResumeOperation(_ context.Context, id string, a vps.Actor) (vps.Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op, err := s.operation(id)
	if err != nil {
		return vps.Operation{}, err
	}
	if op.Status != vps.StatusNeedsAttention {
		return vps.Operation{}, vps.Errorf(vps.CodeInvalid, "the operation is not parked")
	}
	s.called("resume", op.ID, a)
	op.Status, op.Error, op.EndedAt = vps.StatusRunning, nil, nil
	s.Outcome = vps.StatusSucceeded
	return *op, nil
}

func (s *Service) Operations(_ context.Context, q vps.OperationQuery) (vps.OperationPage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var page vps.OperationPage
	skip := q.Before != ""
	for _, op := range slices.Backward(s.ops) {

		if skip {
			skip = op.ID != q.Before
			continue
		}
		if q.VPS != "" && op.VPS != q.VPS || q.Status != "" && op.Status != q.Status {
			continue
		}
		if len(page.Operations) == q.Limit {
			page.Next = page.Operations[q.Limit-1].ID
			break
		}
		page.Operations = append(page.Operations, *op)
	}
	return page, s.Err
}
