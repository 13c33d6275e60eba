package healthcheck

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
)

// maxReceive bounds what a TCP check reads in search of what it wants.
const maxReceive = 64 << 10

// tcp connects, sends and waits for pieces in order.
type tcp struct {
	kept
	conn net.Conn
}

func (t *tcp) close() {
	if t.conn != nil {
		t.conn.Close()
		t.conn = nil
	}
}

func (t *tcp) probe(ctx context.Context) answer {
	c := t.conf.TCP
	reused := t.conn != nil
	a := t.once(ctx, c.Send, c.Receive)
	if a.err != nil && reused && errors.Is(a.err, io.EOF) {
		// The host closed the connection in between.
		t.close()
		a = t.once(ctx, c.Send, c.Receive)
	}
	if a.err == nil && len(c.Receive) == 0 {
		t.close() // that it can be made is all there is to know
	}
	return a
}

func (t *tcp) once(ctx context.Context, send []byte, want [][]byte) answer {
	if t.conn == nil {
		conn, _, err := t.to.Dial(ctx, t.conf.ALPN)
		if err != nil {
			return answer{err: late(err), network: true}
		}
		t.conn = conn
	}
	defer limit(ctx, t.conn)()
	fail := func(err error) answer {
		t.close()
		return answer{err: late(err), network: true}
	}
	if len(send) > 0 {
		if _, err := t.conn.Write(send); err != nil {
			return fail(err)
		}
	}
	var got []byte
	buf := make([]byte, 1024)
	for !inOrder(got, want) {
		if len(got) > maxReceive {
			return fail(errors.New("the host does not send what is expected"))
		}
		n, err := t.conn.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil && !inOrder(got, want) {
			return fail(err)
		}
	}
	return answer{}
}

// inOrder reports whether b has the pieces one after the other, with anything
// in between.
func inOrder(b []byte, pieces [][]byte) bool {
	for _, p := range pieces {
		i := bytes.Index(b, p)
		if i < 0 {
			return false
		}
		b = b[i+len(p):]
	}
	return true
}
