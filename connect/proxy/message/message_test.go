package message_test

import (
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/message"
)

func TestHeader(t *testing.T) {
	var h message.Header
	var a message.Arena
	h.Add("content-type", "text/plain")
	h.Add("x-a", "1")
	h.Add("x-b", "2")
	h.Add("x-a", "3")
	if v, ok := h.Lookup("x-a", &a); v != "1,3" || !ok {
		t.Errorf("joined values %q", v)
	}
	if _, ok := h.Lookup("x-c", &a); ok || h.Has("cookie") || h.Get("accept") != "" {
		t.Error("found what is not there")
	}
	h.Set("x-a", "4")
	if h.Len() != 3 || h.At(1).Value != "4" {
		t.Errorf("%d fields after Set, the second is %v", h.Len(), h.At(1))
	}
	if !h.Del("content-type") || h.Del("content-type") || h.Has("content-type") {
		t.Error("a known name was not removed")
	}
	if h.Get("x-b") != "2" || h.Size() != len("x-a4x-b2") {
		t.Errorf("left: %q, %d bytes", h.Get("x-b"), h.Size())
	}
}

func TestKnownNamesHaveTheirOwnNumbers(t *testing.T) {
	seen := map[message.Known]string{}
	for _, n := range strings.Fields("accept authorization content-length content-type cookie grpc-status host te user-agent x-request-id x-forwarded-for") {
		k := message.KnownName(n)
		s, ok := message.Intern([]byte(n))
		if k == 0 || seen[k] != "" || !ok || s != n {
			t.Errorf("%s: number %d (also %q), interned as %q", n, k, seen[k], s)
		}
		seen[k] = n
	}
}

func TestArena(t *testing.T) {
	var a message.Arena
	var want, got []string
	for i := range 500 {
		s := strings.Repeat(string(rune('a'+i%26)), i)
		want = append(want, s)
		got = append(got, a.Concat(s[:i/2], s[i/2:]))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("string %d was overwritten", i)
		}
	}
	a.Reset()
	if n := testing.AllocsPerRun(100, func() {
		a.Reset()
		for range 8 {
			a.String("a string of some length")
		}
	}); n != 0 {
		t.Errorf("%v allocations in a warm arena", n)
	}
}
