// Package wireerr holds the error texts and HTTP statuses that clients match on. They are part of the wire format:
// spec/registry.md section 1.6 and spec/state.md section 1.9.
package wireerr

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Errors every layer may return. Their texts are matched by clients.
var (
	ErrNoLeader         = errors.New("No cluster leader")
	ErrNoServers        = errors.New("No known Consul servers")
	ErrNoDatacenter     = errors.New("No path to datacenter")
	ErrNotReady         = errors.New("Not ready to serve consistent reads")
	ErrPermissionDenied = errors.New("Permission denied")
	ErrTokenNotFound    = errors.New("ACL not found")
	ErrACLDisabled      = errors.New("ACL support disabled")
	ErrRateLimited      = errors.New("rate limit exceeded, try again later or against a different server")
	ErrRateLimitedWrite = errors.New("rate limit exceeded for operation that can only be performed by the leader, try again later")
	ErrClientRateLimit  = errors.New("RPC rate limit exceeded")
	ErrConnectDisabled  = errors.New("Connect must be enabled in order to use this endpoint")
)

// known lists the errors that are recognised by identity again after crossing the network as text.
var known = []error{
	ErrNoLeader, ErrNoServers, ErrNoDatacenter, ErrNotReady, ErrTokenNotFound, ErrACLDisabled,
	ErrRateLimited, ErrRateLimitedWrite, ErrClientRateLimit, ErrConnectDisabled,
}

// RemotePrefix begins the text of an error that crossed the network once or more.
const RemotePrefix = "rpc error making call: "

// An Error is an error with the HTTP status it is answered with.
type Error struct {
	Status int
	Text   string
}

func (e *Error) Error() string { return e.Text }

// Errorf makes an Error with a status.
func Errorf(status int, format string, args ...any) error {
	return &Error{Status: status, Text: fmt.Sprintf(format, args...)}
}

// BadRequest makes an Error with status 400.
func BadRequest(format string, args ...any) error {
	return Errorf(http.StatusBadRequest, format, args...)
}

// NotFound makes an Error with status 404.
func NotFound(format string, args ...any) error {
	return Errorf(http.StatusNotFound, format, args...)
}

// Remote returns the error a caller sees for text received from another server: the text with RemotePrefix (once), and
// where the text names one of this package's errors, errors.Is finds it. A status of 0 means none was carried.
func Remote(status int, text string) error {
	r := &remote{text: text, status: status}
	if !strings.HasPrefix(text, RemotePrefix) {
		r.text = RemotePrefix + text
	}
	for _, k := range known {
		if strings.Contains(text, k.Error()) {
			r.is = k
			break
		}
	}
	return r
}

type remote struct {
	text   string
	status int
	is     error
}

func (r *remote) Error() string { return r.text }
func (r *remote) Unwrap() error { return r.is }

// Status returns the HTTP status err is answered with: the one it carries, else the one its text calls for, else 500.
func Status(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	if r, ok := errors.AsType[*remote](err); ok && r.status != 0 {
		return r.status
	}
	text := err.Error()
	switch {
	case strings.Contains(text, ErrRateLimitedWrite.Error()):
		return http.StatusServiceUnavailable
	case strings.Contains(text, ErrRateLimited.Error()), strings.Contains(text, ErrClientRateLimit.Error()),
		strings.Contains(text, "Rate limit reached, try again later"):
		return http.StatusTooManyRequests
	case strings.Contains(text, ErrPermissionDenied.Error()), strings.Contains(text, ErrTokenNotFound.Error()):
		return http.StatusForbidden
	case strings.Contains(text, ErrACLDisabled.Error()):
		return http.StatusUnauthorized
	}
	return http.StatusInternalServerError
}

// Carried returns the status err carries explicitly, 0 if none.
func Carried(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	if r, ok := errors.AsType[*remote](err); ok {
		return r.status
	}
	return 0
}
