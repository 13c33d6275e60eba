package accesslog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// CompileFilter prepares a filter of entries. Nil lets all through. The result is safe for concurrent use.
func CompileFilter(f *model.LogFilter) (func(*Entry) bool, error) { return compileFilter(f, 0) }

func compileFilter(f *model.LogFilter, depth int) (func(*Entry) bool, error) {
	if depth > maxDepth {
		return nil, errors.New("filters nest too deep")
	}
	switch {
	case f == nil:
		return func(*Entry) bool { return true }, nil
	case f.Flags != nil:
		return flagFilter(*f.Flags)
	case f.Duration != nil:
		return func(e *Entry) bool { return f.Duration.Holds(uint64(max(e.Duration.Milliseconds(), 0))) }, nil
	case f.Status != nil:
		return func(e *Entry) bool {
			status := 0
			if e.HTTP != nil {
				status = e.HTTP.Status
			}
			return f.Status.Holds(uint64(status))
		}, nil
	case f.Header != nil:
		return func(e *Entry) bool { return headerFits(f.Header, e) }, nil
	case f.GRPC != nil:
		return func(e *Entry) bool {
			n, ok := grpcStatus(e)
			if !ok {
				n = grpcUnknown
			}
			return slices.Contains(f.GRPC.Statuses, uint32(n)) != f.GRPC.Exclude
		}, nil
	case f.NotHealthCheck:
		return func(e *Entry) bool { return e.HTTP == nil || !e.HTTP.HealthCheck }, nil
	case f.Traceable:
		return func(e *Entry) bool { return e.HTTP != nil && e.HTTP.Traced }, nil
	case f.Metadata != nil:
		return func(e *Entry) bool {
			var md model.Metadata
			if e.HTTP != nil {
				md = e.HTTP.Metadata
			}
			return f.Metadata.Passes(md)
		}, nil
	case f.Fraction != nil:
		return func(e *Entry) bool { return f.Fraction.Hit(draw(f.Fraction.Independent, e)) }, nil
	case f.Types != nil:
		return func(e *Entry) bool { return slices.Contains(f.Types.Types, logType(e)) != f.Types.Exclude }, nil
	case f.And != nil:
		return combine(f.And, false, depth)
	case f.Or != nil:
		return combine(f.Or, true, depth)
	}
	return nil, errors.New("filter without a condition")
}

// flagFilter lets entries through that have one of the flags, or any if none is named.
func flagFilter(names []string) (func(*Entry) bool, error) {
	var want Flags
	for _, name := range names {
		flag, ok := ParseFlag(name)
		if !ok {
			return nil, fmt.Errorf("unknown response flag %q", name)
		}
		want |= flag
	}
	if len(names) == 0 {
		want = ^Flags(0)
	}
	return func(e *Entry) bool { return e.Flags&want != 0 }, nil
}

// combine lets through what one of the filters lets through, or what all do.
func combine(list []*model.LogFilter, one bool, depth int) (func(*Entry) bool, error) {
	var filters []func(*Entry) bool
	for _, sub := range list {
		f, err := compileFilter(sub, depth+1)
		if err != nil {
			return nil, err
		}
		filters = append(filters, f)
	}
	return func(e *Entry) bool {
		for _, f := range filters {
			if f(e) == one {
				return one
			}
		}
		return !one
	}, nil
}

// headerFits looks at a header of the request. A connection has none.
func headerFits(m *model.HeaderMatch, e *Entry) bool {
	if e.HTTP == nil || e.HTTP.Request == nil {
		return m.Fits("", false)
	}
	if v, ok := pseudo(e.HTTP, m.Name); ok {
		return m.Fits(v, v != "")
	}
	first, n := "", 0
	for v := range e.HTTP.Request.Header.Values(m.Name) {
		if n++; n == 1 {
			first = v
			continue
		}
		if m.Kind != model.HeaderPresent && m.Kind != model.HeaderAbsent && (n == 2 && m.Hits(first) || m.Hits(v)) {
			return !m.Invert
		}
	}
	if n > 1 && m.Kind != model.HeaderPresent && m.Kind != model.HeaderAbsent {
		return m.Invert
	}
	return m.Fits(first, n > 0)
}

// draw returns the number that decides whether an entry belongs to a share of them. That of a request is taken from
// its id, so that all proxies on its way decide alike.
func draw(independent bool, e *Entry) uint64 {
	if !independent && e.HTTP != nil && e.HTTP.Request != nil {
		if id := e.HTTP.Request.Header.Get("x-request-id"); len(id) >= 8 {
			if n, err := strconv.ParseUint(id[:8], 16, 64); err == nil {
				return n
			}
		}
	}
	return rand.Uint64()
}

// logType returns what an entry is about, by Envoy's names.
func logType(e *Entry) string {
	if e.HTTP == nil {
		return "TcpConnectionEnd"
	}
	return "DownstreamEnd"
}
