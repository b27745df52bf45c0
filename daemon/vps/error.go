package vps

import (
	"context"
	"errors"
	"fmt"
)

// Code tells a program what went wrong. The set is part of the REST contract.
type Code string

const (
	// CodeUnauthenticated: no valid token was shown.
	CodeUnauthenticated Code = "unauthenticated"
	// CodeForbidden: the caller is known, but may not do this.
	CodeForbidden Code = "forbidden"
	// CodeNotFound: no such VPS, snapshot, option or operation (or none of the caller's).
	CodeNotFound Code = "not_found"
	// CodeOptionRequired: the VPS has no active snapshot option.
	CodeOptionRequired Code = "option_required"
	// CodeSnapshotExists: the VPS has its one snapshot already.
	CodeSnapshotExists Code = "snapshot_exists"
	// CodeOperationInProgress: another operation of this VPS is not finished.
	CodeOperationInProgress Code = "operation_in_progress"
	// CodeVPSChanged: the VPS is no longer as the record or the caller believes it to be.
	CodeVPSChanged Code = "vps_changed"
	// CodeConfirmationRequired: the call destroys data and was not confirmed.
	CodeConfirmationRequired Code = "confirmation_required"
	// CodePreconditionFailed: what was to be changed is no longer what the caller had seen.
	CodePreconditionFailed Code = "precondition_failed"
	// CodeInvalid: the request is malformed or asks for what cannot be.
	CodeInvalid Code = "invalid"
	// CodeUnsupportedDisk: the VPS cannot have a snapshot as it is built.
	CodeUnsupportedDisk Code = "unsupported_disk"
	// CodeInsufficientSpace: a file system is too full for this.
	CodeInsufficientSpace Code = "insufficient_space"
	// CodeHypervisorUnavailable: libvirt does not answer. May be repeated.
	CodeHypervisorUnavailable Code = "hypervisor_unavailable"
	// CodeGuestUnresponsive: the guest agent did not do what was required of it in time.
	// Seen only in the error of an operation.
	CodeGuestUnresponsive Code = "guest_unresponsive"
	// CodeRateLimited: too many requests. May be repeated later.
	CodeRateLimited Code = "rate_limited"
	// CodeInternal: our own fault; the detail is in the daemon's log.
	CodeInternal Code = "internal"
)

// Error is a failure that a caller is meant to read.
type Error struct {
	Code Code
	// Detail says what could not be done, to whom it belongs and why.
	Detail string
	// Remedy says what to do next; may be empty.
	Remedy string
	// Err is the cause, for the log. It is never sent to a caller.
	Err error

	// What Detail and Remedy were made of; nothing when they were read from the record.
	detail, remedy Words
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Detail, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Detail)
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error without a remedy.
func Errorf(code Code, format string, args ...any) *Error {
	return Refuse(code, Say(format, args...), Words{})
}

// Refuse makes an Error of its words; the remedy may be empty.
func Refuse(code Code, detail, remedy Words) *Error {
	return &Error{Code: code, Detail: detail.String(), Remedy: remedy.String(), detail: detail, remedy: remedy}
}

// WithRemedy returns a copy of e that says what to do next.
func (e *Error) WithRemedy(format string, args ...any) *Error {
	c := *e
	c.remedy = Say(format, args...)
	c.Remedy = c.remedy.String()
	return &c
}

// In returns e as a customer reads it in a language.
func (e *Error) In(l Language) *Error {
	told := &Error{Code: e.Code, Detail: e.detail.InOr(l, e.Code)}
	if e.Remedy != "" {
		var ok bool
		if told.Remedy, ok = e.remedy.In(l); !ok {
			told.Remedy = e.Code.remedy(l)
		}
	}
	return told
}

// Because returns a copy of e that carries its cause for the log.
func (e *Error) Because(err error) *Error {
	c := *e
	c.Err = err
	return &c
}

// Readable is what a caller may read of err, whatever way the call came by: what
// was not written for a caller becomes CodeInternal, whose detail is in the log.
func Readable(err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Because(nil)
	case errors.Is(err, context.DeadlineExceeded):
		return Errorf(CodeHypervisorUnavailable, "it took too long").WithRemedy("try again")
	}
	return Errorf(CodeInternal, "something went wrong inside vpssnapd; its log says what")
}

// CodeOf returns the code of err, CodeInternal if it has none, "" for nil.
func CodeOf(err error) Code {
	var e *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Code
	}
	return CodeInternal
}
