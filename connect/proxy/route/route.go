// Package route decides where a request goes: a table of virtual hosts and routes, compiled so that a request costs
// a look at a map and a few comparisons. It is pure: what is random comes with the request.
package route

import (
	"strings"

	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// WithoutQuery returns the path up to the query.
func WithoutQuery(path string) string {
	if i := strings.IndexByte(path, '?'); i >= 0 {
		return path[:i]
	}
	return path
}

// IsGRPC reports whether a message is one of gRPC.
func IsGRPC(h *message.Header) bool {
	t := h.Get("content-type")
	return strings.HasPrefix(t, "application/grpc") && (len(t) == len("application/grpc") || t[len("application/grpc")] == '+')
}
