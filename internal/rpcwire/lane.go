package rpcwire

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/span"
)

// A call over gRPC costs a stream: headers, trailers, and some goroutines' turns on either side. Short calls that many
// make at once of the same server go over one stream for all, a lane, in messages that take all that wait. A call is a
// frame in such a message, its answer another, in any order.

// laneName is the stream of gRPC that is a lane.
const laneName = "Lane"

const (
	maxLaneBody    = 64 << 10  // of an encoded request
	maxLaneMessage = 256 << 10 // from which size on frames wait for the next message
	// maxLaneCalls is how many calls a client has under way on a lane. A server ends the lane of one that has more than
	// four times as many.
	maxLaneCalls = 4096
)

// A frame is a call, the wish to give one up, or an answer.
type frame struct {
	id   uint64
	kind uint64
	name string // of a call's method
	code uint64 // of an answer: zero, or that of toStatus
	data []byte // encoded request or reply; of an error, its text
}

const (
	frameCall uint64 = iota
	frameCancel
	frameAnswer
)

// frames are a message of a lane. It is given to gRPC for good.
type frames []byte

func (f frames) append(x frame) frames {
	f = binary.AppendUvarint(f, x.kind)
	f = binary.AppendUvarint(f, x.id)
	switch x.kind {
	case frameCall:
		f = append(binary.AppendUvarint(f, uint64(len(x.name))), x.name...)
	case frameAnswer:
		f = binary.AppendUvarint(f, x.code)
	default:
		return f
	}
	return append(binary.AppendUvarint(f, uint64(len(x.data))), x.data...)
}

var errFrame = errors.New("malformed frame")

// next returns the first frame, whose data are part of f, and the rest.
func (f frames) next() (x frame, rest frames, err error) {
	number := func() (n uint64) {
		n, size := binary.Uvarint(f)
		if size <= 0 {
			err = errFrame
			return 0
		}
		f = f[size:]
		return n
	}
	bytes := func() (b []byte) {
		n := number()
		if err != nil || n > uint64(len(f)) {
			err = errFrame
			return nil
		}
		b, f = f[:n:n], f[n:]
		return b
	}
	x.kind = number()
	x.id = number()
	switch x.kind {
	case frameCall:
		x.name = string(bytes())
		x.data = bytes()
	case frameAnswer:
		x.code = number()
		x.data = bytes()
	case frameCancel:
	default:
		err = errFrame
	}
	return x, f, err
}

// An outlet sends frames: those that come while a message is sent go into the next.
type outlet struct {
	send func(*frames)

	mu      sync.Mutex
	waiting []frames // messages to come
	sending bool
	idle    sync.Cond // sending has become false; its L is &mu
}

func newOutlet(send func(*frames)) *outlet {
	o := &outlet{send: send}
	o.idle.L = &o.mu
	return o
}

func (o *outlet) put(x frame) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := len(o.waiting); n == 0 || len(o.waiting[n-1]) > maxLaneMessage {
		o.waiting = append(o.waiting, nil)
	}
	last := &o.waiting[len(o.waiting)-1]
	*last = last.append(x)
	if !o.sending {
		o.sending = true
		go o.run()
	}
}

// run sends until nothing waits.
func (o *outlet) run() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.waiting) > 0 {
		messages := o.waiting
		o.waiting = nil
		o.mu.Unlock()
		for i := range messages {
			o.send(&messages[i])
		}
		o.mu.Lock()
	}
	o.sending = false
	o.idle.Broadcast()
}

// wait waits until nothing is sent.
func (o *outlet) wait() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.sending {
		o.idle.Wait()
	}
}

// A lane is the client's side.
type lane struct {
	conn   *clientConn
	out    *outlet
	opened func() (grpc.ClientStream, error) // opens the stream, once
	cancel context.CancelFunc

	mu    sync.Mutex
	last  uint64
	calls map[uint64]chan answered // under way
	err   error                    // that ended the lane
}

type answered struct {
	code uint64
	data []byte
	err  error // of the lane
}

// errNoLane is told to calls that were not made: the server knows no lanes, or there are too many calls.
var errNoLane = errors.New("no lane")

// lane returns the lane of a connection, nil if the server knows none.
func (conn *clientConn) lane() *lane {
	conn.mu.Lock()
	defer conn.mu.Unlock()
	if conn.shared != nil || conn.laneless {
		return conn.shared
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &lane{conn: conn, cancel: cancel, calls: map[uint64]chan answered{}}
	l.opened = sync.OnceValues(func() (grpc.ClientStream, error) {
		desc := &grpc.StreamDesc{StreamName: laneName, ServerStreams: true, ClientStreams: true}
		s, err := conn.grpc.NewStream(ctx, desc, "/"+service+"/"+laneName)
		if err == nil {
			go l.read(s)
		}
		return s, err
	})
	l.out = newOutlet(func(f *frames) {
		s, err := l.opened()
		if err == nil {
			err = s.SendMsg(f)
		}
		if err != nil && err != io.EOF { // of which reading tells more
			l.fail(err)
		}
	})
	conn.shared = l
	return l
}

// read gives answers to those who wait for them.
func (l *lane) read(s grpc.ClientStream) {
	for {
		var message frames
		if err := s.RecvMsg(&message); err != nil {
			l.fail(err)
			return
		}
		for len(message) > 0 {
			x, rest, err := message.next()
			if err != nil || x.kind != frameAnswer {
				l.fail(errFrame)
				return
			}
			message = rest
			l.mu.Lock()
			call := l.calls[x.id]
			delete(l.calls, x.id)
			l.mu.Unlock()
			if call != nil { // it was not given up
				call <- answered{code: x.code, data: x.data}
			}
		}
	}
}

// fail ends the lane and the calls on it.
func (l *lane) fail(err error) {
	unknown := status.Code(err) == codes.Unimplemented
	if unknown {
		err = errNoLane
	}
	l.conn.mu.Lock()
	l.conn.laneless = l.conn.laneless || unknown
	if l.conn.shared == l {
		l.conn.shared = nil
	}
	l.conn.mu.Unlock()
	l.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err = err
	for _, call := range l.calls {
		call <- answered{err: err}
	}
	l.calls = nil
}

// do makes a call. An error of the server is one of gRPC's.
func (l *lane) do(ctx context.Context, method string, body []byte) ([]byte, error) {
	call := make(chan answered, 1)
	l.mu.Lock()
	if l.err != nil || len(l.calls) >= maxLaneCalls {
		l.mu.Unlock()
		return nil, errNoLane
	}
	l.last++
	id := l.last
	l.calls[id] = call
	l.mu.Unlock()
	l.out.put(frame{id: id, kind: frameCall, name: method, data: body})
	select {
	case a := <-call:
		switch {
		case a.err != nil:
			return nil, a.err
		case a.code != 0:
			return nil, status.Error(codes.Code(a.code), string(a.data))
		}
		return a.data, nil
	case <-ctx.Done():
		l.mu.Lock()
		_, under := l.calls[id]
		delete(l.calls, id)
		l.mu.Unlock()
		if under {
			l.out.put(frame{id: id, kind: frameCancel})
		}
		return nil, ctx.Err()
	}
}

// CallShort is Call for requests that are small and answered soon, which many make at once.
func (c *Client) CallShort(ctx context.Context, address, method string, req, resp any) error {
	if span.From(ctx) != nil {
		return c.Call(ctx, address, method, req, resp)
	}
	conn, err := c.conn(ctx, address)
	if err != nil {
		return err
	}
	body, err := rpc.Marshal(req)
	if err != nil {
		return err
	}
	l := conn.lane()
	if l == nil || len(body) > maxLaneBody {
		return c.Call(ctx, address, method, req, resp)
	}
	data, err := l.do(ctx, method, body)
	switch {
	case err == nil:
		return rpc.Unmarshal(data, resp)
	case errors.Is(err, errNoLane):
		return c.Call(ctx, address, method, req, resp)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	err = fromStatus(ctx, err)
	if _, lost := errors.AsType[*LostError](err); lost {
		c.drop(address, conn)
	}
	return err
}

// serveLane answers the calls of a lane until its client ends it.
func serveLane(s grpc.ServerStream, methods map[string]Method) error {
	ctx, cancel := context.WithCancel(s.Context())
	peer := peerOf(ctx)
	out := newOutlet(func(f *frames) { s.SendMsg(f) }) // what cannot be sent is lost with the lane
	var (
		all     sync.WaitGroup
		mu      sync.Mutex
		pending = map[uint64]context.CancelFunc{}
	)
	defer out.wait()
	defer all.Wait()
	defer cancel()
	serve := func(ctx context.Context, x frame) {
		defer all.Done()
		a := frame{id: x.id, kind: frameAnswer}
		reply, err := answer(ctx, peer, methods, x)
		if err == nil {
			a.data, err = rpc.Marshal(reply)
		}
		if err != nil {
			st := status.Convert(toStatus(err))
			a.code, a.data = uint64(st.Code()), []byte(st.Message())
		}
		mu.Lock()
		end := pending[x.id]
		delete(pending, x.id)
		mu.Unlock()
		end()
		out.put(a)
	}
	for {
		var message frames
		if err := s.RecvMsg(&message); err != nil {
			if err == io.EOF {
				all.Wait()
				return nil
			}
			return err
		}
		for len(message) > 0 {
			x, rest, err := message.next()
			if err != nil || x.kind == frameAnswer {
				return status.Error(codes.InvalidArgument, errFrame.Error())
			}
			message = rest
			mu.Lock()
			end, under := pending[x.id]
			switch {
			case x.kind == frameCancel && under:
				end()
			case x.kind == frameCall && (under || len(pending) >= 4*maxLaneCalls):
				mu.Unlock()
				return status.Error(codes.ResourceExhausted, "too many calls on a lane")
			case x.kind == frameCall:
				var own context.Context
				own, pending[x.id] = context.WithCancel(ctx)
				all.Add(1)
				go serve(own, x)
			}
			mu.Unlock()
		}
	}
}

func answer(ctx context.Context, p Peer, methods map[string]Method, x frame) (any, error) {
	m, ok := methods[x.name]
	if !ok {
		return nil, status.Error(codes.Unimplemented, "unknown method "+x.name)
	}
	return m.Handle(ctx, p, func(v any) error { return rpc.Unmarshal(x.data, v) })
}
