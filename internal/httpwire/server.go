// Package httpwire serves HTTP/1.1 to clients that send many small requests, with less work for each than net/http.
//
// It reads ordinary requests itself: HTTP/1.1, a short head, a body of told length or none. At the first request of a
// connection that is anything else (chunked, 100-continue, an upgrade, HTTP/1.0 or 2, a large or odd head, TLS) the
// connection is handed, with what was read of it, to a server of net/http with the same handler, and stays there. So
// everything unusual behaves as everywhere in Go.
//
// Differences a handler may notice: the ResponseWriter cannot be hijacked; the maps and slices of a request's header
// are reused once the handler has returned; and a client's going away ends the request's context only some
// milliseconds after somebody began to wait for it.
package httpwire

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Config tunes a Server. A zero field takes its default.
type Config struct {
	Handler        http.Handler  // required
	MaxHeaderBytes int           // of a request's head; default 1 MiB
	HeaderTimeout  time.Duration // for a head to arrive once it has begun, and for the first to begin; default 30s
	// BodyTimeout is how long, altogether, a request's body may keep its reader waiting, and one second more for every
	// KiB that came. A body that takes longer ends with os.ErrDeadlineExceeded. Default 30s.
	BodyTimeout time.Duration
	// Grace is how long requests in progress may go on when Serve is asked to end. After half of it their contexts
	// end, after all of it their connections. Default 2s.
	Grace  time.Duration
	Logger hclog.Logger // default discards
}

// A Server serves HTTP. Make one with New.
type Server struct {
	cfg  Config
	date atomic.Pointer[date]
}

// New returns a server. Nothing happens until Serve.
func New(cfg Config) *Server {
	if cfg.MaxHeaderBytes <= 0 {
		cfg.MaxHeaderBytes = 1 << 20
	}
	if cfg.HeaderTimeout <= 0 {
		cfg.HeaderTimeout = 30 * time.Second
	}
	if cfg.BodyTimeout <= 0 {
		cfg.BodyTimeout = 30 * time.Second
	}
	if cfg.Grace <= 0 {
		cfg.Grace = 2 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Server{cfg: cfg}
}

// Serve answers the connections of l until ctx ends or l fails, and closes l. It returns nil in the first case. Every
// connection is closed, and every goroutine has ended, when it returns; only a handler that ignores the end of its
// context can hold it up. It may be called for several listeners at once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	f := &front{s: s, base: base, conns: map[*conn]struct{}{}}
	f.rest = &queue{addr: l.Addr(), conns: make(chan net.Conn), done: make(chan struct{})}
	std := &http.Server{
		Handler:           paced(s.cfg.Handler, s.cfg.BodyTimeout),
		MaxHeaderBytes:    s.cfg.MaxHeaderBytes,
		ReadHeaderTimeout: s.cfg.HeaderTimeout,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          s.cfg.Logger.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	var all sync.WaitGroup
	all.Go(func() { std.Serve(f.rest) }) // ends with Shutdown
	stop := context.AfterFunc(ctx, func() { l.Close() })
	err := f.accept(l)
	stop()
	l.Close()
	f.drain(std, cancel, s.cfg.Grace)
	all.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// A front serves the connections of one listener.
type front struct {
	s       *Server
	base    context.Context
	rest    *queue // to net/http
	serving sync.WaitGroup

	mu      sync.Mutex
	conns   map[*conn]struct{}
	closing bool
}

// accept starts serving connections until there are no more.
func (f *front) accept(l net.Listener) error {
	var wait time.Duration
	for {
		raw, err := l.Accept()
		if err != nil {
			//lint:ignore SA1019 the only way to tell a passing shortage, of file descriptors say, from the end
			if t, ok := errors.AsType[net.Error](err); ok && t.Temporary() {
				wait = min(max(2*wait, 5*time.Millisecond), time.Second)
				f.s.cfg.Logger.Warn("accept failed, will retry", "wait", wait, "error", err)
				time.Sleep(wait)
				continue
			}
			return err
		}
		wait = 0
		if _, encrypted := raw.(*tls.Conn); encrypted {
			f.rest.put(raw)
			continue
		}
		c := newConn(f, raw)
		if !f.add(c) {
			raw.Close()
			continue
		}
		f.serving.Go(c.serve)
	}
}

func (f *front) add(c *conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return false
	}
	f.conns[c] = struct{}{}
	return true
}

func (f *front) remove(c *conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, c)
}

// each calls do for every connection there is.
func (f *front) each(do func(c *conn)) {
	f.mu.Lock()
	list := make([]*conn, 0, len(f.conns))
	for c := range f.conns {
		list = append(list, c)
	}
	f.mu.Unlock()
	for _, c := range list {
		do(c)
	}
}

// drain ends the connections: idle ones at once, others when their request is done or grace is over.
func (f *front) drain(std *http.Server, cancel func(), grace time.Duration) {
	f.mu.Lock()
	f.closing = true
	f.mu.Unlock()
	f.each((*conn).closeIdle)
	f.rest.Close()
	stop, end := context.WithTimeout(context.Background(), grace)
	defer end()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if std.Shutdown(stop) != nil {
			std.Close()
		}
		f.serving.Wait()
	}()
	half := time.NewTimer(grace / 2)
	defer half.Stop()
	select {
	case <-ended:
		return
	case <-half.C:
	}
	cancel()
	f.each(func(c *conn) { c.cancelRequest(context.Canceled) })
	select {
	case <-ended:
	case <-stop.Done():
		f.each(func(c *conn) { c.raw.Close() })
		<-ended
	}
}

// A queue is the listener through which net/http gets its connections.
type queue struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (q *queue) put(c net.Conn) {
	select {
	case q.conns <- c:
	case <-q.done:
		c.Close()
	}
}

// Accept returns the next connection.
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Addr returns the address of the listener in front.
func (q *queue) Addr() net.Addr { return q.addr }

// A date is the text of a Date header and the second it is for.
type date struct {
	second int64
	text   string
}

// dateText returns the present date, formatted once a second.
func (s *Server) dateText() string {
	now := time.Now()
	d := s.date.Load()
	if d == nil || d.second != now.Unix() {
		d = &date{now.Unix(), now.UTC().Format(http.TimeFormat)}
		s.date.Store(d)
	}
	return d.text
}
