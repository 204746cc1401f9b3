package api

import (
	"errors"
	"fmt"
	"net/http"

	"eboot"
)

// errorTable is the one place where sentinels become codes and statuses, and
// codes become sentinels again. Order matters: the first match wins.
var errorTable = []struct {
	sentinel error
	code     string
	status   int
}{
	{eboot.ErrInvalid, "invalid", http.StatusBadRequest},
	{eboot.ErrTooLarge, "too_large", http.StatusRequestEntityTooLarge},
	{eboot.ErrNotFound, "not_found", http.StatusNotFound},
	{eboot.ErrConflict, "conflict", http.StatusConflict},
	{eboot.ErrUnauthenticated, "unauthenticated", http.StatusUnauthorized},
	{eboot.ErrDenied, "denied", http.StatusForbidden},
	{eboot.ErrNoLeader, "no_leader", http.StatusServiceUnavailable},
	{eboot.ErrUnknownOutcome, "unknown_outcome", http.StatusGatewayTimeout},
	{eboot.ErrTimeout, "timeout", http.StatusGatewayTimeout},
	{eboot.ErrDamaged, "damaged", http.StatusInternalServerError},
	{eboot.ErrUnreachable, "unreachable", http.StatusBadGateway},
	{eboot.ErrUnavailable, "unavailable", http.StatusServiceUnavailable},
}

const (
	codeInternal         = "internal"
	codeMethodNotAllowed = "method_not_allowed"
)

// ErrorBody is the JSON of every reply that is not a success.
type ErrorBody struct {
	Error ErrorDetail `json:"error"`
}

// ErrorDetail is the code, one of a fixed set, and the text for people.
type ErrorDetail struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// describe returns the JSON and the HTTP status for err.
func describe(err error) (ErrorBody, int) {
	for _, row := range errorTable {
		if errors.Is(err, row.sentinel) {
			return ErrorBody{Error: ErrorDetail{Code: row.code, Message: err.Error()}}, row.status
		}
	}
	return ErrorBody{Error: ErrorDetail{Code: codeInternal, Message: err.Error()}}, http.StatusInternalServerError
}

// DescribeError returns the JSON that the API would send for err.
func DescribeError(err error) ErrorBody {
	body, _ := describe(err)
	return body
}

// remoteError is an error that a server reported. Its text is the server's; it
// unwraps to the sentinel of its code, so that errors.Is works across the wire.
type remoteError struct {
	message  string
	sentinel error
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.sentinel }

// restore turns what a server reported back into an error.
func restore(detail ErrorDetail, status int) error {
	for _, row := range errorTable {
		if row.code == detail.Code {
			return &remoteError{message: detail.Message, sentinel: row.sentinel}
		}
	}
	if detail.Message == "" {
		detail.Message = fmt.Sprintf("the server answered HTTP status %d without an explanation; is this an eboot API address, and does it want https://?", status)
	}
	return &remoteError{message: detail.Message}
}
