package operation

import (
	"context"
	"errors"
	"fmt"
)

// Step is one part of an operation: what it does and, beside it, how to take
// that back. Both may run again after a crash, so both must look at the host
// before they change it.
type Step struct {
	// Name is a stable string; it is stored, and found again after a restart.
	Name string
	// Do brings the step about.
	Do func(ctx context.Context, r *Run) error
	// Undo takes Do back, done or half done; nil when there is nothing to take back. That
	// of an irrevocable step is asked when an operator cancels the operation, parked there.
	Undo func(ctx context.Context, r *Run) error
	// Irrevocable: from the moment this step begins the operation can no
	// longer be cancelled. Its Do is not interrupted, an error in it is
	// retried and then parked, unless it says otherwise (RollBack, Fail, Back).
	Irrevocable bool
	// Uncut: the host should not go down within it, and not between it and another
	// such step: a guest is paused, or its disks are not all switched. A cancel is heard
	// before and after it, and does not interrupt it.
	Uncut bool
}

// Plan is the steps of an operation, in order.
type Plan []Step

func (p Plan) index(name string) int {
	for i, s := range p {
		if s.Name == name {
			return i
		}
	}
	return -1
}

// verdictError is an error that says what shall become of the operation.
type verdictError struct {
	verdict verdict
	step    string
	err     error
}

type verdict string

const (
	verdictRollBack verdict = "roll back"
	verdictFail     verdict = "fail"
	verdictPark     verdict = "park"
	verdictBack     verdict = "back"
	verdictForward  verdict = "forward"
)

func (e *verdictError) Error() string { return fmt.Sprintf("%s: %v", e.verdict, e.err) }
func (e *verdictError) Unwrap() error { return e.err }

// RollBack is for a host that is known to be as before the step: undo all and fail.
func RollBack(err error) error { return &verdictError{verdictRollBack, "", err} }

// Fail ends the operation as it stands, without undo: everything is whole and
// the operation can be asked for again.
func Fail(err error) error { return &verdictError{verdictFail, "", err} }

// Park leaves the operation to an operator, at this step.
func Park(err error) error { return &verdictError{verdictPark, "", err} }

// Back goes back to an earlier step because the host has changed.
func Back(step string, err error) error { return &verdictError{verdictBack, step, err} }

// Forward says, in the Undo of an irrevocable step, that too much has happened to take it
// back: the operation is parked again, to be finished.
func Forward(err error) error { return &verdictError{verdictForward, "", err} }

func verdictOf(err error) (verdict, string) {
	if v, ok := errors.AsType[*verdictError](err); ok {
		return v.verdict, v.step
	}
	return "", ""
}
