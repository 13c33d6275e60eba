package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// readBuffer is how many bytes of questions may wait for being read.
const readBuffer = 4 << 20

// batchSize is how many questions are read at once where the system can.
const batchSize = 16

// How many questions that need more than the answers kept may be under way at once: those of the zones, and those that
// wait for recursors. Beyond, questions are dropped: their clients ask again, and nobody else is answered what they did
// not ask for.
const (
	maxLookups    = 1024
	maxRecursions = 1024
)

// A batch reads and answers questions of one socket.
type batch interface {
	// read waits for questions and returns how many it has; msg and from tell of each.
	read() (int, error)
	msg(i int) []byte
	from(i int) netip.AddrPort
	// answer has an answer to question i sent by the next flush. It keeps out until then; nil sends nothing.
	answer(i int, out []byte)
	flush()
	// replier returns what answers question i later, after others were read.
	replier(i int) func(out []byte) error
}

// servePackets answers the questions of one socket until it is closed.
func (s *Server) servePackets(ctx context.Context, conn net.PacketConn, work func(func())) error {
	if u, ok := conn.(*net.UDPConn); ok {
		u.SetReadBuffer(readBuffer) // as much of it as the system grants
	}
	b := newBatch(conn)
	var sc scratch
	bufs := make([][]byte, batchSize)
	for {
		n, err := b.read()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			s.log.Debug("question not read", "error", err)
			continue
		}
		st, token := s.settings.Load(), s.token()
		for i := range n {
			msg := b.msg(i)
			out, ok := s.guardedQuick(st, token, msg, &sc, bufs[i][:0], b, i)
			if ok {
				if cap(out) <= 1<<14 {
					bufs[i] = out
				}
				b.answer(i, out)
				continue
			}
			b.answer(i, nil)
			s.later(ctx, b, i, work)
		}
		b.flush()
	}
}

// guardedQuick is quick; a question that it fails at for a fault of this program is left to the longer way.
func (s *Server) guardedQuick(st *Settings, token string, msg []byte, sc *scratch, out []byte, b batch, i int) (answer []byte, ok bool) {
	defer func() {
		if p := recover(); p != nil {
			s.fault(p, b.from(i))
			*sc = scratch{}
			answer, ok = nil, false
		}
	}()
	return s.quick(st, token, msg, sc, out, b, i)
}

// slot takes one of the places for questions under way; the place must be released. It reports false when none is free.
func (s *Server) slot(req *dns.Msg) (release func(), ok bool) {
	slots := s.recursions
	if len(req.Question) == 1 {
		if _, ours := s.zone(req.Question[0].Name); ours {
			slots = s.lookups
		}
	}
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, true
	default:
		return nil, false
	}
}

// quick answers a question by what is kept. It reports false when that is not enough.
func (s *Server) quick(st *Settings, token string, msg []byte, sc *scratch, out []byte, b batch, i int) ([]byte, bool) {
	began := time.Now()
	q, ok := parsePlain(msg)
	if !ok {
		return nil, false
	}
	k := s.kept.find(q.key, sc)
	if k == nil || !k.current(st, token) {
		return nil, false
	}
	if out = k.appendTo(out, &q, sc); out == nil {
		return nil, false
	}
	s.counts.quick(q.key, time.Since(began))
	if s.log.IsDebug() {
		s.logPacked(msg, b.from(i), began)
	}
	return out, true
}

// later answers a question beside the reading of others, or drops it when there are too many.
func (s *Server) later(ctx context.Context, b batch, i int, work func(func())) {
	msg := append([]byte(nil), b.msg(i)...)
	from := b.from(i)
	req, err := s.unpack(msg, from)
	if err != nil || req.Response || req.Opcode != dns.OpcodeQuery || len(req.Question) != 1 {
		b.answer(i, refuse(msg, err))
		return
	}
	release, ok := s.slot(req)
	if !ok {
		s.counts.dropped.Add(1)
		return
	}
	reply := b.replier(i)
	work(func() {
		defer release()
		q, _ := parsePlain(msg)
		out := s.packed(ctx, asker{from, s.token()}, req, false, q.key)
		if out == nil {
			return
		}
		if err := reply(out); err != nil {
			s.log.Debug("answer not sent", "client", from, "error", err)
		}
	})
}

// refuse is the answer to what is no question of ours, nil when it deserves none.
func refuse(msg []byte, err error) []byte {
	switch {
	case len(msg) < headerLen || msg[2]&0x80 != 0:
		return nil
	case msg[2]>>3&15 != dns.OpcodeQuery:
		return failure(msg, dns.RcodeNotImplemented)
	}
	return failure(msg, dns.RcodeFormatError)
}

// failure is an answer that consists of a header.
func failure(msg []byte, rcode int) []byte {
	out := make([]byte, headerLen)
	copy(out, msg[:2])
	out[2] = 0x80 | msg[2]&0x79 // opcode and RD
	out[3] = msg[3]&0x10 | byte(rcode)
	return out
}

// plainBatch reads one question at a time from any socket.
type plainBatch struct {
	conn net.PacketConn
	buf  []byte
	n    int
	addr net.Addr
	out  []byte
}

func (b *plainBatch) read() (int, error) {
	if b.buf == nil {
		b.buf = make([]byte, dns.MaxMsgSize)
	}
	var err error
	b.n, b.addr, err = b.conn.ReadFrom(b.buf)
	if err != nil {
		return 0, err
	}
	return 1, nil
}

func (b *plainBatch) msg(int) []byte { return b.buf[:b.n] }

func (b *plainBatch) from(int) netip.AddrPort {
	if u, ok := b.addr.(*net.UDPAddr); ok {
		return u.AddrPort()
	}
	from, _ := netip.ParseAddrPort(b.addr.String())
	return from
}

func (b *plainBatch) answer(_ int, out []byte) { b.out = out }

func (b *plainBatch) flush() {
	if b.out != nil {
		b.conn.WriteTo(b.out, b.addr)
	}
}

func (b *plainBatch) replier(int) func([]byte) error {
	addr := b.addr
	return func(out []byte) error {
		_, err := b.conn.WriteTo(out, addr)
		return err
	}
}
