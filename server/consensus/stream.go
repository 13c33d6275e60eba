package consensus

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// A stream gives Raft's transport its connections.
type stream struct {
	cfg      Config
	accepted chan net.Conn
	self     chan net.Conn
	ctx      context.Context // of dials in progress: ended by Close
	stop     context.CancelFunc
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{} // open, so that Close can end them
}

// newStream starts accepting.
func newStream(cfg Config) *stream {
	s := &stream{cfg: cfg, accepted: make(chan net.Conn), self: make(chan net.Conn), conns: map[net.Conn]struct{}{}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.wg.Go(s.accept)
	return s
}

func (s *stream) accept() {
	for {
		c, err := s.cfg.Listener.Accept()
		if err != nil {
			if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			select {
			case <-s.ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		select {
		case s.accepted <- c:
		case <-s.ctx.Done():
			c.Close()
			return
		}
	}
}

func (s *stream) Accept() (net.Conn, error) {
	select {
	case c := <-s.accepted:
		return s.keep(c), nil
	case c := <-s.self:
		return s.keep(c), nil
	case <-s.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Dial connects to a member. This one is reached without the network.
func (s *stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	if string(address) == s.cfg.Address {
		near, far := net.Pipe()
		select {
		case s.self <- far:
			return s.keep(near), nil
		case <-s.ctx.Done():
			return nil, net.ErrClosed
		}
	}
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	c, err := s.cfg.Dial(ctx, string(address))
	if err != nil {
		return nil, err
	}
	return s.keep(c), nil
}

// Close ends all connections and waits for what was started.
func (s *stream) Close() error {
	s.stop()
	s.cfg.Listener.Close()
	s.wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
	clear(s.conns)
	return nil
}

func (s *stream) Addr() net.Addr { return address(s.cfg.Address) }

// An address is the one other members are told.
type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

// keep remembers an open connection.
func (s *stream) keep(c net.Conn) net.Conn {
	k := &kept{Conn: c, stream: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = struct{}{}
	return k
}

type kept struct {
	net.Conn
	stream *stream
}

func (k *kept) Close() error {
	k.stream.mu.Lock()
	delete(k.stream.conns, k.Conn)
	k.stream.mu.Unlock()
	return k.Conn.Close()
}
