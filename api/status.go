package api

import "net/http"

// statuses is the one table from code to HTTP status.
var statuses = map[Code]int{
	CodeInvalid:               http.StatusBadRequest,
	CodeUnauthenticated:       http.StatusUnauthorized,
	CodeOptionRequired:        http.StatusPaymentRequired,
	CodeForbidden:             http.StatusForbidden,
	CodeNotFound:              http.StatusNotFound,
	CodeSnapshotExists:        http.StatusConflict,
	CodeOperationInProgress:   http.StatusConflict,
	CodeVPSChanged:            http.StatusConflict,
	CodePreconditionFailed:    http.StatusPreconditionFailed,
	CodeConfirmationRequired:  http.StatusUnprocessableEntity,
	CodeUnsupportedDisk:       http.StatusUnprocessableEntity,
	CodeRateLimited:           http.StatusTooManyRequests,
	CodeInternal:              http.StatusInternalServerError,
	CodeHypervisorUnavailable: http.StatusServiceUnavailable,
	CodeGuestUnresponsive:     http.StatusGatewayTimeout,
	CodeInsufficientSpace:     http.StatusInsufficientStorage,
}

// HTTPStatus is the status that goes with c.
func (c Code) HTTPStatus() int {
	if s, ok := statuses[c]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// CodeForStatus reads the table backwards, for an answer that is no problem
// document (a proxy's, say). Where several codes share a status it cannot
// tell, and says internal.
func CodeForStatus(status int) Code {
	found := CodeInternal
	for c, s := range statuses {
		if s != status {
			continue
		}
		if found != CodeInternal {
			return CodeInternal
		}
		found = c
	}
	return found
}
