package rpcwire

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// A Client calls servers by address, over one kept connection to each.
type Client struct {
	dial func(ctx context.Context, address string) (net.Conn, error)

	mu     sync.Mutex
	conns  map[string]*clientConn
	closed bool
}

// dialTimeout bounds the time to reach a server.
const dialTimeout = 10 * time.Second

// NewClient returns a client. dial gives connections that speak ProtoRPC; see Security.Secure.
func NewClient(dial func(ctx context.Context, address string) (net.Conn, error)) *Client {
	return &Client{dial: dial, conns: map[string]*clientConn{}}
}

// A clientConn is a connection to a server, or the attempt to make one.
type clientConn struct {
	ready chan struct{} // closed when grpc or err is set
	grpc  *grpc.ClientConn
	err   error
	dead  atomic.Bool

	mu       sync.Mutex
	shared   *lane // nil when there is none
	laneless bool  // the server knows no lanes
}

// Call performs a call. Beside what the server answers, the error is a *DialError, a *LostError or that of ctx.
func (c *Client) Call(ctx context.Context, address, method string, req, resp any) error {
	ctx, s := callSpan(ctx, address, method)
	err := c.call(ctx, address, method, req, resp)
	finish(s, err)
	return err
}

func (c *Client) call(ctx context.Context, address, method string, req, resp any) error {
	conn, err := c.conn(ctx, address)
	if err != nil {
		return err
	}
	err = fromStatus(ctx, conn.grpc.Invoke(ctx, "/"+service+"/"+method, req, resp))
	if _, lost := errors.AsType[*LostError](err); lost {
		c.drop(address, conn)
	}
	return err
}

// Stream performs a call of a StreamMethod: it sends the request and all of in (nil for nothing), and returns when the
// reply has arrived. The reader gives what follows the reply; it must be closed.
func (c *Client) Stream(ctx context.Context, address, method string, req any, in io.Reader, resp any) (io.ReadCloser, error) {
	ctx, s := callSpan(ctx, address, method)
	out, err := c.stream(ctx, address, method, req, in, resp)
	finish(s, err) // what follows the reply is whose who reads it
	return out, err
}

func (c *Client) stream(ctx context.Context, address, method string, req any, in io.Reader, resp any) (io.ReadCloser, error) {
	conn, err := c.conn(ctx, address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	desc := &grpc.StreamDesc{StreamName: method, ServerStreams: true, ClientStreams: true}
	s, err := conn.grpc.NewStream(ctx, desc, "/"+service+"/"+method)
	if err != nil {
		cancel()
		return nil, fromStatus(ctx, err)
	}
	err = s.SendMsg(req)
	if err == nil && in != nil {
		_, err = io.Copy(chunkWriter{s.SendMsg}, in)
	}
	if err == nil {
		err = s.CloseSend()
	}
	// A server that refuses early ends the stream: its answer, not the failed write, is the error.
	if err == nil || errors.Is(err, io.EOF) {
		err = s.RecvMsg(resp)
	}
	if err != nil {
		err = fromStatus(ctx, err)
		cancel()
		return nil, err
	}
	return &streamBody{chunkReader{recv: func(m any) error {
		err := s.RecvMsg(m)
		if err != nil && err != io.EOF {
			err = fromStatus(ctx, err)
		}
		return err
	}}, cancel}, nil
}

type streamBody struct {
	chunkReader
	cancel context.CancelFunc
}

func (b *streamBody) Close() error {
	b.cancel()
	return nil
}

// ErrClosed is returned by calls on a closed client.
var ErrClosed = errors.New("rpc client is closed")

// conn returns the connection to a server, making it if there is none.
func (c *Client) conn(ctx context.Context, address string) (*clientConn, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, &DialError{ErrClosed}
	}
	conn := c.conns[address]
	if conn == nil || conn.dead.Load() {
		conn = &clientConn{ready: make(chan struct{})}
		c.conns[address] = conn
		// The attempt outlives this call: others wait for it too.
		go c.connect(context.WithoutCancel(ctx), address, conn)
	}
	c.mu.Unlock()
	select {
	case <-conn.ready:
	case <-ctx.Done():
		return nil, &DialError{ctx.Err()}
	}
	if conn.err != nil {
		return nil, &DialError{conn.err}
	}
	return conn, nil
}

func (c *Client) connect(ctx context.Context, address string, conn *clientConn) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	defer close(conn.ready)
	raw, err := c.dial(ctx, address)
	if err == nil {
		// gRPC is given this one connection; when it ends, the next call dials anew, without gRPC's back-off.
		var given atomic.Bool
		conn.grpc, err = grpc.NewClient("passthrough:///"+address,
			grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
				if given.Swap(true) {
					return nil, net.ErrClosed
				}
				return &watchedConn{Conn: raw, ended: func() {
					conn.dead.Store(true)
					go c.drop(address, conn)
				}}, nil
			}),
			grpc.WithTransportCredentials(passthrough{}),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(maxReply), grpc.MaxCallSendMsgSize(math.MaxInt32)),
			grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(4<<20),
			grpc.WithIdleTimeout(0), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		)
		if err == nil {
			conn.grpc.Connect()
		}
	}
	if conn.err = err; err != nil {
		conn.dead.Store(true)
		return
	}
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		conn.dead.Store(true)
		conn.grpc.Close()
	}
}

// drop forgets a connection that failed.
func (c *Client) drop(address string, conn *clientConn) {
	conn.dead.Store(true)
	c.mu.Lock()
	if c.conns[address] == conn {
		delete(c.conns, address)
	}
	c.mu.Unlock()
	<-conn.ready
	conn.grpc.Close()
}

// Close ends every connection.
func (c *Client) Close() error {
	c.mu.Lock()
	conns := c.conns
	c.conns, c.closed = map[string]*clientConn{}, true
	c.mu.Unlock()
	for _, conn := range conns {
		<-conn.ready
		if conn.grpc != nil {
			conn.dead.Store(true)
			conn.grpc.Close()
		}
	}
	return nil
}

// A watchedConn tells when gRPC gives its connection up.
type watchedConn struct {
	net.Conn
	once  sync.Once
	ended func()
}

func (w *watchedConn) Close() error {
	w.once.Do(w.ended)
	return w.Conn.Close()
}
