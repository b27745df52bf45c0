package client

import (
	"context"
	"errors"
	"time"

	"vpssnapd/api"
)

// silence is how long Await bears a daemon that does not answer: it may be
// restarting, and its operations go on afterwards.
const silence = time.Minute

// Ended reports whether op is final, or parked until an operator resumes it.
func Ended(op api.Operation) bool {
	switch op.Status {
	case api.OperationStatusPending, api.OperationStatusRunning:
		return false
	}
	return true
}

// Await returns op when it has ended. seen is called with every answer, at
// least once per interval; it may be nil.
func (c *Client) Await(
	ctx context.Context, op api.Operation, interval time.Duration, seen func(api.Operation),
) (api.Operation, error) {
	lost := time.Time{}
	for {
		if seen != nil {
			seen(op)
		}
		if Ended(op) {
			return op, nil
		}
		next, err := c.WaitOperation(ctx, op.ID, interval)
		var unreachable *UnreachableError
		switch {
		case err == nil:
			op, lost = next, time.Time{}
			continue
		case !errors.As(err, &unreachable) && CodeOf(err) != api.CodeHypervisorUnavailable:
			return op, err
		case lost.IsZero():
			lost = time.Now()
		case time.Since(lost) > silence:
			return op, err
		}
		select {
		case <-ctx.Done():
			return op, ctx.Err()
		case <-time.After(interval):
		}
	}
}
