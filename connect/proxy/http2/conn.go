package http2

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/stream"
)

const (
	initialWindow = 65535
	// readSize is the size of the buffer that frames are read into; a frame fits.
	readSize = 32 << 10
	// restKeep is how many bytes of an incomplete frame wait in a buffer of their own size, not in that for reading.
	restKeep = 1 << 10
	// outSize is how much waits to be written before streams have to wait; then some frames more may.
	outSize = 64 << 10
	// outKeep bounds the buffers for writing that are used again.
	outKeep = 128 << 10
	// linger is how long a peer may take to read our last words.
	linger      = time.Second
	lingerBytes = 1 << 20
	// trimAfter is how long a connection without streams keeps the memory of those it had.
	trimAfter = 5 * time.Second
	// maxContinuations bounds the frames of one header block.
	maxContinuations = 32
	// controlRate is how many frames that carry nothing a peer may send in controlPeriod. More are accepted while at
	// least half as many others travel: some clients measure the connection with PING whenever there is data.
	controlRate   = 2000
	controlPeriod = 10 * time.Second
)

type buffer struct{ b []byte }

var (
	readBuffers  = sync.Pool{New: func() any { return &buffer{make([]byte, readSize)} }}
	rests        = sync.Pool{New: func() any { return new([restKeep]byte) }}
	writeBuffers = sync.Pool{New: func() any { return &buffer{make([]byte, 0, 4<<10)} }}
)

// A side is what differs between the two ends.
type side interface {
	// headers handles a header block, which is decoded in any case. Called by the reader.
	headers(id uint32, end, selfDependent bool, block []byte) error
	// idle reports whether no stream with the number was opened. Called by the reader.
	idle(id uint32) bool
	// gone handles GOAWAY, with mu held.
	gone(last uint32, code Code)
	// settings is called with mu held after the peer's settings changed.
	settings()
	// tick does what is due and returns when something is due next; the zero time is never. Called with mu held.
	tick(now time.Time) time.Time
	// trim frees the memory of streams that ended. Called with mu held.
	trim()
}

// A conn is what both ends have in common.
type conn struct {
	nc     net.Conn
	opt    Options
	side   side
	in     *stream.Reader
	emitFn func(*field)

	// For the reader alone.
	rbuf      *buffer
	filled    int             // bytes of rbuf, or of rest while there is no rbuf
	rest      *[restKeep]byte // nil if there are none
	preface   int             // bytes of the preface that are still to come
	dec       decoder
	blk       block
	scratch   message.Response // trailers and heads that are being decoded
	cont      uint32           // the stream whose header block goes on, or 0
	contEnd   bool
	contSelf  bool
	contCount int
	contBlock []byte
	greeted   bool // the first frame has come
	empty     int  // empty frames in a row
	control   int  // frames that carry nothing, in the current period
	period    time.Time
	work      int       // streams and DATA frames when it began
	clock     time.Time // when this round of reading began
	dirty     bool      // something was put into out in this round

	wg sync.WaitGroup // of the goroutines beside the reader

	mu   sync.Mutex
	wake sync.Cond // of the writer

	out    *buffer // nil if there is nothing
	frames int     // in out
	ctrl   int     // frames in out that the peer made us send
	flush  bool    // the writer is to write
	writer bool    // it is there
	retire bool    // it is to go, for lack of work
	added  uint64  // bytes ever put into out
	taken  uint64  // of these, bytes ever taken to be written
	enc    encoder

	table   table
	turn    *exchange // may put something into out next
	waiting [2]queue  // for heads and for bodies

	open       int // streams as the protocol counts them
	opened     int // streams ever
	priorities int
	windows    int // WINDOW_UPDATE frames
	dataSent   int // DATA frames
	dataRead   int
	sendWindow int64
	recvWindow int64
	unacked    uint32

	agreed      bool  // the peer has acknowledged our settings
	peerWindow  int64 // initial, of streams
	peerStreams uint32
	peerFrame   int
	peerConnect bool

	err     error // why the connection ended, or is about to
	closing bool  // out is to be written, and then nothing more
	closed  bool  // the network connection is closed

	timer    *time.Timer
	timerAt  time.Time
	idleAt   time.Time // when the last stream ended; zero while there are some
	trimmed  bool
	read     time.Time // when something was last read, if anybody wants to know
	pingAt   time.Time // the next one
	pongBy   time.Time // the latest time for an answer; zero if none is expected
	recently closedIDs
}

func (c *conn) init(nc net.Conn, opt Options, s side) {
	opt.defaults()
	c.nc, c.opt, c.side = nc, opt, s
	c.in = stream.NewReader(nc, c.space, c.spare)
	c.emitFn = c.emit
	c.wake.L = &c.mu
	c.dec.init()
	c.enc.init()
	c.sendWindow, c.peerWindow = initialWindow, initialWindow
	c.recvWindow = int64(opt.ConnWindow)
	c.peerFrame, c.peerStreams = maxFrame, 1<<31-1
	if opt.HeaderTable > defaultTable {
		c.dec.allowed = uint32(opt.HeaderTable)
	}
}

// space returns where to read to.
func (c *conn) space() []byte {
	if c.rbuf == nil {
		c.rbuf = readBuffers.Get().(*buffer)
		if c.rest != nil {
			copy(c.rbuf.b, c.rest[:c.filled])
			rests.Put(c.rest)
			c.rest = nil
		}
	}
	return c.rbuf.b[c.filled:]
}

// spare gives the buffer for reading up if little is in it.
func (c *conn) spare() {
	if c.rbuf == nil || c.filled > restKeep {
		return
	}
	if c.filled > 0 {
		c.rest = rests.Get().(*[restKeep]byte)
		copy(c.rest[:], c.rbuf.b[:c.filled])
	}
	readBuffers.Put(c.rbuf)
	c.rbuf = nil
}

// hello queues our settings. Called before anybody else uses the connection.
func (c *conn) hello(b []byte, extra ...[2]uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	set := append(extra, [2]uint32{settingWindow, c.opt.StreamWindow}, [2]uint32{settingHeaderList, uint32(c.opt.MaxHeaderBytes + 32*c.opt.MaxHeaders)})
	if c.opt.HeaderTable != defaultTable {
		set = append(set, [2]uint32{settingTable, uint32(c.opt.HeaderTable)})
	}
	b = appendFrame(b, 6*len(set), typeSettings, 0, 0)
	for _, s := range set {
		b = appendSetting(b, uint16(s[0]), s[1])
	}
	if more := c.opt.ConnWindow - initialWindow; more > 0 {
		b = appendUint32(appendFrame(b, 4, typeWindow, 0, 0), more)
	}
	o := c.outbuf()
	o.b = append(o.b, b...)
	c.put(0, false)
	c.notify()
	now := time.Now()
	c.idleAt, c.trimmed = now, true
	if k := c.opt.Keepalive.Interval; k > 0 {
		c.pingAt = now.Add(c.jittered(k))
	}
}

func (c *conn) jittered(d time.Duration) time.Duration {
	return d + time.Duration(rand.Float64()*c.opt.Keepalive.Jitter*float64(d))
}

// outbuf returns the buffer to append frames to; put follows.
func (c *conn) outbuf() *buffer {
	if c.out == nil {
		c.out = writeBuffers.Get().(*buffer)
	}
	return c.out
}

// put counts what was appended to out, which was so long before.
func (c *conn) put(before int, control bool) {
	c.added += uint64(len(c.out.b) - before)
	c.frames++
	if control {
		c.ctrl++
		if c.ctrl > c.opt.MaxOutboundControlFrames {
			c.opt.Counters.OutboundControlFloods.Add(1)
			c.fail(&Error{Code: EnhanceYourCalm, Detail: "http2.outbound_control_flood"})
			return
		}
	}
	if c.frames > c.opt.MaxOutboundFrames {
		c.opt.Counters.OutboundFloods.Add(1)
		c.fail(&Error{Code: EnhanceYourCalm, Detail: "http2.outbound_frames_flood"})
	}
}

// controlFrame queues a frame that the peer gave reason for, or that belongs to the connection.
func (c *conn) controlFrame(typ, flags byte, id uint32, payload []byte) {
	if c.err != nil {
		return
	}
	o := c.outbuf()
	n := len(o.b)
	o.b = append(appendFrame(o.b, len(payload), typ, flags, id), payload...)
	c.put(n, true)
}

func (c *conn) number(typ byte, id, n uint32) {
	b := [4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
	c.controlFrame(typ, 0, id, b[:])
}

func (c *conn) goAway(last uint32, code Code) {
	var b [8]byte
	appendUint32(appendUint32(b[:0], last), uint32(code))
	c.opt.Counters.GoAwaysSent.Add(1)
	c.controlFrame(typeGoAway, 0, 0, b[:])
}

// buffered returns how many bytes wait to be written.
func (c *conn) buffered() int {
	if c.out == nil {
		return 0
	}
	return len(c.out.b)
}

// notify makes the writer write soon. The lock is held.
func (c *conn) notify() {
	if c.flush || c.closed {
		return
	}
	c.flush = true
	if c.writer {
		c.wake.Signal()
	} else {
		c.writer = true
		c.wg.Go(c.write)
	}
}

// write is the writer. It ends with the connection, or when there has been nothing to write for a while.
func (c *conn) write() {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() { c.writer, c.retire = false, false }()
	for {
		for !c.flush && !c.closed && !c.retire {
			c.wake.Wait()
		}
		if c.closed || !c.flush {
			return
		}
		// Whoever else is about to put something into the buffer may do so first.
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
		o := c.out
		c.flush = false
		if o != nil {
			c.out, c.frames, c.ctrl = nil, 0, 0
			c.taken = c.added
			c.pass()
			c.mu.Unlock()
			_, err := c.nc.Write(o.b)
			if cap(o.b) <= outKeep {
				o.b = o.b[:0]
				writeBuffers.Put(o)
			}
			c.mu.Lock()
			if err != nil {
				c.kill(err)
				return
			}
		}
		if c.closing && c.out == nil && !c.closed {
			// The peer must be able to read our last words, so we wait for it to close, but not for long.
			c.mu.Unlock()
			_ = stream.CloseWrite(c.nc)
			c.mu.Lock()
			if !c.closed {
				_ = c.nc.SetReadDeadline(time.Now().Add(linger))
			}
			for !c.closed {
				c.wake.Wait()
			}
			return
		}
	}
}

// fail ends the connection for a reason of ours, which the peer is told. The lock is held.
func (c *conn) fail(err *Error) {
	if c.err != nil {
		return
	}
	o := c.outbuf()
	n := len(o.b)
	o.b = appendUint32(appendUint32(appendFrame(o.b, 8, typeGoAway, 0, 0), c.lastID()), uint32(err.Code))
	c.added += uint64(len(o.b) - n)
	c.opt.Counters.GoAwaysSent.Add(1)
	c.end(err, message.ProtocolError, err.Detail)
	c.finish()
}

func (c *conn) lastID() uint32 {
	if s, ok := c.side.(*ServerConn); ok {
		return s.maxID
	}
	return 0
}

func (c *conn) server() bool {
	_, ok := c.side.(*ServerConn)
	return ok
}

// finish has everything written, and then the connection closed. The lock is held.
func (c *conn) finish() {
	if c.closing {
		return
	}
	c.closing = true
	// A peer that does not read does not keep us.
	_ = c.nc.SetWriteDeadline(time.Now().Add(linger))
	c.notify()
}

// end breaks off all streams. The lock is held.
func (c *conn) end(err error, reason message.Reason, detail string) {
	if c.err != nil {
		return
	}
	c.err = err
	for _, s := range c.table.slots {
		if s != nil {
			s.breakOff(reason, detail, err)
		}
	}
}

// past is a time before all others.
var past = time.Unix(1, 0)

// kill ends the connection at once. The lock is held.
func (c *conn) kill(err error) {
	if err == nil {
		err = io.EOF
	}
	c.end(err, message.ConnectionTermination, "")
	if !c.closed {
		c.closed = true
		_ = c.nc.SetDeadline(past) // closing TLS can take a while, so the reader does it
		c.wake.Signal()
		if c.timer != nil {
			c.timer.Stop()
		}
	}
}

// receive is the reader. It returns when the connection has ended.
func (c *conn) receive() error {
	for {
		n, err := c.in.Read()
		if n > 0 {
			c.filled += n
			c.clock = time.Time{}
			e := c.round()
			if e != nil {
				c.mu.Lock()
				c.fail(e)
				c.mu.Unlock()
				c.discard()
				err = e
			} else if c.over() {
				c.discard()
				err = io.EOF
			}
		}
		if err != nil {
			c.mu.Lock()
			if c.err == nil && c.filled > 0 && err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			c.kill(err)
			err = c.err
			c.mu.Unlock()
			c.nc.Close()
			c.filled, c.rest = 0, nil
			c.spare()
			return err
		}
	}
}

// discard reads what is of no interest until the peer, or the time that it has, ends, so that it can read our last
// words. One that sends and sends gets none.
func (c *conn) discard() {
	c.filled = 0
	for n := 0; n < lingerBytes; {
		m, err := c.in.Read()
		if err != nil {
			return
		}
		n += m
	}
}

// now returns the time at which this round of reading began.
func (c *conn) now() time.Time {
	if c.clock.IsZero() {
		c.clock = time.Now()
	}
	return c.clock
}

// round handles the frames that are there.
func (c *conn) round() *Error {
	var err *Error
	b := c.rbuf.b[:c.filled]
	if c.preface > 0 {
		n := min(c.preface, len(b))
		if string(b[:n]) != preface[len(preface)-c.preface:][:n] {
			return &Error{Code: ProtocolError, Detail: "http2.bad_preface"}
		}
		b = b[n:]
		c.preface -= n
	}
	if c.opt.Keepalive.Idle > 0 || c.opt.Keepalive.Interval > 0 {
		c.mu.Lock()
		c.read = c.now()
		c.mu.Unlock()
	}
	if c.preface == 0 {
		for len(b) >= frameHeader {
			n := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
			if n > maxFrame {
				return &Error{Code: FrameSizeError, Detail: "http2.frame_too_large"}
			}
			if len(b) < frameHeader+n {
				break
			}
			if err = c.frame(b[3], b[4], uint31(b[5:]), b[frameHeader:frameHeader+n]); err != nil {
				return err
			}
			b = b[frameHeader+n:]
		}
	}
	c.filled = copy(c.rbuf.b, b)
	return nil
}

// over ends a round: what it gave reason to send is sent. It reports whether the connection has failed.
func (c *conn) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dirty {
		c.dirty = false
		if c.out != nil {
			c.notify()
		}
	}
	return c.err != nil
}

var errFrameSize = &Error{Code: FrameSizeError, Detail: "http2.frame_size"}

func protocolError(detail string) *Error { return &Error{Code: ProtocolError, Detail: detail} }

// frame handles a frame.
func (c *conn) frame(typ, flags byte, id uint32, p []byte) *Error {
	if c.cont != 0 && (typ != typeContinuation || id != c.cont) {
		return protocolError("http2.continuation_expected")
	}
	if !c.greeted {
		if typ != typeSettings || flags&flagAck != 0 {
			return protocolError("http2.settings_expected")
		}
		c.greeted = true
	}
	switch typ {
	case typeData:
		return c.data(flags, id, p)
	case typeHeaders:
		return c.headers(flags, id, p)
	case typeContinuation:
		return c.continuation(flags, id, p)
	case typeWindow:
		return c.windowUpdate(id, p)
	case typePush:
		return protocolError("http2.push")
	}
	if err := c.countControl(); err != nil {
		return err
	}
	switch typ {
	case typeReset:
		return c.reset(id, p)
	case typePriority:
		return c.priority(id, p)
	case typeSettings:
		return c.settings(flags, id, p)
	case typePing:
		if len(p) != 8 {
			return errFrameSize
		}
		if id != 0 {
			return protocolError("http2.ping_on_stream")
		}
		c.mu.Lock()
		if flags&flagAck != 0 {
			c.pongBy = time.Time{}
		} else {
			c.controlFrame(typePing, flagAck, 0, p)
			c.dirty = true
		}
		c.mu.Unlock()
	case typeGoAway:
		if len(p) < 8 {
			return errFrameSize
		}
		if id != 0 {
			return protocolError("http2.goaway_on_stream")
		}
		c.mu.Lock()
		c.side.gone(uint31(p), Code(uint32of(p[4:])))
		c.mu.Unlock()
	}
	return nil
}

// countControl bounds the work that frames make which carry nothing.
func (c *conn) countControl() *Error {
	c.control++
	if c.control <= controlRate {
		return nil
	}
	c.mu.Lock()
	work := c.opened + c.dataSent + c.dataRead
	c.mu.Unlock()
	if now := c.now(); now.Sub(c.period) > controlPeriod || work-c.work >= controlRate/2 {
		c.period, c.control, c.work = now, 0, work
		return nil
	}
	c.opt.Counters.ControlFloods.Add(1)
	return &Error{Code: EnhanceYourCalm, Detail: "http2.inbound_control_flood"}
}

// countEmpty bounds frames that have no content and end nothing.
func (c *conn) countEmpty(n int, end bool) *Error {
	if n > 0 || end {
		c.empty = 0
		return nil
	}
	if c.empty++; c.empty > c.opt.MaxEmptyFrames {
		c.opt.Counters.EmptyFrameFloods.Add(1)
		return &Error{Code: EnhanceYourCalm, Detail: "http2.inbound_empty_frames_flood"}
	}
	return nil
}

// unpad removes the padding of a frame.
func unpad(flags byte, p []byte) ([]byte, bool) {
	if flags&flagPadded == 0 {
		return p, true
	}
	if len(p) == 0 || int(p[0]) > len(p)-1 {
		return nil, false
	}
	return p[1 : len(p)-int(p[0])], true
}

func (c *conn) data(flags byte, id uint32, p []byte) *Error {
	if id == 0 {
		return protocolError("http2.data_on_connection")
	}
	body, ok := unpad(flags, p)
	if !ok {
		return protocolError("http2.padding")
	}
	end := flags&flagEnd != 0
	if err := c.countEmpty(len(body), end); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dataRead++
	if c.recvWindow -= int64(len(p)); c.recvWindow < 0 {
		return &Error{Code: FlowControlError, Detail: "http2.connection_window"}
	}
	s := c.table.get(id)
	if s == nil || s.gone {
		c.giveBack(nil, len(p))
		if c.side.idle(id) {
			return protocolError("http2.data_on_idle_stream")
		}
		if how, known := c.recently.find(id); !known || how != closedByUs {
			c.resetID(id, StreamClosed)
		}
		return nil
	}
	if s.recvEnd {
		c.giveBack(nil, len(p))
		s.reset(StreamClosed, message.ProtocolError)
		return nil
	}
	if s.recvWindow -= int64(len(p)); s.recvWindow < 0 {
		c.giveBack(nil, len(p))
		s.reset(FlowControlError, message.ProtocolError)
		return nil
	}
	if !s.recvHead {
		c.giveBack(nil, len(p))
		return c.malformed(s, "http2.data_before_headers")
	}
	if s.expect >= 0 {
		s.expect -= int64(len(body))
		if s.expect < 0 || end && s.expect > 0 {
			c.giveBack(nil, len(p))
			c.wrongLength(s)
			return nil
		}
	}
	if pad := len(p) - len(body); pad > 0 {
		c.giveBack(s, pad)
	}
	if len(body) > 0 {
		s.receive(body)
	}
	if end {
		s.ended()
	}
	s.rcond.Signal()
	return nil
}

// giveBack lets the peer send n bytes more, on the connection and on s if that is not nil. The lock is held.
func (c *conn) giveBack(s *exchange, n int) {
	c.unacked += uint32(n)
	if c.unacked >= c.opt.ConnWindow/2 {
		c.recvWindow += int64(c.unacked)
		c.number(typeWindow, 0, c.unacked)
		c.unacked = 0
		c.notify()
	}
	if s == nil || s.recvEnd || s.gone {
		return
	}
	s.unacked += uint32(n)
	if s.unacked >= c.opt.StreamWindow/2 {
		s.recvWindow += int64(s.unacked)
		c.number(typeWindow, s.id, s.unacked)
		s.unacked = 0
		c.notify()
	}
}

// malformed refuses a message. The lock is held.
func (c *conn) malformed(s *exchange, detail string) *Error {
	c.opt.Counters.MessagingErrors.Add(1)
	if !c.opt.StreamErrors {
		return protocolError(detail)
	}
	s.resetDetail(ProtocolError, message.ProtocolError, detail)
	c.dirty = true
	return nil
}

// wrongLength refuses a message whose body is not as long as it says, which concerns that stream alone: the other
// streams were framed as they should (RFC 9113 section 8.1.1). The lock is held.
func (c *conn) wrongLength(s *exchange) {
	c.opt.Counters.MessagingErrors.Add(1)
	s.keep = s.client != nil // a response may have been passed on in part already
	s.resetDetail(ProtocolError, message.ProtocolError, "http2.content_length")
	c.dirty = true
}

// resetID tells the peer that it misuses a stream that is no more. The lock is held.
func (c *conn) resetID(id uint32, code Code) {
	c.opt.Counters.ResetsSent.Add(1)
	c.number(typeReset, id, uint32(code))
	c.dirty = true
}

func (c *conn) headers(flags byte, id uint32, p []byte) *Error {
	if id == 0 {
		return protocolError("http2.headers_on_connection")
	}
	p, ok := unpad(flags, p)
	if !ok {
		return protocolError("http2.padding")
	}
	self := false
	if flags&flagPriority != 0 {
		if len(p) < 5 {
			return errFrameSize
		}
		self = uint31(p) == id
		p = p[5:]
	}
	end := flags&flagEnd != 0
	if err := c.countEmpty(len(p), end); err != nil {
		return err
	}
	if flags&flagEndHeaders != 0 {
		return c.headerBlock(id, end, self, p)
	}
	c.cont, c.contEnd, c.contSelf, c.contCount = id, end, self, 0
	c.contBlock = append(c.contBlock[:0], p...)
	return nil
}

func (c *conn) continuation(flags byte, id uint32, p []byte) *Error {
	if c.cont == 0 {
		return protocolError("http2.unexpected_continuation")
	}
	last := flags&flagEndHeaders != 0
	if err := c.countEmpty(len(p), last); err != nil {
		return err
	}
	c.contCount++
	// No encoder makes blocks much larger than what they stand for.
	if c.contCount > maxContinuations || len(c.contBlock)+len(p) > 2*c.opt.MaxHeaderBytes+maxFrame {
		c.opt.Counters.HeaderFloods.Add(1)
		return &Error{Code: EnhanceYourCalm, Detail: "http2.inbound_continuation_flood"}
	}
	c.contBlock = append(c.contBlock, p...)
	if !last {
		return nil
	}
	c.cont = 0
	err := c.headerBlock(id, c.contEnd, c.contSelf, c.contBlock)
	c.contBlock = nil
	return err
}

func (c *conn) headerBlock(id uint32, end, self bool, p []byte) *Error {
	err := c.side.headers(id, end, self, p)
	c.blk = block{}
	c.dec.release()
	if err == nil {
		return nil
	}
	if errors.Is(err, errCompression) {
		return &Error{Code: CompressionError, Detail: "http2.hpack"}
	}
	e, _ := errors.AsType[*Error](err)
	return e
}

func (c *conn) priority(id uint32, p []byte) *Error {
	if id == 0 {
		return protocolError("http2.priority_on_connection")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(p) != 5 {
		return errFrameSize
	}
	if c.priorities++; c.priorities > c.opt.MaxPriorityPerStream*(1+c.opened) {
		c.opt.Counters.PriorityFloods.Add(1)
		return &Error{Code: EnhanceYourCalm, Detail: "http2.inbound_priority_frames_flood"}
	}
	if uint31(p) == id {
		if s := c.table.get(id); s != nil && !s.gone {
			s.reset(ProtocolError, message.ProtocolError)
		} else {
			c.resetID(id, ProtocolError)
		}
		c.dirty = true
	}
	return nil
}

func (c *conn) reset(id uint32, p []byte) *Error {
	if len(p) != 4 {
		return errFrameSize
	}
	if id == 0 {
		return protocolError("http2.reset_on_connection")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.table.get(id)
	if s == nil {
		if c.side.idle(id) {
			return protocolError("http2.reset_of_idle_stream")
		}
		return nil
	}
	if s.gone {
		return nil
	}
	c.opt.Counters.ResetsReceived.Add(1)
	s.resetByPeer(Code(uint32of(p)))
	return nil
}

func (c *conn) windowUpdate(id uint32, p []byte) *Error {
	if len(p) != 4 {
		return errFrameSize
	}
	n := int64(uint31(p))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.windows++; c.windows > 5+2*(c.opened+c.opt.MaxWindowPerData*c.dataSent) {
		c.opt.Counters.WindowFloods.Add(1)
		return &Error{Code: EnhanceYourCalm, Detail: "http2.inbound_window_update_frames_flood"}
	}
	if id == 0 {
		if n == 0 {
			return protocolError("http2.window_update_of_zero")
		}
		if c.sendWindow += n; c.sendWindow > maxWindow {
			return &Error{Code: FlowControlError, Detail: "http2.window_overflow"}
		}
		c.pass()
		return nil
	}
	s := c.table.get(id)
	if s == nil {
		if c.side.idle(id) {
			return protocolError("http2.window_update_on_idle_stream")
		}
		return nil
	}
	if s.gone {
		return nil
	}
	if n == 0 {
		c.dirty = true
		s.reset(ProtocolError, message.ProtocolError)
		return nil
	}
	if s.sendWindow += n; s.sendWindow > maxWindow {
		c.dirty = true
		s.reset(FlowControlError, message.ProtocolError)
		return nil
	}
	s.wcond.Signal()
	return nil
}

func (c *conn) settings(flags byte, id uint32, p []byte) *Error {
	if id != 0 {
		return protocolError("http2.settings_on_stream")
	}
	if flags&flagAck != 0 {
		if len(p) > 0 {
			return errFrameSize
		}
		if c.opt.HeaderTable != defaultTable {
			c.dec.setAllowed(uint32(c.opt.HeaderTable))
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.agreed {
			c.agreed = true
			if less := initialWindow - int64(c.opt.StreamWindow); less > 0 {
				for _, s := range c.table.slots {
					if s != nil {
						s.recvWindow -= less
					}
				}
			}
		}
		return nil
	}
	if len(p)%6 != 0 {
		return errFrameSize
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; len(p) > 0; p = p[6:] {
		v := uint32of(p[2:])
		switch uint16(p[0])<<8 | uint16(p[1]) {
		case settingTable:
			c.enc.setLimit(v)
		case settingPush:
			if v > 1 || v == 1 && !c.server() {
				return protocolError("http2.enable_push")
			}
		case settingStreams:
			c.peerStreams = v
		case settingWindow:
			if v > maxWindow {
				return &Error{Code: FlowControlError, Detail: "http2.initial_window"}
			}
			diff := int64(v) - c.peerWindow
			c.peerWindow = int64(v)
			for _, s := range c.table.slots {
				if s == nil {
					continue
				}
				if s.sendWindow += diff; s.sendWindow > maxWindow {
					return &Error{Code: FlowControlError, Detail: "http2.window_overflow"}
				}
				s.wcond.Signal()
			}
		case settingFrame:
			if v < maxFrame || v > 1<<24-1 {
				return protocolError("http2.max_frame_size")
			}
			c.peerFrame = min(int(v), maxFrame)
		case settingConnect:
			if v > 1 || v == 0 && c.peerConnect {
				return protocolError("http2.enable_connect_protocol")
			}
			c.peerConnect = v == 1
		}
	}
	c.controlFrame(typeSettings, flagAck, 0, nil)
	c.dirty = true
	c.side.settings()
	return nil
}

// pass lets the next of those go on that wait for room in out. The lock is held.
func (c *conn) pass() {
	if c.turn != nil || c.buffered() >= outSize {
		return
	}
	s := c.waiting[forHead].pop()
	if s == nil && c.sendWindow > 0 {
		s = c.waiting[forBody].pop()
	}
	if s != nil {
		c.turn = s
		s.wcond.Signal()
	}
}

// schedule makes tick be called at t, or earlier. The lock is held.
func (c *conn) schedule(t time.Time) {
	if t.IsZero() || c.closed || !c.timerAt.IsZero() && !t.Before(c.timerAt) {
		return
	}
	c.timerAt = t
	if d := time.Until(t); c.timer == nil {
		c.timer = time.AfterFunc(d, c.onTimer)
	} else {
		c.timer.Reset(d)
	}
}

func (c *conn) onTimer() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.err != nil {
		return
	}
	now := time.Now()
	c.timerAt = time.Time{}
	next := earlier(c.side.tick(now), c.keepalive(now))
	if c.closed || c.err != nil {
		return
	}
	if !c.trimmed && !c.idleAt.IsZero() {
		if at := c.idleAt.Add(trimAfter); now.Before(at) {
			next = earlier(next, at)
		} else {
			c.trimmed = true
			c.retire = c.writer
			c.wake.Signal()
			c.side.trim()
			c.table.shrink()
		}
	}
	c.schedule(next)
}

// keepalive sends pings and returns when to look again.
func (c *conn) keepalive(now time.Time) time.Time {
	if !c.pongBy.IsZero() && !now.Before(c.pongBy) {
		c.opt.Counters.KeepaliveTimeouts.Add(1)
		c.kill(errKeepalive)
		return time.Time{}
	}
	if !c.pingAt.IsZero() && !now.Before(c.pingAt) {
		c.ping(now)
		c.pingAt = now.Add(c.jittered(c.opt.Keepalive.Interval))
	}
	return earlier(c.pingAt, c.pongBy)
}

func (c *conn) ping(now time.Time) {
	if !c.pongBy.IsZero() {
		return
	}
	c.controlFrame(typePing, 0, 0, []byte("sarnping"))
	c.notify()
	c.pongBy = now.Add(c.opt.Keepalive.Timeout)
}

var errKeepalive = errors.New("http2: the peer does not answer pings")

// earlier returns the earlier of two times; a zero time is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// began and rested follow the number of streams. The lock is held.
func (c *conn) began() {
	c.idleAt = time.Time{}
}

func (c *conn) rested() {
	c.idleAt = time.Now()
	c.trimmed = false
	c.schedule(c.idleAt.Add(trimAfter))
}

// How a stream was closed.
const (
	closedByUs = iota + 1
	closedByPeer
)

// closedIDs remembers some streams that closed last.
type closedIDs struct {
	ids [32]struct {
		id  uint32
		how uint8
	}
	next int
	lost bool // some that we closed are remembered no more
}

func (r *closedIDs) add(id uint32, how uint8) {
	e := &r.ids[r.next%len(r.ids)]
	if e.how == closedByUs {
		r.lost = true
	}
	e.id, e.how = id, how
	r.next++
}

func (r *closedIDs) find(id uint32) (how uint8, ok bool) {
	for i := range r.ids {
		if r.ids[i].id == id {
			return r.ids[i].how, true
		}
	}
	return 0, false
}
