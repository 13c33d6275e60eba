package pool

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/http1"
	"github.com/sarnmesh/sarn/connect/proxy/http2"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
)

// A host is the connections to one host.
type host struct {
	pool *Pool
	host *upstream.Host
	conf *model.UpstreamHTTP

	mu     sync.Mutex // guards all below, and what groups and connections say it does
	groups []*group
	closed bool // idle connections are not kept
}

// A key says which connections are the same for a request.
type key struct {
	priority   model.RoutingPriority
	protocol   model.UpstreamProtocol // never UpstreamAsClient
	serverName string
	verifyName bool
}

// A group is connections that are the same for a request. It is there while there is a connection, one is being made,
// or somebody waits. Guarded by host.mu.
type group struct {
	key
	host    *host
	idle    []*conn // of HTTP/1; the last was used last
	shared  []*conn // of HTTP/2
	waiters []*waiter
	total   int             // connections
	dialing int             // more that are being made
	learned message.Version // what the host chose when it was last asked

	timer *time.Timer // looks at connections that nobody uses
	due   time.Time   // when it fires; zero: it is not armed
}

// A conn is a connection to the host. Exactly one of h1 and h2 is not nil.
type conn struct {
	group   *group
	up      *upstream.Conn
	h1      *http1.ClientConn
	h2      *http2.ClientConn
	ready   atomic.Bool // h2 is set
	stream1 stream      // the only one of h1
	connect time.Duration
	local   string
	born    time.Time

	// Of HTTP/1, these belong to who has the connection; of HTTP/2, they are guarded by host.mu.
	requests atomic.Uint32 // that it has carried
	since    time.Time     // when the last one ended
	remote   bool          // the host has closed it
	rx, tx   uint64        // of HTTP/1: bytes that were counted already
	active   int           // of HTTP/2: streams
	retired  bool          // of HTTP/2: no more streams
}

// sweep is how often connections that nobody uses are looked at, whether their hosts have closed them.
const sweep = 15 * time.Second

// find returns the group for a key, which is made if there is none.
func (hp *host) find(k *key) *group {
	for _, g := range hp.groups {
		if g.key == *k {
			return g
		}
	}
	if limit := hp.host.Cluster().Breaker(k.priority).Limits().MaxPools; limit > 0 && len(hp.groups) >= int(limit) {
		hp.host.Cluster().Stats().CxPoolOverflow.Inc()
		return nil
	}
	g := &group{key: *k, host: hp}
	hp.groups = append(hp.groups, g)
	return g
}

func (hp *host) stream(ctx context.Context, c *upstream.Cluster, b *upstream.Breaker, o *Options) (message.ClientStream, Info, error) {
	k := key{priority: o.Priority, protocol: hp.conf.Protocol, serverName: o.ServerName, verifyName: o.VerifyName}
	if k.protocol == model.UpstreamAsClient {
		k.protocol = model.UpstreamHTTP1
		if o.Downstream == message.HTTP2 {
			k.protocol = model.UpstreamHTTP2
		}
	}
	if k.protocol == model.UpstreamALPN && o.Upgrade != "" {
		k.protocol = model.UpstreamHTTP1 // few hosts switch protocols within HTTP/2
	}
	for {
		hp.mu.Lock()
		g := hp.find(&k)
		if g == nil {
			hp.mu.Unlock()
			return nil, Info{}, overflow()
		}
		if len(g.waiters) > 0 {
			return hp.await(ctx, c, b, g, o) // nobody overtakes
		}
		cn, st := g.take()
		if cn == nil {
			return hp.await(ctx, c, b, g, o)
		}
		hp.mu.Unlock()
		if cn.h1 == nil || cn.h1.Quiet() {
			s, info := cn.open(st, b)
			return s, info, nil
		}
		cn.remote = true
		hp.discard(cn)
	}
}

// await waits for a connection. It is called with the lock held, which it releases.
func (hp *host) await(ctx context.Context, c *upstream.Cluster, b *upstream.Breaker, g *group, o *Options) (message.ClientStream, Info, error) {
	if !b.Try(upstream.Pending) {
		g.tidy()
		hp.mu.Unlock()
		return nil, Info{}, &message.StreamError{Reason: message.Overflow, Detail: "no more requests may wait"}
	}
	w := &waiter{ch: make(chan result, 1)}
	g.waiters = append(g.waiters, w)
	g.dial()
	hp.mu.Unlock()

	s := c.Stats()
	s.RqPendingTotal.Inc()
	s.RqPendingActive.Inc()
	r, err := w.wait(ctx, o.Deadline)
	s.RqPendingActive.Dec()
	b.Done(upstream.Pending)
	if err == nil {
		st, info := r.c.open(r.st, b)
		return st, info, nil
	}
	if r.err != nil {
		s.RqPendingFailure.Inc()
		return nil, Info{}, err
	}
	hp.mu.Lock()
	if i := slices.Index(g.waiters, w); i >= 0 {
		g.waiters = slices.Delete(g.waiters, i, i+1)
		g.tidy()
		hp.mu.Unlock()
		return nil, Info{}, err
	}
	hp.mu.Unlock()
	if r := <-w.ch; r.err == nil { // it came at the same moment
		if r.st != nil {
			r.st.Close()
		}
		hp.giveBack(r.c)
	}
	return nil, Info{}, err
}

// take returns a connection that can carry a request now, with a stream if it is HTTP/2; nil if there is none.
func (g *group) take() (*conn, message.ClientStream) {
	for _, c := range g.shared {
		if c.retired {
			continue
		}
		st, err := c.h2.Open()
		if err != nil {
			continue
		}
		c.active++
		if limit := g.host.conf.MaxRequests; c.requests.Add(1) >= limit && limit > 0 {
			g.host.host.Cluster().Stats().CxMaxRequests.Inc()
			c.retire()
		}
		return c, st
	}
	n := len(g.idle) - 1
	if n < 0 {
		return nil, nil
	}
	c := g.idle[n]
	g.idle[n] = nil
	g.idle = g.idle[:n]
	return c, nil
}

// retire lets no more streams be opened on an HTTP/2 connection, which ends with the last one. Until then the codec is
// not told: it would refuse those on which nothing was sent yet.
func (c *conn) retire() {
	if c.retired = true; c.active == 0 {
		c.h2.Drain()
	}
}

// serve gives connections that have come free to those who wait.
func (g *group) serve() {
	for len(g.waiters) > 0 {
		c, st := g.take()
		if c == nil {
			return
		}
		g.pop().ch <- result{c: c, st: st}
	}
}

// pop returns the first in line.
func (g *group) pop() *waiter {
	w := g.waiters[0]
	g.waiters[0] = nil
	g.waiters = g.waiters[1:]
	return w
}

// shares reports whether a new connection will, or may, serve several requests.
func (g *group) shares() bool {
	if g.protocol == model.UpstreamHTTP1 {
		return g.learned == message.HTTP2
	}
	return g.learned != message.HTTP11
}

// dial begins to make as many connections as those who wait need and limits allow. One is always allowed.
func (g *group) dial() {
	hp := g.host
	want := len(g.waiters)
	if g.shares() {
		want = min(want, 1)
	}
	for g.dialing < want {
		b := hp.host.Cluster().Breaker(g.priority)
		most := int(b.Limits().MaxHostConnections)
		none := g.total+g.dialing == 0
		switch {
		case most > 0 && hp.count() >= most && !none:
			return
		case b.Try(upstream.Connections):
		case none:
			b.Force(upstream.Connections)
		default:
			return
		}
		if !hp.pool.begin() {
			b.Done(upstream.Connections)
			for len(g.waiters) > 0 {
				g.pop().ch <- result{err: failure(context.Canceled)}
			}
			return
		}
		g.dialing++
		go g.connect(b)
	}
}

// count returns the connections to the host, with those that are being made.
func (hp *host) count() int {
	n := 0
	for _, g := range hp.groups {
		n += g.total + g.dialing
	}
	return n
}

// connect makes a connection.
func (g *group) connect(b *upstream.Breaker) {
	hp := g.host
	defer hp.pool.work.Done()
	req := upstream.Request{ServerName: g.serverName, VerifyName: g.verifyName, Breaker: b}
	switch g.protocol {
	case model.UpstreamHTTP2:
		req.ALPN = []string{"h2"}
	case model.UpstreamALPN:
		req.ALPN = []string{"h2", "http/1.1"}
	default:
		req.ALPN = []string{"http/1.1"}
	}
	start := time.Now()
	up, err := hp.host.Cluster().Dial(hp.pool.ctx, hp.host, req)
	var c *conn
	if err == nil {
		now := time.Now()
		c = &conn{group: g, up: up, born: now, since: now, connect: now.Sub(start)}
		if a := up.LocalAddr(); a != nil {
			c.local = a.String()
		}
		if err = c.speak(); err != nil {
			up.Close()
		}
	}

	hp.mu.Lock()
	g.dialing--
	if err != nil {
		err = failure(err)
		for n := len(g.waiters); n > 0; n-- {
			g.pop().ch <- result{err: err}
			if !g.shares() {
				break
			}
		}
		g.dial()
		g.tidy()
		hp.mu.Unlock()
		return
	}
	g.total++
	s := up.Cluster.Stats()
	if c.h2 != nil {
		g.learned = message.HTTP2
		g.shared = append(g.shared, c)
		c.ready.Store(true)
		s.CxHTTP2.Inc()
	} else {
		g.learned = message.HTTP11
		g.idle = append(g.idle, c)
		s.CxHTTP1.Inc()
	}
	g.serve()
	g.dial()
	dead := g.rest(time.Now())
	hp.mu.Unlock()
	closeAll(dead)
}

// speak begins HTTP on a new connection: the version that TLS settled on, if it did.
func (c *conn) speak() error {
	conf := c.group.host.conf
	old := c.group.protocol != model.UpstreamHTTP2
	if c.up.State != nil && c.up.State.NegotiatedProtocol != "" {
		old = c.up.State.NegotiatedProtocol != "h2"
	}
	if old {
		cfg := http1.ClientConfig{MaxHeadBytes: conf.MaxHeaderBytes, MaxFields: conf.MaxHeaders, Trailers: conf.HTTP1.EnableTrailers}
		switch {
		case conf.HTTP1.ProperCase:
			cfg.Case = http1.ProperCase
		case conf.HTTP1.PreserveCase:
			cfg.Case = http1.PreserveCase
		}
		c.h1 = http1.NewClientConn(c.up.Conn, cfg)
		return nil
	}
	o := options(conf)
	o.Counters = stats.Struct[http2.Counters](c.up.Cluster.Scope())
	h2, err := http2.NewClientConn(c.up.Conn, http2.ClientConfig{Options: o, OnSpare: c.spare})
	c.h2 = h2
	return err
}

// options is what the codec needs of a cluster's configuration.
func options(c *model.UpstreamHTTP) http2.Options {
	bound := func(n *uint32) int {
		switch {
		case n == nil:
			return 0 // the default
		case *n == 0:
			return -1
		}
		return int(*n)
	}
	o := &c.HTTP2
	out := http2.Options{
		HeaderTable: bound(o.HPACKTable), MaxStreams: o.ConcurrentStreams, StreamWindow: o.StreamWindow, ConnWindow: o.ConnectionWindow,
		MaxHeaderBytes: c.MaxHeaderBytes, MaxHeaders: c.MaxHeaders, MaxOutboundFrames: int(o.MaxOutbound),
		MaxOutboundControlFrames: int(o.MaxOutboundControl), MaxEmptyFrames: bound(o.EmptyFrames),
		MaxPriorityPerStream: bound(o.PriorityPerStream), MaxWindowPerData: bound(o.WindowUpdatePerData), StreamErrors: o.OverrideError,
	}
	if k := o.Keepalive; k != nil {
		out.Keepalive = http2.Keepalive{Interval: k.Interval, Timeout: k.Timeout, Jitter: k.Jitter / 100, Idle: k.IdleInterval}
	}
	return out
}

// spare is told by an HTTP/2 connection that its streams have changed, or that it has ended.
func (c *conn) spare() {
	if !c.ready.Load() {
		return // whoever made it looks by himself
	}
	g := c.group
	g.host.mu.Lock()
	dead := g.rest(time.Now())
	g.host.mu.Unlock()
	closeAll(dead)
	g.host.mu.Lock()
	g.serve()
	g.dial()
	g.tidy()
	g.host.mu.Unlock()
}

// A stream is a stream on a connection of the pool.
type stream struct {
	message.ClientStream
	c       *conn
	breaker *upstream.Breaker
	open    bool
}

var streams = sync.Pool{New: func() any { return new(stream) }}

// open begins a request on a connection, whose stream is st if it is HTTP/2.
func (c *conn) open(st message.ClientStream, b *upstream.Breaker) (message.ClientStream, Info) {
	info := Info{
		LocalAddress: c.local, RemoteAddress: c.up.Host.String(), State: c.up.State, ConnectTime: c.connect,
	}
	s := &c.stream1
	if c.h1 != nil {
		info.Version = message.HTTP11
		c.requests.Add(1)
		st = c.h1.Stream()
	} else {
		info.Version = message.HTTP2
		s = streams.Get().(*stream)
	}
	info.Reused = c.requests.Load() > 1
	*s = stream{ClientStream: st, c: c, breaker: b, open: true}
	return s, info
}

// Close gives the stream back, and the connection with it.
func (s *stream) Close() {
	if !s.open {
		return
	}
	s.open = false
	s.ClientStream.Close()
	s.breaker.Done(upstream.Requests)
	c := s.c
	if c.h1 == nil {
		*s = stream{}
		streams.Put(s)
	} else {
		rx, tx := c.h1.WireBytes()
		st := c.up.Cluster.Stats()
		st.CxRxBytes.Add(rx - c.rx)
		st.CxTxBytes.Add(tx - c.tx)
		c.rx, c.tx = rx, tx
	}
	c.group.host.giveBack(c)
}

// giveBack is called when a stream on the connection has ended.
func (hp *host) giveBack(c *conn) {
	g := c.group
	now := time.Now()
	if c.h1 != nil {
		s := c.up.Cluster.Stats()
		limit, age := hp.conf.MaxRequests, hp.conf.MaxDuration
		switch {
		case !c.h1.Usable():
			e := c.h1.Ending()
			if c.remote = e.Lost; e.Told {
				s.CxCloseNotify.Inc()
			}
			if e.Broken {
				c.countBroken(s)
			}
			hp.discard(c)
			return
		case limit > 0 && c.requests.Load() >= limit:
			s.CxMaxRequests.Inc()
			hp.discard(c)
			return
		case age > 0 && now.Sub(c.born) >= age:
			s.CxMaxDuration.Inc()
			hp.discard(c)
			return
		}
		c.since = now
	}
	hp.mu.Lock()
	if c.h1 != nil {
		g.idle = append(g.idle, c)
	} else if c.active--; c.active == 0 {
		if c.since = now; c.retired {
			c.h2.Drain()
		}
	}
	g.serve()
	var dead []*conn
	if hp.closed || g.due.IsZero() {
		dead = g.rest(now)
	} else if idle := hp.conf.IdleTimeout; idle > 0 {
		g.arm(now, now.Add(idle))
	}
	hp.mu.Unlock()
	closeAll(dead)
}

// discard closes an HTTP/1 connection that is nobody's.
func (hp *host) discard(c *conn) {
	c.close()
	g := c.group
	hp.mu.Lock()
	defer hp.mu.Unlock()
	g.total--
	g.dial()
	g.tidy()
}

// close closes a connection and counts who did.
func (c *conn) close() {
	s := c.up.Cluster.Stats()
	if c.h1 != nil {
		c.h1.Close() // it may be closed already
	} else {
		c.h2.Close()
	}
	c.up.Close() // likewise; this gives its place back
	if c.remote {
		s.CxDestroyRemote.Inc()
	} else {
		s.CxDestroyLocal.Inc()
	}
}

// countBroken counts a connection that ends while it carries a request.
func (c *conn) countBroken(s *upstream.Stats) {
	s.CxDestroyWithRequest.Inc()
	if c.remote {
		s.CxDestroyRemoteWithRequest.Inc()
	} else {
		s.CxDestroyLocalWithRequest.Inc()
	}
}

// closeAll closes connections that were taken out. It is called without the lock.
func closeAll(dead []*conn) {
	for _, c := range dead {
		c.close()
	}
}

// rest takes out connections that have been idle or alive for too long, or that have ended, and sees to it that this
// happens again in time. They are to be closed.
func (g *group) rest(now time.Time) (dead []*conn) {
	hp := g.host
	idle, age := hp.conf.IdleTimeout, hp.conf.MaxDuration
	s := hp.host.Cluster().Stats()
	var next time.Time
	at := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	g.idle = slices.DeleteFunc(g.idle, func(c *conn) bool {
		switch {
		case hp.closed:
		case idle > 0 && now.Sub(c.since) >= idle:
			s.CxIdleTimeout.Inc()
		case age > 0 && now.Sub(c.born) >= age:
			s.CxMaxDuration.Inc()
		case now.Sub(c.since) >= sweep && !c.h1.Quiet():
			c.remote = true
		default:
			at(now.Add(sweep))
			if idle > 0 {
				at(c.since.Add(idle))
			}
			if age > 0 {
				at(c.born.Add(age))
			}
			return false
		}
		dead = append(dead, c)
		return true
	})
	g.shared = slices.DeleteFunc(g.shared, func(c *conn) bool {
		select {
		case <-c.h2.Closed():
			if c.remote = !c.retired; c.active > 0 {
				c.countBroken(s)
			}
			dead = append(dead, c)
			return true
		default:
		}
		switch {
		case c.retired:
			return false
		case hp.closed:
			c.retire()
		case idle > 0 && c.active == 0 && now.Sub(c.since) >= idle:
			s.CxIdleTimeout.Inc()
			c.retire()
		case age > 0 && now.Sub(c.born) >= age:
			s.CxMaxDuration.Inc()
			c.retire()
		default:
			if idle > 0 && c.active == 0 {
				at(c.since.Add(idle))
			}
			if age > 0 {
				at(c.born.Add(age))
			}
		}
		return false
	})
	g.total -= len(dead)
	g.arm(now, next)
	g.tidy()
	return dead
}

// arm makes the timer fire at t, or not at all if that is zero.
func (g *group) arm(now, t time.Time) {
	switch {
	case t.IsZero():
		g.due = t
	case g.due.IsZero() || t.Before(g.due) || !g.due.After(now):
		g.due = t
		if g.timer == nil {
			g.timer = time.AfterFunc(t.Sub(now), g.tick)
		} else {
			g.timer.Reset(t.Sub(now))
		}
	}
}

func (g *group) tick() {
	g.host.mu.Lock()
	g.due = time.Time{}
	dead := g.rest(time.Now())
	g.host.mu.Unlock()
	closeAll(dead)
}

// tidy forgets the group if there is nothing in it.
func (g *group) tidy() {
	if g.total+g.dialing+len(g.waiters) > 0 {
		return
	}
	if g.timer != nil {
		g.timer.Stop()
	}
	g.due = time.Time{}
	g.host.groups = slices.DeleteFunc(g.host.groups, func(x *group) bool { return x == g })
}

// Close closes connections that are idle. Those that are not are closed when their requests have ended.
func (hp *host) Close() error {
	hp.pool.forget(hp)
	hp.mu.Lock()
	hp.closed = true
	var dead []*conn
	for _, g := range slices.Clone(hp.groups) {
		dead = append(dead, g.rest(time.Now())...)
	}
	hp.mu.Unlock()
	closeAll(dead)
	return nil
}
