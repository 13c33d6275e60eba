package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/balance"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/connect/proxy/stream"
	"github.com/sarnmesh/sarn/connect/proxy/tlscontext"
)

// A Cluster connects to the hosts of one cluster. It is one version of its
// configuration; hosts and counts outlive it.
type Cluster struct {
	m      *Manager
	conf   *model.Cluster
	tls    *tlscontext.Client // nil connects in plaintext
	scope  *stats.Scope
	stats  *Stats
	static bool
	*shared

	hosts atomic.Pointer[hostSet]

	// Guarded by shared.mu.
	closed     bool
	assignment *model.LoadAssignment // nil: none arrived
	tick       *time.Timer           // next look at ejected hosts
	fetch      *time.Timer           // gives up waiting for an assignment
	stop       context.CancelFunc    // ends the lookups of a DNS cluster
}

// shared is what all versions of a cluster have in common, besides hosts.
type shared struct {
	open atomic.Int64 // connections, for the circuit breaker
	mu   sync.Mutex   // guards membership, and the records of hosts
}

type hostSet struct {
	hosts []*Host
	table *balance.Table
}

// A Host is one place to connect to.
type Host struct {
	key      string
	endpoint atomic.Pointer[model.Endpoint]
	sessions tlscontext.Sessions
	Stats    HostStats

	spotless atomic.Bool // there is nothing in outlier
	outlier  outlier
}

func newHost(e *model.Endpoint) *Host {
	h := &Host{key: e.Address.String()}
	h.endpoint.Store(e)
	h.spotless.Store(true)
	return h
}

// Address returns where the host is.
func (h *Host) Address() model.Address { return h.endpoint.Load().Address }

// Hostname returns the name that the configuration gives the host, if any.
func (h *Host) Hostname() string { return h.endpoint.Load().Hostname }

// Model returns the configuration of the cluster.
func (c *Cluster) Model() *model.Cluster { return c.conf }

// Stats returns the counters of the cluster.
func (c *Cluster) Stats() *Stats { return c.stats }

// setAssignment replaces the hosts, keeping those whose address stays.
func (c *Cluster) setAssignment(la *model.LoadAssignment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.assignment = la
	c.merge(c.hosts.Load().hosts, la)
}

// merge makes the hosts those of the assignment, taking over what is known of
// old ones. The caller holds c.mu.
func (c *Cluster) merge(old []*Host, la *model.LoadAssignment) {
	known := make(map[string]*Host, len(old))
	for _, h := range old {
		known[h.key] = h
	}
	seen := make(map[string]bool, len(la.Endpoints))
	hosts := make([]*Host, 0, len(la.Endpoints))
	changed := false
	for i := range la.Endpoints {
		e := &la.Endpoints[i]
		key := e.Address.String()
		if seen[key] {
			continue // the first of two counts
		}
		seen[key] = true
		h := known[key]
		if h == nil {
			h = newHost(e)
			changed = true
		} else {
			h.endpoint.Store(e)
		}
		hosts = append(hosts, h)
	}
	if changed || len(hosts) != len(old) {
		c.stats.MembershipChange.Inc()
	}
	c.hosts.Store(&hostSet{hosts: hosts})
	c.rebuild()
}

// rebuild works out afresh who may be chosen. The caller holds c.mu.
func (c *Cluster) rebuild() {
	hosts := c.hosts.Load().hosts
	in := make([]balance.Host, len(hosts))
	healthy, degraded, ejected := 0, 0, 0
	for i, h := range hosts {
		e := h.endpoint.Load()
		in[i] = balance.Host{Weight: max(e.Weight, 1), Priority: int(min(e.Priority, maxPriority)), Locality: e.Locality}
		switch {
		case h.outlier.ejected:
			in[i].Health = balance.Unhealthy
			ejected++
		case e.Health == model.Healthy:
			healthy++
		case e.Health == model.Degraded:
			in[i].Health = balance.Degraded
			degraded++
		default:
			in[i].Health = balance.Unhealthy
		}
	}
	opt := balance.Options{
		Choices:            c.conf.Choices,
		ActiveBias:         c.conf.ActiveBias,
		PanicThreshold:     c.conf.PanicThreshold,
		FailTrafficOnPanic: c.conf.FailTrafficOnPanic,
	}
	switch c.conf.LB {
	case model.RoundRobin:
		opt.Policy = balance.RoundRobin
	case model.LeastRequest:
		opt.Policy = balance.LeastRequest
	default: // connections carry no hash
		opt.Policy = balance.Random
	}
	if la := c.assignment; la != nil {
		opt.Overprovisioning = int(la.Overprovisioning)
		if c.conf.LocalityLB {
			for _, l := range la.Localities {
				opt.Localities = append(opt.Localities, balance.Locality{Weight: l.Weight})
			}
		}
	}
	c.hosts.Store(&hostSet{hosts: hosts, table: balance.NewTable(in, opt, c.m.cfg.Rand())})
	c.stats.MembershipTotal.Set(int64(len(hosts)))
	c.stats.MembershipHealthy.Set(int64(healthy))
	c.stats.MembershipDegraded.Set(int64(degraded))
	c.stats.EjectionsActive.Set(int64(ejected))
}

// maxPriority bounds priorities, which cost memory even if nobody has them.
const maxPriority = 127

// pick chooses a host that is not in tried. With none of those left it returns
// a tried one if again allows that.
func (c *Cluster) pick(tried []*Host, again bool) *Host {
	set := c.hosts.Load()
	if set.table == nil {
		return nil
	}
	active := func(i int) int64 { return set.hosts[i].Stats.CxActive.Value() }
	var last *Host
	for range 1 + 4*len(tried) {
		p := set.table.Pick(c.m.cfg.Rand, active)
		if p.Panic {
			c.stats.LBPanic.Inc()
		}
		if !p.OK {
			return c.ejectedHost(set, tried)
		}
		last = set.hosts[p.Host]
		if !contains(tried, last) {
			return last
		}
	}
	for _, h := range set.hosts {
		if h.endpoint.Load().Health != model.Unhealthy && !contains(tried, h) && !c.isEjected(h) {
			return h
		}
	}
	if h := c.ejectedHost(set, tried); h != nil || !again {
		return h
	}
	return last
}

// ejectedHost returns a host that is only out because connections to it failed. When nobody else is left, trying it is
// better than to refuse: a cluster of one instance that was restarted is back as soon as the instance is.
func (c *Cluster) ejectedHost(set *hostSet, tried []*Host) *Host {
	for _, h := range set.hosts {
		if h.endpoint.Load().Health != model.Unhealthy && !contains(tried, h) && c.isEjected(h) {
			c.stats.LBPanic.Inc()
			return h
		}
	}
	return nil
}

func (c *Cluster) isEjected(h *Host) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return h.outlier.ejected
}

func contains(hosts []*Host, h *Host) bool {
	for _, x := range hosts {
		if x == h {
			return true
		}
	}
	return false
}

// A Request says what a connection is for.
type Request struct {
	// Destination is where the client wanted to go; clusters of type
	// ORIGINAL_DST connect there.
	Destination model.Address
	// MaxAttempts bounds how many times connecting is tried. 0 tries up to
	// three different hosts.
	MaxAttempts uint32
	// ALPN replaces the protocols to offer; nil leaves those of the context.
	ALPN []string
}

// A Conn is a connection to a host. Closing it, which may be done more than
// once, gives its place back.
type Conn struct {
	net.Conn
	Cluster *Cluster
	Host    *Host
	State   *tls.ConnectionState // nil in plaintext
	start   time.Time
	once    sync.Once
}

// Close closes the connection.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		s := c.Cluster.stats
		s.CxDestroy.Inc()
		s.CxLength.Record(time.Since(c.start))
		c.Cluster.release(c.Host)
	})
	return err
}

func (c *Cluster) release(h *Host) {
	c.stats.CxActive.Dec()
	h.Stats.CxActive.Dec()
	if n := c.open.Add(-1); n < int64(c.conf.MaxConnections) {
		c.stats.BreakerOpen.Set(0)
	}
}

// A ConnectError reports a connection that could not be made.
type ConnectError struct {
	Flags    accesslog.Flags
	Host     *Host // the last that was tried; nil if none was
	Cluster  *Cluster
	Attempts int
	Err      error
}

func (e *ConnectError) Error() string { return e.Err.Error() }

func (e *ConnectError) Unwrap() error { return e.Err }

// Errors of connections that were not even tried.
var (
	ErrNoHealthyUpstream = errors.New("no healthy upstream")
	ErrOverflow          = errors.New("connection limit of the cluster is reached")
)

// defaultAttempts is how many different hosts are tried if nothing is configured.
const defaultAttempts = 3

// Connect makes a connection to one of the hosts. If a host can't be connected
// to, nothing was sent yet, and another is tried.
func (c *Cluster) Connect(ctx context.Context, req Request) (*Conn, int, error) {
	limit, again := int(req.MaxAttempts), true
	if limit == 0 {
		limit, again = defaultAttempts, false
	}
	var tried []*Host
	var failed *ConnectError
	for attempt := 1; attempt <= limit; attempt++ {
		owner, h := c.choose(req, tried, again)
		if h == nil {
			break
		}
		conn, err := owner.connect(ctx, h, req)
		if err == nil {
			return conn, attempt, nil
		}
		failed = &ConnectError{Flags: accesslog.UpstreamConnectionFailure, Host: h, Cluster: owner, Attempts: attempt, Err: err}
		if errors.Is(err, ErrOverflow) {
			failed.Flags = accesslog.UpstreamOverflow
			return nil, attempt, failed
		}
		if ctx.Err() != nil {
			return nil, attempt, failed
		}
		tried = append(tried, h)
	}
	if failed == nil {
		c.stats.CxNoneHealthy.Inc()
		return nil, 0, &ConnectError{Flags: accesslog.NoHealthyUpstream, Cluster: c, Err: ErrNoHealthyUpstream}
	}
	failed.Cluster.stats.CxAttemptsExceeded.Inc()
	failed.Flags |= accesslog.UpstreamRetryLimitExceeded
	return nil, failed.Attempts, failed
}

// choose returns a host and the cluster that it belongs to, which differs from
// c for an aggregate.
func (c *Cluster) choose(req Request, tried []*Host, again bool) (*Cluster, *Host) {
	switch c.conf.Type {
	case model.OriginalDst:
		if req.Destination == (model.Address{}) || len(tried) > 0 && !again {
			return c, nil
		}
		return c, newHost(&model.Endpoint{Address: req.Destination, Weight: 1})
	case model.Aggregate:
		// The first member with a host that is fit, else one that panics.
		for _, fit := range []bool{true, false} {
			for _, name := range c.conf.Members {
				member := c.m.Get(name)
				if member == nil || member.conf.Type == model.Aggregate {
					continue
				}
				if t := member.hosts.Load().table; t == nil || fit && !t.Usable() {
					continue
				}
				if h := member.pick(tried, false); h != nil {
					return member, h
				}
			}
		}
		if again && len(tried) > 0 {
			for _, name := range c.conf.Members {
				if member := c.m.Get(name); member != nil {
					if h := member.pick(nil, true); h != nil {
						return member, h
					}
				}
			}
		}
		return c, nil
	}
	return c, c.pick(tried, again)
}

// connect makes a connection to the host within the connect timeout, TLS included.
func (c *Cluster) connect(ctx context.Context, h *Host, req Request) (*Conn, error) {
	if n := c.open.Add(1); n > int64(c.conf.MaxConnections) {
		c.open.Add(-1)
		c.stats.CxOverflow.Inc()
		c.stats.BreakerOpen.Set(1)
		return nil, ErrOverflow
	} else if n == int64(c.conf.MaxConnections) {
		c.stats.BreakerOpen.Set(1)
	}
	c.stats.CxTotal.Inc()
	c.stats.CxActive.Inc()
	h.Stats.CxTotal.Inc()
	h.Stats.CxActive.Inc()
	start := time.Now()
	conn, state, err := c.dial(ctx, h, req, start)
	c.report(h, err == nil)
	if err != nil {
		c.release(h)
		c.stats.CxConnectFail.Inc()
		h.Stats.CxConnectFail.Inc()
		if timeout(err) {
			c.stats.CxConnectTimeout.Inc()
		}
		return nil, fmt.Errorf("connect to %s of %s: %w", h.key, c.conf.Name, err)
	}
	c.stats.CxConnect.Record(time.Since(start))
	return &Conn{Conn: conn, Cluster: c, Host: h, State: state, start: start}, nil
}

func timeout(err error) bool {
	var ne net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}

func (c *Cluster) dial(ctx context.Context, h *Host, req Request, start time.Time) (net.Conn, *tls.ConnectionState, error) {
	deadline := start.Add(c.conf.ConnectTimeout)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	addr := h.Address()
	var cfg *tls.Config
	if c.tls != nil {
		var err error
		if cfg, err = h.sessions.Config(c.tls); err != nil {
			return nil, nil, err
		}
	}
	raw, err := c.m.cfg.Dial(ctx, addr.Network(), addr.String())
	if err != nil {
		return nil, nil, err
	}
	if k := c.conf.Keepalive; k != nil {
		if t, ok := raw.(*net.TCPConn); ok {
			// A system that can't tune it keeps its own times.
			_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: k.Time, Interval: k.Interval, Count: k.Probes})
		}
	}
	if cfg == nil {
		return raw, nil, nil
	}
	if req.ALPN != nil && len(cfg.NextProtos) == 0 {
		cfg = cfg.Clone()
		cfg.NextProtos = req.ALPN
	}
	conn := tls.Client(stream.Below(raw), cfg)
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	err = conn.Handshake()
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

// close ends what the cluster does by itself. Its connections stay.
func (c *Cluster) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.tick != nil {
		c.tick.Stop()
	}
	if c.fetch != nil {
		c.fetch.Stop()
	}
	if c.stop != nil {
		c.stop()
	}
	c.scope.Close()
}
