package http2_test

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"

	"github.com/sarnmesh/sarn/connect/proxy/http2"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// A script is a connection that gives its bytes and then ends, and takes all.
type script struct {
	io.Reader
	wrote int
}

func (s *script) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
func (s *script) Write(b []byte) (int, error)      { s.wrote += len(b); return len(b), nil }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

func frames(f func(p *peer)) []byte {
	var b bytes.Buffer
	p := newPeer(nil, &script{})
	p.Framer = xhttp2.NewFramer(&b, nil)
	p.AllowIllegalWrites = true
	f(p)
	return b.Bytes()
}

func seeds(f *testing.F, head ...string) {
	f.Add(frames(func(p *peer) {
		p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: 10})
		p.headers(1, false, head...)
		p.WriteData(1, false, []byte("body"))
		p.WriteWindowUpdate(1, 100)
		p.headers(1, true, "x-a", "b")
		p.headers(3, true, head...)
		p.WriteRSTStream(3, 8)
		p.WritePing(false, [8]byte{})
	}), uint8(50))
	f.Add(frames(func(p *peer) {
		p.WriteSettings(xhttp2.Setting{ID: xhttp2.SettingHeaderTableSize, Val: 0})
		b := p.block(head...)
		p.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:3], Priority: xhttp2.PriorityParam{Weight: 3}, PadLength: 4})
		p.WriteContinuation(1, true, b[3:])
		p.WriteDataPadded(1, true, []byte("body"), []byte{0, 0})
		p.WriteGoAway(1, 0, nil)
		p.WritePriority(5, xhttp2.PriorityParam{StreamDep: 1})
	}), uint8(7))
}

// chop gives bytes in pieces.
type chop struct {
	b    []byte
	size int
}

func (c *chop) Read(b []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), c.size)], c.b)
	c.b = c.b[n:]
	return n, nil
}

// FuzzServer gives a server any bytes: it must end, with every handler, and no handler may see what is no request.
func FuzzServer(f *testing.F) {
	seeds(f, get("x-a", "b")...)
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		c := &script{Reader: &chop{append([]byte(xhttp2.ClientPreface), b...), int(size) + 1}}
		srv := http2.NewServerConn(c, http2.ServerConfig{Options: http2.Options{StreamErrors: size%2 == 0, MaxStreams: 10, MaxHeaderBytes: 5000}, AllowConnect: size%3 == 0})
		err := srv.Serve(func(s message.ServerStream) {
			r := s.Request()
			if r.Method == "" || r.Method != "CONNECT" && (r.Path == "" || r.Scheme == "") || r.Header.Has("host") || r.Header.Has("connection") || r.Header.Has("transfer-encoding") {
				t.Errorf("not in its one form: %+v", r)
			}
			if r.Header.Size() > 5000+100 {
				t.Errorf("%d bytes of fields", r.Header.Size())
			}
			got, rerr := body(s)
			if rerr == nil && r.ContentLength >= 0 && r.Method != "CONNECT" && r.Upgrade == "" && int64(len(got)) != r.ContentLength {
				t.Errorf("%d bytes of body, %d were said", len(got), r.ContentLength)
			}
			echo(s)
		})
		if err == nil {
			t.Error("ended in good order")
		}
		if srv.Active() != 0 {
			t.Errorf("%d handlers are left", srv.Active())
		}
	})
}

// FuzzClient gives a client any bytes as the answer to two requests: they must end.
func FuzzClient(f *testing.F) {
	seeds(f, ":status", "200", "x-a", "b")
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		ready := make(chan struct{})
		c := &script{Reader: io.MultiReader(waiting(ready), &chop{b, int(size) + 1})}
		cli, err := http2.NewClientConn(c, http2.ClientConfig{Options: http2.Options{StreamErrors: size%2 == 0, MaxHeaderBytes: 5000}})
		if err != nil {
			t.Fatal(err)
		}
		var ss [2]message.ClientStream
		for i := range ss {
			if ss[i], err = cli.Open(); err != nil {
				t.Fatal(err)
			}
			if err := ss[i].Send(request("GET", "/"), i == 0); err != nil {
				t.Fatal(err)
			}
		}
		close(ready)
		for _, s := range ss {
			var r message.Response
			for r.Status < 200 {
				if _, err = s.Receive(&r); err != nil {
					break
				}
				if r.Status < 100 || r.Status > 999 || r.Header.Has("connection") {
					t.Errorf("not in its one form: %+v", &r)
				}
				if r.Status == 101 {
					t.Error("switched protocols")
				}
			}
			if err == nil {
				body(s)
				s.Trailer()
			}
			s.Close()
		}
		<-cli.Closed()
		if cli.Active() != 0 {
			t.Errorf("%d streams are left", cli.Active())
		}
	})
}

// waiting ends when a channel is closed.
type waiting chan struct{}

func (w waiting) Read([]byte) (int, error) {
	<-w
	return 0, io.EOF
}
