package dns

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// How long a TCP client may take to send its next question, from its first byte to its last, and to take answers; how
// many connections there may be, in all and of one client; and how many questions of one connection may be under way,
// beyond which no more are read. The answers come in the order in which they are found.
const (
	tcpIdle     = 8 * time.Second
	tcpWrite    = 2 * time.Second
	tcpMaxConns = 2048
	tcpMaxPerIP = 256
	tcpUnderWay = 16
)

// Sizes of what a connection holds while it is used.
const (
	tcpReadBuffer = 4 << 10
	tcpFlushAt    = 32 << 10
)

// acceptPause is how long to wait when no connection can be accepted, for example since there are too many files.
const acceptPause = 50 * time.Millisecond

// serveStreams answers the questions of the clients of one listener until it is closed.
func (s *Server) serveStreams(ctx context.Context, l net.Listener, conns *connLimit) error {
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			if err == nil {
				conn.Close()
			}
			return nil
		case err != nil:
			s.log.Warn("connection not accepted", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		from, _ := netip.ParseAddrPort(conn.RemoteAddr().String()) // the zero address for what has none
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		release, ok := conns.take(from.Addr(), conn)
		if !ok {
			s.counts.refused.Add(1)
			conn.Close()
			continue
		}
		open.Go(func() {
			defer release()
			s.serveConn(ctx, conn, from)
		})
	}
}

// A stream is one connection of a TCP client.
type stream struct {
	conn   net.Conn
	writes sync.Mutex
	out    []byte // answers to be sent together; of the reader alone
}

// serveConn answers the questions of one connection.
func (s *Server) serveConn(ctx context.Context, conn net.Conn, from netip.AddrPort) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	t := &stream{conn: conn}
	var under sync.WaitGroup // what was asked is answered also when no more comes
	defer under.Wait()
	r := bufio.NewReaderSize(conn, tcpReadBuffer)
	places := make(chan struct{}, tcpUnderWay)
	var sc scratch
	var buf, answer []byte
	for {
		if !whole(r) {
			if !t.flush() {
				return
			}
			conn.SetReadDeadline(time.Now().Add(tcpIdle))
		}
		msg, err := next(r, buf)
		if err != nil {
			t.flush()
			return
		}
		if cap(msg) <= tcpReadBuffer {
			buf = msg
		}
		st := s.settings.Load()
		who := asker{from: from, token: s.token(), tcp: true}
		out, ok := s.guardedQuick(st, who, msg, &sc, answer[:0])
		if ok {
			if cap(out) <= 1<<14 {
				answer = out
			}
			if t.add(out); len(t.out) >= tcpFlushAt && !t.flush() {
				return
			}
			continue
		}
		req, err := s.unpack(msg, from)
		if err != nil || req.Response || req.Opcode != dns.OpcodeQuery || len(req.Question) != 1 {
			t.add(refuse(msg, err))
			continue
		}
		release, ok := s.wait(ctx, t, places, req)
		if !ok {
			return
		}
		msg = append([]byte(nil), msg...)
		under.Go(func() {
			defer release()
			q, _ := parsePlain(msg)
			out, _ := s.packed(ctx, who, req, q.key)
			t.send(out)
		})
	}
}

// wait waits for a place of the connection and one of those of all connections. It reports false when the connection is
// over.
func (s *Server) wait(ctx context.Context, t *stream, places chan struct{}, req *dns.Msg) (release func(), ok bool) {
	all := s.streamRecursions
	if s.ours(req) {
		all = s.streamLookups
	}
	for _, c := range []chan struct{}{places, all} {
		select {
		case c <- struct{}{}:
			continue
		default:
		}
		if !t.flush() { // nobody waits for answers that are there
			return nil, false
		}
		select {
		case c <- struct{}{}:
		case <-ctx.Done():
			return nil, false
		}
	}
	return func() { <-all; <-places }, true
}

// whole reports whether a message has come.
func whole(r *bufio.Reader) bool {
	if r.Buffered() < 2 {
		return false
	}
	size, err := r.Peek(2)
	return err == nil && r.Buffered() >= 2+int(binary.BigEndian.Uint16(size))
}

// next reads a message, into buf if there is room. It takes no more memory than what has come.
func next(r *bufio.Reader, buf []byte) ([]byte, error) {
	var size [2]byte
	for i := range size {
		b, err := r.ReadByte()
		if err != nil {
			return nil, err
		}
		size[i] = b
	}
	buf = buf[:0]
	for n := int(binary.BigEndian.Uint16(size[:])); len(buf) < n; {
		from, more := len(buf), min(n-len(buf), max(len(buf), tcpReadBuffer/2))
		if cap(buf)-from < more {
			grown := make([]byte, from, from+more)
			copy(grown, buf)
			buf = grown
		}
		buf = buf[:from+more]
		if _, err := io.ReadFull(r, buf[from:]); err != nil {
			return nil, err
		}
	}
	return buf, nil
}

// add has an answer sent by the next flush; nil sends nothing.
func (t *stream) add(out []byte) {
	if len(out) == 0 || len(out) > maxTCPSize {
		return
	}
	t.out = binary.BigEndian.AppendUint16(t.out, uint16(len(out)))
	t.out = append(t.out, out...)
}

// flush sends what was added. It reports whether the connection is still good.
func (t *stream) flush() bool {
	if len(t.out) == 0 {
		return true
	}
	ok := t.write(t.out)
	if t.out = t.out[:0]; cap(t.out) > 2*tcpFlushAt {
		t.out = nil
	}
	return ok
}

// send sends one answer at once.
func (t *stream) send(out []byte) {
	if len(out) > 0 && len(out) <= maxTCPSize {
		t.write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(out)), uint16(len(out))), out...))
	}
}

// write sends answers; a client that does not take them loses the connection.
func (t *stream) write(data []byte) bool {
	t.writes.Lock()
	defer t.writes.Unlock()
	t.conn.SetWriteDeadline(time.Now().Add(tcpWrite))
	if _, err := t.conn.Write(data); err != nil {
		t.conn.Close()
		return false
	}
	return true
}
