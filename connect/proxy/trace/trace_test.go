package trace

import (
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/message"
)

func TestContextOfRequests(t *testing.T) {
	const id, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	tests := []struct {
		name, header, value string
		b3                  bool
		ok, sampled         bool
	}{
		{"sampled", "traceparent", "00-" + id + "-" + span + "-01", false, true, true},
		{"not sampled", "traceparent", "00-" + id + "-" + span + "-00", false, true, false},
		{"a later version with more", "traceparent", "cc-" + id + "-" + span + "-01-what", false, true, true},
		{"version 00 with more", "traceparent", "00-" + id + "-" + span + "-01-what", false, false, false},
		{"version ff", "traceparent", "ff-" + id + "-" + span + "-01", false, false, false},
		{"upper case", "traceparent", "00-0AF7651916CD43DD8448EB211C80319C-" + span + "-01", false, false, false},
		{"no trace", "traceparent", "00-00000000000000000000000000000000-" + span + "-01", false, false, false},
		{"no span", "traceparent", "00-" + id + "-0000000000000000-01", false, false, false},
		{"short", "traceparent", "00-" + id, false, false, false},
		{"b3", "b3", id + "-" + span + "-1", true, true, true},
		{"b3 with 64 bits", "b3", span + "-" + span + "-0", true, true, false},
		{"b3 without ids", "b3", "0", true, false, false},
	}
	for _, tt := range tests {
		var h message.Header
		h.Add(tt.header, tt.value)
		read := readW3C
		if tt.b3 {
			read = readB3
		}
		p, ok := read(&h)
		if ok != tt.ok || p.Sampled != tt.sampled {
			t.Errorf("%s: %v, sampled %v; want %v, %v", tt.name, ok, p.Sampled, tt.ok, tt.sampled)
		}
	}
}

func FuzzContext(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Add("0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1-b7ad6b7169203331")
	f.Fuzz(func(t *testing.T, s string) {
		for _, name := range []string{"traceparent", "b3"} {
			var h message.Header
			h.Add(name, s)
			for _, read := range []func(*message.Header) (parent, bool){readW3C, readB3} {
				if p, ok := read(&h); ok && (p.Trace == [16]byte{} && name == "traceparent" || p.Span == [8]byte{}) {
					t.Errorf("%q gives an empty id", s)
				}
			}
		}
	})
}
