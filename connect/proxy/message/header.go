package message

import (
	"iter"
	"slices"
	"strings"
)

// A Field is one line of a header. The name is in lower case.
type Field struct {
	Name, Value string
	known       Known
}

// framing holds the known names that say how a message is carried over one connection.
const framing = 1<<5 | 1<<7 | 1<<17 | 1<<18 | 1<<21 | 1<<29 | 1<<30

// Framing reports whether the field is one that HTTP/1 writes by itself: connection, content-length, host, keep-alive,
// proxy-connection, transfer-encoding or upgrade.
func (f Field) Framing() bool { return framing>>f.known&1 != 0 }

// Known reports whether the name is one that Intern knows.
func (f Field) Known() bool { return f.known != 0 }

// A Header is the fields of a message in their order. The zero Header is empty. It is not safe for concurrent use.
type Header struct {
	fields    []Field
	present   uint64   // a bit for each known name that may be there
	spellings []string // of names, as the peer wrote them; empty unless its codec keeps them
}

// Reset makes the header empty and keeps its memory.
func (h *Header) Reset() {
	clear(h.fields)
	clear(h.spellings)
	h.fields, h.present, h.spellings = h.fields[:0], 0, h.spellings[:0]
}

// KeepSpelling remembers how a peer wrote a name.
func (h *Header) KeepSpelling(name string) { h.spellings = append(h.spellings, name) }

// Spelling returns a name as the peer wrote it, if that was kept, and else as it is.
func (h *Header) Spelling(name string) string {
	for _, s := range h.spellings {
		if len(s) == len(name) && strings.EqualFold(s, name) {
			return s
		}
	}
	return name
}

// Len returns the number of fields.
func (h *Header) Len() int { return len(h.fields) }

// At returns field i.
func (h *Header) At(i int) Field { return h.fields[i] }

// SetAt replaces the value of field i.
func (h *Header) SetAt(i int, value string) { h.fields[i].Value = value }

// Add appends a field. The name must be in lower case.
func (h *Header) Add(name, value string) {
	k := KnownName(name)
	h.present |= 1 << k
	h.fields = append(h.fields, Field{name, value, k})
}

// find returns the index of the first field with the name from i on, or -1.
func (h *Header) find(name string, i int) int {
	k := KnownName(name)
	if h.present&(1<<k) == 0 {
		return -1
	}
	for ; i < len(h.fields); i++ {
		if f := &h.fields[i]; f.known == k && (k != 0 || f.Name == name) {
			return i
		}
	}
	return -1
}

// Get returns the value of the first field with the name, which must be in lower case; empty if there is none.
func (h *Header) Get(name string) string {
	if i := h.find(name, 0); i >= 0 {
		return h.fields[i].Value
	}
	return ""
}

// Has reports whether there is a field with the name.
func (h *Header) Has(name string) bool { return h.find(name, 0) >= 0 }

// Lookup returns all values of a name joined by commas, as a policy must see them, and whether there is any. Joining
// takes memory from the arena.
func (h *Header) Lookup(name string, a *Arena) (string, bool) {
	i := h.find(name, 0)
	if i < 0 {
		return "", false
	}
	next := h.find(name, i+1)
	if next < 0 {
		return h.fields[i].Value, true
	}
	b := append(a.Begin(), h.fields[i].Value...)
	for ; next >= 0; next = h.find(name, next+1) {
		b = append(append(b, ','), h.fields[next].Value...)
	}
	return a.End(b), true
}

// Values yields the values of a name in their order.
func (h *Header) Values(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := h.find(name, 0); i >= 0; i = h.find(name, i+1) {
			if !yield(h.fields[i].Value) {
				return
			}
		}
	}
}

// Set makes value the only one of the name. The first field with the name keeps its place.
func (h *Header) Set(name, value string) {
	i := h.find(name, 0)
	if i < 0 {
		h.Add(name, value)
		return
	}
	h.fields[i].Value = value
	h.del(name, i+1)
}

// Del removes all fields with the name and reports whether there were any.
func (h *Header) Del(name string) bool {
	i := h.find(name, 0)
	if i < 0 {
		return false
	}
	h.del(name, i)
	return true
}

func (h *Header) del(name string, from int) {
	n := from
	for i := from; i < len(h.fields); i++ {
		if h.fields[i].Name != name {
			h.fields[n] = h.fields[i]
			n++
		}
	}
	clear(h.fields[n:])
	h.fields = h.fields[:n]
}

// DelFunc removes the fields for which f returns true.
func (h *Header) DelFunc(f func(Field) bool) { h.fields = slices.DeleteFunc(h.fields, f) }

// CopyFrom makes h a copy of o. Strings are shared.
func (h *Header) CopyFrom(o *Header) {
	clear(h.fields)
	h.fields, h.present = append(h.fields[:0], o.fields...), o.present
	clear(h.spellings)
	h.spellings = append(h.spellings[:0], o.spellings...)
}

// CloneStrings makes every string of the header independent of where it came from.
func (h *Header) CloneStrings() {
	for i := range h.fields {
		f := &h.fields[i]
		f.Name, f.Value = strings.Clone(f.Name), strings.Clone(f.Value)
	}
	for i, s := range h.spellings {
		h.spellings[i] = strings.Clone(s)
	}
}

// Size returns the bytes of all names and values.
func (h *Header) Size() int {
	n := 0
	for i := range h.fields {
		n += len(h.fields[i].Name) + len(h.fields[i].Value)
	}
	return n
}

// Known numbers the names that the proxy often asks for; 0 is any other name.
type Known uint8

// known lists the names in the order of their numbers, from 1. There may be 63.
var known = [...]string{
	"accept", "accept-encoding", "authorization", "cache-control", "connection", "content-encoding", "content-length",
	"content-type", "cookie", "date", "etag", "expect", "grpc-encoding", "grpc-message", "grpc-status", "grpc-timeout",
	"host", "keep-alive", "location", "origin", "proxy-connection", "referer", "server", "set-cookie", "te", "trailer",
	"traceparent", "tracestate", "transfer-encoding", "upgrade", "user-agent", "vary", "via", "x-client-trace-id",
	"x-envoy-attempt-count", "x-envoy-decorator-operation", "x-envoy-expected-rq-timeout-ms", "x-envoy-external-address",
	"x-envoy-force-trace", "x-envoy-internal", "x-envoy-max-retries", "x-envoy-original-path", "x-envoy-overloaded",
	"x-envoy-ratelimited", "x-envoy-retry-grpc-on", "x-envoy-retry-on", "x-envoy-upstream-rq-per-try-timeout-ms",
	"x-envoy-upstream-rq-timeout-ms", "x-envoy-upstream-service-time", "x-forwarded-client-cert", "x-forwarded-for",
	"x-forwarded-host", "x-forwarded-proto", "x-request-id",
}

// KnownName returns the number of a name in lower case; 0 if it has none.
func KnownName(name string) Known {
	switch name {
	case "accept":
		return 1
	case "accept-encoding":
		return 2
	case "authorization":
		return 3
	case "cache-control":
		return 4
	case "connection":
		return 5
	case "content-encoding":
		return 6
	case "content-length":
		return 7
	case "content-type":
		return 8
	case "cookie":
		return 9
	case "date":
		return 10
	case "etag":
		return 11
	case "expect":
		return 12
	case "grpc-encoding":
		return 13
	case "grpc-message":
		return 14
	case "grpc-status":
		return 15
	case "grpc-timeout":
		return 16
	case "host":
		return 17
	case "keep-alive":
		return 18
	case "location":
		return 19
	case "origin":
		return 20
	case "proxy-connection":
		return 21
	case "referer":
		return 22
	case "server":
		return 23
	case "set-cookie":
		return 24
	case "te":
		return 25
	case "trailer":
		return 26
	case "traceparent":
		return 27
	case "tracestate":
		return 28
	case "transfer-encoding":
		return 29
	case "upgrade":
		return 30
	case "user-agent":
		return 31
	case "vary":
		return 32
	case "via":
		return 33
	case "x-client-trace-id":
		return 34
	case "x-envoy-attempt-count":
		return 35
	case "x-envoy-decorator-operation":
		return 36
	case "x-envoy-expected-rq-timeout-ms":
		return 37
	case "x-envoy-external-address":
		return 38
	case "x-envoy-force-trace":
		return 39
	case "x-envoy-internal":
		return 40
	case "x-envoy-max-retries":
		return 41
	case "x-envoy-original-path":
		return 42
	case "x-envoy-overloaded":
		return 43
	case "x-envoy-ratelimited":
		return 44
	case "x-envoy-retry-grpc-on":
		return 45
	case "x-envoy-retry-on":
		return 46
	case "x-envoy-upstream-rq-per-try-timeout-ms":
		return 47
	case "x-envoy-upstream-rq-timeout-ms":
		return 48
	case "x-envoy-upstream-service-time":
		return 49
	case "x-forwarded-client-cert":
		return 50
	case "x-forwarded-for":
		return 51
	case "x-forwarded-host":
		return 52
	case "x-forwarded-proto":
		return 53
	case "x-request-id":
		return 54
	}
	return 0
}

// Intern returns the name as a constant string if it is a known one, so that codecs need not copy it.
func Intern(name []byte) (string, bool) {
	if k := KnownName(string(name)); k != 0 { // does not allocate
		return known[k-1], true
	}
	return "", false
}
