//go:build unix

package http2_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"

	"github.com/sarnmesh/sarn/connect/proxy/http2"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// cpu returns the processor time that the process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestAttacksEndTheConnection sends floods, each of which must end soon, with the code for it, and at a bounded cost.
func TestAttacksEndTheConnection(t *testing.T) {
	for _, tt := range []struct {
		name, detail string
		flood        func(p *peer, i int) error // called again and again
		start        func(p *peer)
		deaf         bool // the client reads nothing
	}{
		{name: "rapid reset", detail: "http2.too_many_premature_resets", flood: func(p *peer, i int) error {
			id := uint32(2*i + 1)
			p.get(id)
			return p.WriteRSTStream(id, xhttp2.ErrCodeCancel)
		}},
		{name: "resets that we are made to send", detail: "http2.too_many_premature_resets", flood: func(p *peer, i int) error {
			id := uint32(2*i + 1)
			p.headers(id, false, get()...)
			return p.WriteWindowUpdate(id, 0)
		}},
		{name: "continuation without end", detail: "http2.inbound_continuation_flood", start: func(p *peer) {
			p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(get()...)})
		}, flood: func(p *peer, i int) error {
			return p.WriteContinuation(1, false, p.block("x-a", strings.Repeat("a", 8000)))
		}},
		{name: "small continuations", detail: "http2.inbound_continuation_flood", start: func(p *peer) {
			p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(get()...)})
		}, flood: func(p *peer, i int) error { return p.WriteContinuation(1, false, []byte{0x82}) }},
		{name: "empty continuations", detail: "http2.inbound_empty_frames_flood", start: func(p *peer) {
			p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(get()...)})
		}, flood: func(p *peer, i int) error { return p.WriteContinuation(1, false, nil) }},
		{name: "empty data", detail: "http2.inbound_empty_frames_flood", start: func(p *peer) { p.headers(1, false, get()...) },
			flood: func(p *peer, i int) error { return p.WriteData(1, false, nil) }},
		{name: "padding alone", detail: "http2.inbound_empty_frames_flood", start: func(p *peer) { p.headers(1, false, get()...) },
			flood: func(p *peer, i int) error { return p.WriteDataPadded(1, false, nil, make([]byte, 200)) }},
		{name: "pings", detail: "control_flood", flood: func(p *peer, i int) error { return p.WritePing(false, [8]byte{}) }},
		{name: "pings, deaf", detail: "flood", deaf: true, flood: func(p *peer, i int) error { return p.WritePing(false, [8]byte{}) }},
		{name: "settings", detail: "control_flood", flood: func(p *peer, i int) error {
			return p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: uint32(i)})
		}},
		{name: "settings, deaf", detail: "flood", deaf: true, flood: func(p *peer, i int) error { return p.WriteSettings() }},
		{name: "priorities", detail: "http2.inbound_priority_frames_flood", flood: func(p *peer, i int) error {
			return p.WritePriority(uint32(2*i+1), xhttp2.PriorityParam{})
		}},
		{name: "windows", detail: "http2.inbound_window_update_frames_flood", flood: func(p *peer, i int) error { return p.WriteWindowUpdate(0, 1) }},
		{name: "windows of a stream", detail: "http2.inbound_window_update_frames_flood", start: func(p *peer) { p.headers(1, false, get()...) },
			flood: func(p *peer, i int) error { return p.WriteWindowUpdate(1, 1) }},
		{name: "unknown frames", detail: "http2.inbound_control_flood", flood: func(p *peer, i int) error { return p.WriteRawFrame(0x77, 0, 0, nil) }},
		{name: "resets of closed streams", detail: "http2.inbound_control_flood", start: func(p *peer) { p.get(1) },
			flood: func(p *peer, i int) error { return p.WriteRSTStream(1, 0) }},
		{name: "streams beyond the limit, deaf", detail: "flood", deaf: true, flood: func(p *peer, i int) error {
			p.headers(uint32(2*i+1), false, get()...)
			return p.WriteData(uint32(2*i+1), false, []byte("x"))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var running, most atomic.Int64
			c, _, done := serve(t, func(s message.ServerStream) {
				if n := running.Add(1); n > most.Load() {
					most.Store(n)
				}
				defer running.Add(-1)
				if _, err := s.Read(); err == nil || err == io.EOF {
					ok(s)
				}
			}, http2.ServerConfig{Options: http2.Options{MaxStreams: 300}})
			p := client(t, c)
			before, used := heap(), cpu()
			if !tt.deaf {
				go io.Copy(io.Discard, c)
			}
			if tt.start != nil {
				tt.start(p)
			}
			c.SetWriteDeadline(time.Now().Add(time.Minute))
			var err error
			var i int
			var peak uint64
			for i = 0; i < 1_000_000; i++ {
				if err = tt.flood(p, i); err != nil {
					break
				}
				if i%5000 == 4999 {
					peak = max(peak, heap())
				}
			}
			if err == nil {
				t.Errorf("%d frames were taken", i)
			}
			c.Close()
			select {
			case err := <-done:
				if e, ok := errors.AsType[*http2.Error](err); !ok || !strings.Contains(e.Detail, tt.detail) || e.Code != http2.EnhanceYourCalm {
					t.Errorf("ended with %v, want %s", err, tt.detail)
				}
			case <-time.After(time.Minute):
				t.Error("still open")
			}
			if grown := int64(max(peak, heap()) - before); peak > 0 && grown > 8<<20 {
				t.Errorf("took %d KiB of memory", grown>>10)
			}
			if used := cpu() - used; used > 2*time.Second {
				t.Errorf("took %v of processor time", used)
			}
			if most.Load() > 600 {
				t.Errorf("%d handlers at a time", most.Load())
			}
		})
	}
}

// TestHeaderBombIsCutOff sends fields that expand: one byte stands for 4 KiB.
func TestHeaderBombIsCutOff(t *testing.T) {
	c, _, _ := serve(t, ok, http2.ServerConfig{Options: http2.Options{MaxHeaders: 1 << 20}})
	p := client(t, c)
	p.get(1, "x-a", strings.Repeat("a", 3800), "cookie", strings.Repeat("b", 100))
	p.expect("HEADERS 1 :status=200 end")
	before, used := heap(), cpu()
	const times = 300
	bomb := append(p.block(get()...), bytes.Repeat([]byte{0x80 | 63}, 16000)...)
	for i := range times {
		p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: uint32(2*i + 3), EndStream: true, EndHeaders: true, BlockFragment: bomb})
		if got := p.next(); !strings.Contains(got, ":status=431") {
			t.Fatalf("got %s, want 431", got)
		}
	}
	// 300 times 64 MB, were they made.
	if used := cpu() - used; used > 3*time.Second {
		t.Errorf("took %v of processor time", used)
	}
	if grown := int64(heap() - before); grown > 4<<20 {
		t.Errorf("took %d KiB of memory", grown>>10)
	}
}

// Cookies in crumbs must not grow by being joined again and again.
func TestManyCookiesAreJoinedOnce(t *testing.T) {
	got := make(chan int, 1)
	c, _, _ := serve(t, func(s message.ServerStream) {
		got <- len(s.Request().Header.Get("cookie"))
		ok(s)
	}, http2.ServerConfig{Options: http2.Options{MaxHeaders: 1 << 20}})
	p := client(t, c)
	fields := get()
	for range 5000 {
		fields = append(fields, "cookie", "a=b")
	}
	used := cpu()
	p.get(1, fields[8:]...)
	if n := <-got; n != 5*5000-2 {
		t.Errorf("%d bytes of cookies", n)
	}
	if used := cpu() - used; used > 500*time.Millisecond {
		t.Errorf("took %v of processor time", used)
	}
}

// TestSlowReaderHoldsLittle lets a client ask for much and read nothing.
func TestSlowReaderHoldsLittle(t *testing.T) {
	piece := make([]byte, 64<<10)
	var written atomic.Int64
	c, srv, _ := serve(t, func(s message.ServerStream) {
		var r message.Response
		r.Status = 200
		s.Respond(&r, false)
		for range 160 { // 10 MiB
			if s.Write(piece, false) != nil {
				return
			}
			written.Add(int64(len(piece)))
		}
	}, http2.ServerConfig{})
	p := client(t, c, xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 1<<31 - 1})
	p.WriteWindowUpdate(0, 1<<31-1-65535)
	before := heap()
	for i := range 100 {
		p.get(uint32(2*i + 1))
	}
	for end := time.Now().Add(20 * time.Second); srv.Active() != 100; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d requests are handled, want 100", srv.Active())
		}
	}
	for n := int64(-1); n != written.Load(); time.Sleep(200 * time.Millisecond) {
		n = written.Load()
	}
	if grown := int64(heap() - before); grown > 4<<20 {
		t.Errorf("a client that reads nothing holds %d KiB", grown>>10)
	}
	c.Close()
}
