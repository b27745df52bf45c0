package server

import (
	"context"
	"errors"
	"strings"
	"time"

	"vpssnapd/daemon/vps"
)

// Operations knows the long work.
type Operations interface {
	Operation(ctx context.Context, id string) (vps.Operation, error)
	Operations(ctx context.Context, q vps.OperationQuery) (vps.OperationPage, error)
	WaitOperation(ctx context.Context, id string, limit time.Duration) (vps.Operation, error)
	CancelOperation(ctx context.Context, id string, a vps.Actor) (vps.Operation, error)
	ResumeOperation(ctx context.Context, id string, a vps.Actor) (vps.Operation, error)
}

const defaultLimit = 50

// Like messages it reads on for a bound caller who owns little of a page.
func (h *handlers) ListOperations(ctx context.Context, r ListOperationsRequestObject) (ListOperationsResponseObject, error) {
	before, err := readCursor(cursorOperation, r.Params.Cursor)
	if err != nil {
		return nil, err
	}
	q := vps.OperationQuery{Status: vps.Status(value(r.Params.Status)), Before: before, Limit: limit(r.Params.Limit)}
	asked := value(r.Params.VPS)
	if asked != "" {
		if asked, err = h.find(ctx, asked); err != nil {
			return nil, err
		}
	}
	newer := func(a, b vps.Operation) int { return strings.Compare(b.ID, a.ID) }
	all, more, err := merged(callerOf(ctx), asked, q.Limit, newer, func(id string) ([]vps.Operation, bool, error) {
		q.VPS = id
		page, err := h.services.Operations.Operations(ctx, q)
		return page.Operations, page.Next != "", err
	})
	if err != nil {
		return nil, err
	}
	list := ListOperations200JSONResponse{Operations: each(all, readerOf(ctx).operation)}
	if more && len(all) > 0 {
		list.Next = cursorOf(cursorOperation, all[len(all)-1].ID)
	}
	return list, nil
}

// With wait it answers when the operation ends, or when the time is over; neither is an
// error.
func (h *handlers) ShowOperation(ctx context.Context, r ShowOperationRequestObject) (ShowOperationResponseObject, error) {
	if text := value(r.Params.Wait); text != "" {
		wait, err := time.ParseDuration(text)
		if err != nil {
			return nil, invalid("the parameter wait is no duration")
		}
		if err := h.await(ctx, r.ID, min(wait, maxWait)); err != nil {
			return nil, err
		}
		if ctx, err = recheck(ctx); err != nil { // its token may be over by now
			return nil, err
		}
	}
	return h.showOperation(ctx, r.ID)
}

func (h *handlers) showOperation(ctx context.Context, id string) (ShowOperationResponseObject, error) {
	op, err := h.operation(ctx, id)
	if err != nil {
		return nil, err
	}
	return ShowOperation200JSONResponse(readerOf(ctx).operation(op)), nil
}

// await returns early when the server shuts down: the caller asks again, and
// finds the next daemon. It returns no operation, and is small: with one in each of
// three frames, the stack of every call that waits had 32 KiB instead of 16.
func (h *handlers) await(ctx context.Context, id string, limit time.Duration) error {
	if _, err := h.operation(ctx, id); err != nil {
		return err
	}
	leave, err := h.lasting.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.closing, cancel)()
	_, err = h.services.Operations.WaitOperation(waiting, id, limit)
	if errors.Is(err, context.Canceled) && ctx.Err() == nil {
		return nil
	}
	return err
}

// Read first, so that nobody cancels another customer's.
func (h *handlers) CancelOperation(
	ctx context.Context, r CancelOperationRequestObject,
) (CancelOperationResponseObject, error) {
	if _, err := h.operation(ctx, r.ID); err != nil {
		return nil, err
	}
	op, err := h.services.Operations.CancelOperation(ctx, r.ID, callerOf(ctx).actor)
	return CancelOperation202JSONResponse{accepted(ctx, op)}, err
}

func (h *handlers) ResumeOperation(
	ctx context.Context, r ResumeOperationRequestObject,
) (ResumeOperationResponseObject, error) {
	if _, err := h.operation(ctx, r.ID); err != nil {
		return nil, err
	}
	op, err := h.services.Operations.ResumeOperation(ctx, r.ID, callerOf(ctx).actor)
	return ResumeOperation202JSONResponse{accepted(ctx, op)}, err
}

// operation reads one that the caller may see. Somebody else's and an unknown
// one give the same error.
func (h *handlers) operation(ctx context.Context, id string) (vps.Operation, error) {
	op, err := h.services.Operations.Operation(ctx, id)
	if vps.CodeOf(err) == vps.CodeNotFound {
		return vps.Operation{}, errNoOperation()
	}
	if err != nil {
		return vps.Operation{}, err
	}
	if !callerOf(ctx).sees(op.VPS) {
		return vps.Operation{}, errNoOperation()
	}
	return op, nil
}

// limit is the size of a page.
func limit(asked *int) int {
	if asked == nil {
		return defaultLimit
	}
	return *asked
}

// value is what a parameter says, its zero value when it was left out.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
