package client

import (
	"errors"
	"fmt"

	"vpssnapd/api"
)

// Error is what the daemon answered instead of doing what it was asked.
type Error struct {
	Code   api.Code
	Status int
	// Detail says what could not be done and why, Remedy what to do about it.
	Detail    string
	Remedy    string
	RequestID string
}

func (e *Error) Error() string { return e.Detail }

// UnreachableError: no answer came. Whether the daemon did what it
// was asked is unknown.
type UnreachableError struct {
	Address string
	Err     error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("vpssnapd does not answer on %s: %v", e.Address, e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// CodeOf returns the code of err, "" when the daemon gave none.
func CodeOf(err error) api.Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}
