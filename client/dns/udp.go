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
	from(i int) netip.AddrPort // without the zone of an address
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
			who := s.udp(st, b.from(i), token)
			out, ok := s.guardedQuick(st, who, msg, &sc, bufs[i][:0])
			if ok {
				if cap(out) <= 1<<14 {
					bufs[i] = out
				}
				b.answer(i, out)
				continue
			}
			b.answer(i, nil)
			s.later(ctx, who, b, i, work)
		}
		b.flush()
	}
}

// guardedQuick is quick; a question that it fails at for a fault of this program is left to the longer way.
func (s *Server) guardedQuick(st *Settings, who asker, msg []byte, sc *scratch, out []byte) (answer []byte, ok bool) {
	defer func() {
		if p := recover(); p != nil {
			s.fault(p, who.from)
			*sc = scratch{}
			answer, ok = nil, false
		}
	}()
	return s.quick(st, who, msg, sc, out)
}

// slot takes one of the places for questions under way; the place must be released. It reports false when none is free.
func (s *Server) slot(req *dns.Msg) (release func(), ok bool) {
	slots := s.recursions
	if s.ours(req) {
		slots = s.lookups
	}
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, true
	default:
		return nil, false
	}
}

// quick answers a question by what is kept. It reports false when that is not enough.
func (s *Server) quick(st *Settings, who asker, msg []byte, sc *scratch, out []byte) ([]byte, bool) {
	began := time.Now()
	q, ok := parsePlain(msg)
	if !ok {
		return nil, false
	}
	k := s.kept.find(q.key, sc)
	if k == nil || !k.current(st, who.token) {
		return nil, false
	}
	out = k.appendTo(out, &q, roomFor(who, q.edns, q.size), sc)
	if who.strange && len(out) > len(msg) && s.limited(st, who, kindOf(out), began) {
		out = q.short(out[:0])
	}
	s.counts.quick(q.key, time.Since(began))
	if s.log.IsDebug() {
		s.logPacked(msg, who.from, began)
	}
	return out, true
}

// later answers a question beside the reading of others, or drops it when there are too many.
func (s *Server) later(ctx context.Context, who asker, b batch, i int, work func(func())) {
	msg := append([]byte(nil), b.msg(i)...)
	req, err := s.unpack(msg, who.from)
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
		out, ours := s.packed(ctx, who, req, q.key)
		if out == nil {
			return
		}
		if ours && who.strange && len(out) > len(msg) && s.limited(s.settings.Load(), who, kindOf(out), time.Now()) {
			if out, err = short(req).Pack(); err != nil {
				return
			}
		}
		if err := reply(out); err != nil {
			s.log.Debug("answer not sent", "client", who.from, "error", err)
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
	var from netip.AddrPort
	if u, ok := b.addr.(*net.UDPAddr); ok {
		from = u.AddrPort()
	} else {
		from, _ = netip.ParseAddrPort(b.addr.String())
	}
	return netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
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
