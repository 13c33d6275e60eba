package rpcwire

import (
	"bytes"
	"testing"
)

func FuzzFrames(f *testing.F) {
	f.Add([]byte(frames(nil).append(frame{id: 1, name: "Echo", data: []byte("x")}).append(frame{id: 1, kind: frameCancel})))
	f.Add([]byte(frames(nil).append(frame{id: 1 << 40, kind: frameAnswer, code: 503, data: []byte("no leader")})))
	f.Add([]byte{0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		var again frames
		for rest := frames(data); len(rest) > 0; {
			x, after, err := rest.next()
			if err != nil {
				return
			}
			if len(after) >= len(rest) {
				t.Fatal("a frame of no bytes")
			}
			rest, again = after, again.append(x)
		}
		var third frames
		for rest := again; len(rest) > 0; {
			x, after, err := rest.next()
			if err != nil {
				t.Fatalf("%x became %x, which is malformed", data, again)
			}
			rest, third = after, third.append(x)
		}
		if !bytes.Equal(again, third) {
			t.Fatalf("%x became %x, then %x", data, again, third)
		}
	})
}
