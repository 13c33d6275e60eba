// Package pool keeps connections to hosts for HTTP and opens streams on them.
//
// Each host has its own, and each priority, protocol and server name within it: requests of one kind never use
// connections of another. Limits are those of the cluster's breakers, and exact.
//
// An HTTP/1 connection carries one request at a time; the one that was used last is used next, so that those which are
// not needed grow old and are closed. An HTTP/2 connection is shared until its streams are used up, and only then
// another one is made. Requests that find no connection wait in line, and take whatever comes first: one that was
// made, or one that was given back.
//
// Nothing is ever sent twice: a connection that its host has closed in the meantime is noticed before it is used, as
// far as that is possible, and a request that still runs into it fails.
package pool

import (
	"context"
	"crypto/tls"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
)

// A Pool keeps connections for all clusters of a proxy.
type Pool struct {
	ctx  context.Context // of dials
	stop context.CancelFunc
	work sync.WaitGroup // dials

	mu     sync.Mutex
	hosts  map[*host]struct{}
	closed bool
}

// New returns a pool without connections.
func New() *Pool {
	p := &Pool{hosts: map[*host]struct{}{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// Options say what a stream is for.
type Options struct {
	Priority   model.RoutingPriority
	Downstream message.Version // what the client speaks; 0 is HTTP/1.1
	Deadline   time.Time       // until when to wait for a connection; zero for ever
	Upgrade    string          // the protocol that the request wants to switch to; where the host may choose, that is done over HTTP/1
	// ServerName is the name to ask the host's TLS for; empty leaves that to the cluster. With VerifyName, its
	// certificate must be for that name.
	ServerName string
	VerifyName bool
}

// Info tells about the connection of a stream.
type Info struct {
	Version       message.Version
	LocalAddress  string
	RemoteAddress string
	State         *tls.ConnectionState // nil in plaintext
	Reused        bool                 // it carried a request before
	ConnectTime   time.Duration        // how long it took to make, TLS included
}

// Stream opens a stream to the host h of the cluster c. The caller has counted the request with h.Begin, and reports
// what becomes of it.
//
// An error is a *message.StreamError whose Detail is the transport failure, except that it is
// os.ErrDeadlineExceeded after o.Deadline, and that of ctx when it ends. Making the connection goes on then, for who
// comes next.
func (p *Pool) Stream(ctx context.Context, c *upstream.Cluster, h *upstream.Host, o Options) (message.ClientStream, Info, error) {
	b := c.Breaker(o.Priority)
	if !b.Try(upstream.Requests) {
		return nil, Info{}, overflow()
	}
	hp := h.Pool(func() any { return p.newHost(h) }).(*host)
	st, info, err := hp.stream(ctx, c, b, &o)
	if err != nil {
		b.Done(upstream.Requests)
		return nil, Info{}, err
	}
	return st, info, nil
}

func overflow() error { return &message.StreamError{Reason: message.Overflow} }

// Close closes the connections that are idle, lets the others end with their streams, and gives up making new ones.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	var hosts []*host
	for h := range p.hosts {
		hosts = append(hosts, h)
	}
	p.mu.Unlock()
	p.stop()
	for _, h := range hosts {
		h.Close()
	}
	p.work.Wait()
	return nil
}

// newHost returns what is kept for a host.
func (p *Pool) newHost(h *upstream.Host) *host {
	hp := &host{pool: p, host: h, conf: &h.Cluster().Model().HTTP}
	p.mu.Lock()
	defer p.mu.Unlock()
	if hp.closed = p.closed; !hp.closed {
		p.hosts[hp] = struct{}{}
	}
	return hp
}

// begin counts a goroutine that makes a connection, unless the pool is closed.
func (p *Pool) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.work.Add(1)
	}
	return !p.closed
}

func (p *Pool) forget(hp *host) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.hosts, hp)
}

// failure turns an error of connecting into that of a stream.
func failure(err error) error {
	reason := message.RemoteConnectionFailure
	var ce *upstream.ConnectError
	switch {
	case errors.As(err, &ce) && ce.Timeout:
		reason = message.ConnectionTimeout
	case errors.Is(err, context.Canceled), errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EMFILE),
		errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		reason = message.LocalConnectionFailure
	}
	return &message.StreamError{Reason: reason, Detail: err.Error(), Err: err}
}

// A result is what a waiter gets: a connection, with a stream if it is HTTP/2, or an error.
type result struct {
	c   *conn
	st  message.ClientStream
	err error
}

// A waiter is a request without a connection.
type waiter struct{ ch chan result }

// wait waits for the result until the deadline or the end of ctx.
func (w *waiter) wait(ctx context.Context, deadline time.Time) (result, error) {
	var late <-chan time.Time
	if !deadline.IsZero() {
		t := time.NewTimer(time.Until(deadline))
		defer t.Stop()
		late = t.C
	}
	select {
	case r := <-w.ch:
		return r, r.err
	case <-late:
		return result{}, os.ErrDeadlineExceeded
	case <-ctx.Done():
		return result{}, ctx.Err()
	}
}
