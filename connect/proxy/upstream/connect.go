package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stream"
	"github.com/sarnmesh/sarn/connect/proxy/tlscontext"
)

// A Request says what a connection is for.
type Request struct {
	// Choice says which host to take. Dial, which is given one, does not look at it.
	Choice Choice
	// Destination goes into Choice.
	Destination model.Address
	// MaxAttempts bounds how many times Connect tries. 0 tries up to three
	// different hosts.
	MaxAttempts uint32
	// ALPN is what to offer if the TLS context does not say.
	ALPN []string
	// ServerName replaces the name that the TLS context asks for, unless empty.
	// With VerifyName, the certificate must be for it.
	ServerName string
	VerifyName bool
	// Breaker, unless nil, is where the caller of Dial took one of Connections,
	// which passes to the connection: closing it, or failing to make it, gives
	// the place back. Connect takes its places itself.
	Breaker *Breaker
}

// A Conn is a connection to a host. Closing it, which may be done more than
// once, gives its place back.
type Conn struct {
	net.Conn
	Cluster *Cluster
	Host    *Host
	State   *tls.ConnectionState // nil in plaintext
	start   time.Time
	breaker *Breaker
	request bool // it counts as a request, too
	once    sync.Once
}

// Close closes the connection.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		s := c.Cluster.stats
		s.CxDestroy.Inc()
		s.CxLength.Record(time.Since(c.start))
		if c.Cluster.conf.CloseOnFailure {
			c.Host.forget(c.Conn)
		}
		if c.request {
			c.Host.End()
		}
		c.Cluster.release(c.Host, c.breaker)
	})
	return err
}

func (c *Cluster) release(h *Host, b *Breaker) {
	c.stats.CxActive.Dec()
	h.Stats.CxActive.Dec()
	if b != nil {
		b.Done(Connections)
	}
}

// A ConnectError reports a connection that could not be made.
type ConnectError struct {
	Flags    accesslog.Flags
	Host     *Host // the last that was tried; nil if none was
	Cluster  *Cluster
	Attempts int
	Timeout  bool // the connect timeout passed
	Err      error
}

func (e *ConnectError) Error() string { return e.Err.Error() }

func (e *ConnectError) Unwrap() error { return e.Err }

// ErrOverflow refuses a connection that was not even tried.
var ErrOverflow = errors.New("connection limit of the cluster is reached")

// defaultAttempts is how many different hosts are tried if nothing is configured.
const defaultAttempts = 3

// Connect makes a connection to one of the hosts that is a request by itself,
// as those of tcp_proxy are. If a host can't be connected to, nothing was sent
// yet, and another is tried.
func (c *Cluster) Connect(ctx context.Context, req Request) (*Conn, int, error) {
	limit, again := int(req.MaxAttempts), true
	if limit == 0 {
		limit, again = defaultAttempts, false
	}
	ch := req.Choice
	ch.Avoid = slices.Clip(ch.Avoid)
	if req.Destination != (model.Address{}) {
		ch.Destination = req.Destination
	}
	var failed *ConnectError
	for attempt := 1; attempt <= limit; attempt++ {
		ch.Repicks = 4 * len(ch.Avoid)
		owner, h, err := c.Choose(&ch)
		if err != nil || contains(ch.Avoid, h) {
			owner, h = c.another(&ch, owner, h, again)
		}
		if h == nil {
			if failed == nil {
				flag := accesslog.NoHealthyUpstream
				if errors.Is(err, ErrDropped) {
					flag = accesslog.DropOverload
				}
				return nil, 0, &ConnectError{Flags: flag, Cluster: c, Err: err}
			}
			break
		}
		b := owner.Breaker(model.PriorityDefault)
		if !b.Try(Connections) {
			return nil, attempt, &ConnectError{Flags: accesslog.UpstreamOverflow, Host: h, Cluster: owner, Attempts: attempt, Err: ErrOverflow}
		}
		req.Breaker = b
		h.Begin()
		conn, err := owner.Dial(ctx, h, req)
		if err == nil {
			conn.request = true
			owner.Report(h, Result{Local: LocalConnected})
			return conn, attempt, nil
		}
		h.End()
		errors.As(err, &failed)
		failed.Attempts = attempt
		if ctx.Err() != nil { // not the host's fault
			return nil, attempt, failed
		}
		owner.Report(h, Result{Local: LocalConnectFailure})
		ch.Avoid = append(ch.Avoid, h)
	}
	failed.Cluster.stats.CxAttemptsExceeded.Inc()
	failed.Flags |= accesslog.UpstreamRetryLimitExceeded
	return nil, failed.Attempts, failed
}

// another returns a host that was not tried yet, after draws found none; or one
// that was, h, if again allows that.
func (c *Cluster) another(ch *Choice, owner *Cluster, h *Host, again bool) (*Cluster, *Host) {
	clusters := []*Cluster{c}
	if c.conf.Type == model.Aggregate {
		clusters = nil
		for _, l := range c.members().levels {
			if l.level == 0 {
				clusters = append(clusters, l.member)
			}
		}
	}
	for _, m := range clusters {
		for _, x := range m.hosts.Load().hosts {
			if x.usable() && !contains(ch.Avoid, x) {
				return m, x
			}
		}
	}
	for _, m := range clusters {
		if x := m.hosts.Load().lastResort(m, ch.Avoid); x != nil {
			return m, x
		}
	}
	if again {
		return owner, h
	}
	return c, nil
}

// Dial makes a connection to the host within the connect timeout, TLS included.
// It takes nothing from the breakers; see Request.Breaker. A failure is a
// *ConnectError, which those who wait for the connection Report.
func (c *Cluster) Dial(ctx context.Context, h *Host, req Request) (*Conn, error) {
	c.stats.CxTotal.Inc()
	c.stats.CxActive.Inc()
	h.Stats.CxTotal.Inc()
	h.Stats.CxActive.Inc()
	start := time.Now()
	dctx, cancel := context.WithDeadline(ctx, start.Add(c.conf.ConnectTimeout))
	defer cancel()
	conn, state, err := c.dial(dctx, h, c.tlsFor(h.endpoint.Load().Metadata), req)
	if err != nil {
		c.release(h, req.Breaker)
		c.stats.CxConnectFail.Inc()
		h.Stats.CxConnectFail.Inc()
		late := timeout(err) && ctx.Err() == nil
		if late {
			c.stats.CxConnectTimeout.Inc()
		}
		return nil, &ConnectError{Flags: accesslog.UpstreamConnectionFailure, Host: h, Cluster: c, Attempts: 1, Timeout: late,
			Err: fmt.Errorf("connect to %s of %s: %w", h.key, c.conf.Name, err)}
	}
	c.stats.CxConnect.Record(time.Since(start))
	if c.conf.CloseOnFailure {
		h.remember(conn)
	}
	c.connected(h)
	return &Conn{Conn: conn, Cluster: c, Host: h, State: state, start: start, breaker: req.Breaker}, nil
}

func timeout(err error) bool {
	var ne net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}

// tlsFor returns the TLS context for a host with the metadata, nil for plaintext.
func (c *Cluster) tlsFor(md model.Metadata) *tlscontext.Client {
	if i := matchTLS(c.conf.TLSMatches, md["envoy.transport_socket_match"]); i >= 0 {
		return c.tlsMatches[i]
	}
	return c.tls
}

func matchTLS(matches []model.TLSMatch, values map[string]any) int {
	for i, m := range matches {
		if has(values, m.Match) {
			return i
		}
	}
	return -1
}

// has reports whether values has all that is wanted.
func has(values map[string]any, want []model.MetadataMatch) bool {
	for _, w := range want {
		v, ok := values[w.Key]
		if !ok || model.CanonicalValue(v) != w.Value {
			return false
		}
	}
	return true
}

func (c *Cluster) dial(ctx context.Context, h *Host, client *tlscontext.Client, req Request) (net.Conn, *tls.ConnectionState, error) {
	var cfg *tls.Config
	if client != nil {
		var err error
		if cfg, err = h.sessions.Config(client); err != nil {
			return nil, nil, err
		}
	}
	e := h.endpoint.Load()
	raw, err := c.dialAny(ctx, e.Address, e.Additional)
	if err != nil {
		return nil, nil, err
	}
	return c.secure(ctx, raw, cfg, req)
}

// eyeballs is how long a connection attempt may take before the next address of
// a host is tried beside it.
const eyeballs = 300 * time.Millisecond

// dialAny connects to the first address that answers.
func (c *Cluster) dialAny(ctx context.Context, first model.Address, more []model.Address) (net.Conn, error) {
	if len(more) == 0 {
		return c.m.cfg.Dial(ctx, first.Network(), first.String())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result, 1+len(more))
	next, running := 0, 0
	start := func() {
		a := first
		if next > 0 {
			a = more[next-1]
		}
		next++
		running++
		go func() {
			conn, err := c.m.cfg.Dial(ctx, a.Network(), a.String())
			results <- result{conn, err}
		}()
	}
	start()
	var failed error
	for {
		var wait <-chan time.Time
		if next <= len(more) {
			wait = time.After(eyeballs)
		}
		select {
		case <-wait:
			start()
		case r := <-results:
			running--
			if r.err == nil {
				cancel()
				for range running { // those that came too late
					if late := <-results; late.err == nil {
						late.conn.Close()
					}
				}
				return r.conn, nil
			}
			if failed == nil {
				failed = r.err
			}
			if next <= len(more) {
				start()
			} else if running == 0 {
				return nil, failed
			}
		}
	}
}

// secure tunes a connection and shakes hands if there is a TLS configuration.
func (c *Cluster) secure(ctx context.Context, raw net.Conn, cfg *tls.Config, req Request) (net.Conn, *tls.ConnectionState, error) {
	if k := c.conf.Keepalive; k != nil {
		if t, ok := raw.(*net.TCPConn); ok {
			// A system that can't tune it keeps its own times.
			_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: k.Time, Interval: k.Interval, Count: k.Probes})
		}
	}
	if cfg == nil {
		return raw, nil, nil
	}
	if req.ALPN != nil && len(cfg.NextProtos) == 0 || req.ServerName != "" {
		cfg = cfg.Clone()
		if len(cfg.NextProtos) == 0 {
			cfg.NextProtos = req.ALPN
		}
		if req.ServerName != "" {
			cfg.ServerName = req.ServerName
		}
		if verify := cfg.VerifyConnection; req.VerifyName {
			cfg.VerifyConnection = func(cs tls.ConnectionState) error {
				if verify != nil {
					if err := verify(cs); err != nil {
						return err
					}
				}
				if len(cs.PeerCertificates) == 0 {
					return errors.New("no certificate")
				}
				return cs.PeerCertificates[0].VerifyHostname(req.ServerName)
			}
		}
	}
	conn := tls.Client(stream.Below(raw), cfg)
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	err := conn.Handshake()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		c.countTLS(err)
		return nil, nil, fmt.Errorf("TLS: %w", err)
	}
	state := conn.ConnectionState()
	c.stats.SSLHandshake.Inc()
	if state.DidResume {
		c.stats.SSLReused.Inc()
	}
	return conn, &state, nil
}

func (c *Cluster) countTLS(err error) {
	c.stats.SSLError.Inc()
	var v *tlscontext.VerifyError
	if !errors.As(err, &v) {
		return
	}
	switch v.Fault {
	case tlscontext.FaultNoCert:
		c.stats.SSLVerifyNoCert.Inc()
	case tlscontext.FaultChain:
		c.stats.SSLVerifyError.Inc()
	case tlscontext.FaultSAN:
		c.stats.SSLVerifySAN.Inc()
	case tlscontext.FaultHash:
		c.stats.SSLVerifyHash.Inc()
	}
}
