package httpapi

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/internal/httpwire"
)

// How long, and how many at once, refused connections are listened to before they are closed.
const (
	lingerTime   = 500 * time.Millisecond
	maxLingering = 64
)

// Serve answers the connections of l, which its owner made with LimitConns, until ctx ends; see httpwire.Server.Serve.
// Over TLS, l is a tls.Listener and its configuration names "h2" and "http/1.1" as next protocols.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	return httpwire.New(httpwire.Config{Handler: s, MaxHeaderBytes: s.cfg.MaxHeaderBytes, Logger: s.log}).Serve(ctx, l)
}

// tooMany is the whole answer to a connection over the limit. It ends with the connection.
const tooMany = "HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n" +
	"Your IP is issuing too many concurrent connections, please rate limit your calls\n"

// A ConnLimit counts the open connections of each client address. One may serve several listeners, which then share
// its count. The zero value limits nothing. It is safe for concurrent use.
type ConnLimit struct {
	mu    sync.Mutex
	max   int // at most this many per address; 0 or less for no limit
	count map[netip.Addr]int
	// lingering counts refused connections that are still being closed.
	lingering int
}

// SetMax changes the limit; connections that are already open stay.
func (c *ConnLimit) SetMax(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.max = n
}

func (c *ConnLimit) acquire(a netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.max > 0 && c.count[a] >= c.max {
		return false
	}
	if c.count == nil {
		c.count = map[netip.Addr]int{}
	}
	c.count[a]++
	return true
}

func (c *ConnLimit) release(a netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count[a]--; c.count[a] <= 0 {
		delete(c.count, a)
	}
}

// LimitConns returns l with the limit applied to connections from IP addresses; others, such as those of UNIX sockets,
// are not counted. With plain, a refused connection is told so in HTTP before it is closed; without, as a listener
// below TLS wants it, it is closed at once.
func LimitConns(l net.Listener, c *ConnLimit, plain bool) net.Listener {
	return &limitListener{Listener: l, limit: c, plain: plain}
}

type limitListener struct {
	net.Listener
	limit *ConnLimit
	plain bool
	// refused waits for the connections being closed politely.
	refused sync.WaitGroup
}

// Accept returns the next connection within the limit.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			l.refused.Wait() // no longer than twice lingerTime
			return nil, err
		}
		tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
		if !ok {
			return conn, nil
		}
		addr := tcp.AddrPort().Addr().Unmap()
		if l.limit.acquire(addr) {
			return &limitedConn{Conn: conn, limit: l.limit, addr: addr}, nil
		}
		l.refuse(conn)
	}
}

// refuse closes a connection over the limit. Closing it with unread input would reset it, and the client might not see
// the answer; so its input is read for a moment first, for a bounded number of connections.
func (l *limitListener) refuse(conn net.Conn) {
	if !l.plain || !l.linger(1) {
		conn.Close()
		return
	}
	l.refused.Go(func() {
		defer l.linger(-1)
		defer conn.Close()
		// An answer before the first byte of a request is none to many clients.
		conn.SetReadDeadline(time.Now().Add(lingerTime))
		conn.Read(make([]byte, 1))
		conn.SetDeadline(time.Now().Add(lingerTime))
		if _, err := io.WriteString(conn, tooMany); err != nil {
			return
		}
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		}
		io.Copy(io.Discard, io.LimitReader(conn, 64<<10))
	})
}

// linger changes the number of lingering connections, and reports whether the limit allows it.
func (l *limitListener) linger(by int) bool {
	l.limit.mu.Lock()
	defer l.limit.mu.Unlock()
	if by > 0 && l.limit.lingering >= maxLingering {
		return false
	}
	l.limit.lingering += by
	return true
}

// A limitedConn gives its place back when it is closed.
type limitedConn struct {
	net.Conn
	limit  *ConnLimit
	addr   netip.Addr
	closed sync.Once
}

// NetConn returns the connection below, for writes that need its kind.
func (c *limitedConn) NetConn() net.Conn { return c.Conn }

// CloseWrite tells the client that nothing more is coming.
func (c *limitedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Close closes the connection.
func (c *limitedConn) Close() error {
	c.closed.Do(func() { c.limit.release(c.addr) })
	return c.Conn.Close()
}
