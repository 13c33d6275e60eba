package span

import (
	"context"
	"encoding/hex"
	"net/http"
	"strings"

	"google.golang.org/grpc/metadata"
)

// Names of the headers that carry a context: https://www.w3.org/TR/trace-context/.
const (
	parentHeader = "traceparent"
	stateHeader  = "tracestate"
)

// Bounds of a tracestate. The standard asks for as many characters and members.
const (
	maxState        = 512
	maxStateMembers = 32
)

// Parse reads a traceparent; what is malformed gives false.
func Parse(v string) (c Context, ok bool) {
	if len(v) < 55 || v[2] != '-' || v[35] != '-' || v[52] != '-' || v[:2] == "ff" || v[:2] == "00" && len(v) != 55 || len(v) > 55 && v[55] != '-' {
		return Context{}, false
	}
	var version, flags [1]byte
	if !unhex(version[:], v[:2]) || !unhex(c.Trace[:], v[3:35]) || !unhex(c.Span[:], v[36:52]) || !unhex(flags[:], v[53:55]) ||
		c.Trace == (TraceID{}) || c.Span == (ID{}) {
		return Context{}, false
	}
	c.Sampled = flags[0]&1 != 0
	return c, true
}

// unhex decodes exactly the lower-case digits of b.
func unhex(b []byte, s string) bool {
	if len(s) != 2*len(b) {
		return false
	}
	for i := range len(s) {
		if s[i] >= 'A' && s[i] <= 'F' {
			return false
		}
	}
	_, err := hex.Decode(b, []byte(s))
	return err == nil
}

// Append adds the context as a traceparent to b.
func (c Context) Append(b []byte) []byte {
	b = append(b, "00-"...)
	b = append(hex.AppendEncode(b, c.Trace[:]), '-')
	b = append(hex.AppendEncode(b, c.Span[:]), '-', '0', '0')
	if c.Sampled {
		b[len(b)-1] = '1'
	}
	return b
}

// State returns a tracestate that came in any number of headers; what is malformed or too long gives the empty one.
func State(headers ...string) string {
	if len(headers) == 0 {
		return ""
	}
	s := strings.Join(headers, ",")
	if len(s) > maxState || strings.Count(s, ",") >= maxStateMembers {
		return ""
	}
	for member := range strings.SplitSeq(s, ",") {
		member = strings.Trim(member, " \t")
		name, value, ok := strings.Cut(member, "=")
		if member != "" && (!ok || !stateKey(name) || !stateValue(value)) {
			return ""
		}
	}
	return strings.Clone(s)
}

func stateKey(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || i > 0 && strings.IndexByte("_-*/@", c) >= 0) {
			return false
		}
	}
	return s != "" && len(s) <= 256
}

func stateValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '=' {
			return false
		}
	}
	return s != "" && len(s) <= 256
}

// FromHeader returns the context that a request came with, the zero Context for none or one that is malformed.
func FromHeader(h http.Header) Context {
	parents := h["Traceparent"]
	if len(parents) != 1 {
		return Context{}
	}
	c, ok := Parse(parents[0])
	if ok && c.Sampled {
		c.State = State(h["Tracestate"]...)
	}
	return c
}

// Outgoing returns a context whose gRPC calls carry the span on.
func (s *Span) Outgoing(ctx context.Context) context.Context {
	if s == nil {
		return ctx
	}
	pairs := []string{parentHeader, string(s.Append(make([]byte, 0, 55))), stateHeader, s.State}
	if s.State == "" {
		pairs = pairs[:2]
	}
	return metadata.AppendToOutgoingContext(ctx, pairs...)
}

// Incoming returns the context that a gRPC call came with, the zero Context for none or one that is malformed.
func Incoming(ctx context.Context) Context {
	parents := metadata.ValueFromIncomingContext(ctx, parentHeader)
	if len(parents) != 1 {
		return Context{}
	}
	c, ok := Parse(parents[0])
	if ok && c.Sampled {
		c.State = State(metadata.ValueFromIncomingContext(ctx, stateHeader)...)
	}
	return c
}
