package rpcwire

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// A PortConfig describes a server's port. A zero field takes its default.
type PortConfig struct {
	Listener net.Listener // closed at the end of Run
	Security *Security    // default plain text
	// HandshakeTimeout bounds the time from accepting a connection to knowing its protocol; default 5s.
	HandshakeTimeout time.Duration
	// MaxConnsPerClient bounds the open connections of one address; default 100, negative for no bound.
	MaxConnsPerClient int
	Logger            hclog.Logger // default discards
}

// A Port accepts connections and hands each to the protocol it speaks.
type Port struct {
	cfg    PortConfig
	max    atomic.Int64
	protos map[string]*protoListener

	mu    sync.Mutex
	conns map[netip.Addr]int
}

// NewPort prepares a port for all protocols. Nothing is accepted until Run.
func NewPort(cfg PortConfig) *Port {
	if cfg.Security == nil {
		cfg.Security = &Security{}
	}
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = 5 * time.Second
	}
	if cfg.MaxConnsPerClient == 0 {
		cfg.MaxConnsPerClient = 100
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	p := &Port{cfg: cfg, protos: map[string]*protoListener{}, conns: map[netip.Addr]int{}}
	p.SetMaxConnsPerClient(cfg.MaxConnsPerClient)
	for _, name := range []string{ProtoRaft, ProtoRPC, ProtoIntro} {
		p.protos[name] = &protoListener{addr: cfg.Listener.Addr(), queue: make(chan net.Conn), closed: make(chan struct{})}
	}
	return p
}

// Listener accepts the connections of one protocol.
func (p *Port) Listener(protocol string) net.Listener { return p.protos[protocol] }

// SetMaxConnsPerClient changes the bound for connections to come; negative or zero for none.
func (p *Port) SetMaxConnsPerClient(n int) { p.max.Store(int64(n)) }

// Run accepts until ctx ends. Connections already handed out stay open.
func (p *Port) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { p.cfg.Listener.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		for _, l := range p.protos {
			l.Close()
		}
	}()
	for {
		conn, err := p.cfg.Listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			cancel()
			return err
		case err != nil: // such as too many open files: not for ever
			p.cfg.Logger.Warn("cannot accept, will retry", "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		metricAccepted.Add(1)
		release, ok := p.admit(conn.RemoteAddr())
		if !ok {
			p.cfg.Logger.Debug("too many connections", "client", conn.RemoteAddr())
			conn.Close()
			continue
		}
		wg.Go(func() { p.hand(ctx, conn, release) })
	}
}

// hand gives a connection to its protocol.
func (p *Port) hand(ctx context.Context, conn net.Conn, release func()) {
	hctx, cancel := context.WithTimeout(ctx, p.cfg.HandshakeTimeout)
	c, proto, err := p.cfg.Security.accept(hctx, conn)
	cancel()
	var l *protoListener
	if err == nil {
		if l = p.protos[proto]; l == nil {
			err = errors.New("unknown protocol")
		}
	}
	if err != nil {
		p.cfg.Logger.Debug("connection refused", "client", conn.RemoteAddr(), "error", err)
		conn.Close()
		release()
		return
	}
	conn.SetDeadline(time.Time{})
	c.release = release
	if proto == ProtoRaft {
		metricRaft.Add(1)
	}
	select {
	case l.queue <- c:
	case <-l.closed:
		c.Close()
	case <-ctx.Done():
		c.Close()
	}
}

// admit counts a connection of an address, unless it has too many.
func (p *Port) admit(addr net.Addr) (release func(), ok bool) {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return func() {}, true
	}
	a := ap.Addr().Unmap()
	p.mu.Lock()
	defer p.mu.Unlock()
	if limit := p.max.Load(); limit > 0 && int64(p.conns[a]) >= limit {
		return nil, false
	}
	p.conns[a]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.conns[a]--; p.conns[a] <= 0 {
			delete(p.conns, a)
		}
	}, true
}

// A Conn is an accepted connection whose protocol is known.
type Conn struct {
	net.Conn
	peer    Peer
	once    sync.Once
	release func()
}

// Peer returns who is at the other end.
func (c *Conn) Peer() Peer { return c.peer }

// Close ends the connection.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		if c.release != nil {
			c.release()
		}
	})
	return err
}

// A protoListener hands out the connections of one protocol.
type protoListener struct {
	addr   net.Addr
	queue  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *protoListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *protoListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *protoListener) Addr() net.Addr { return l.addr }
