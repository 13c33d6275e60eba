// Package router carries the calls of an agent that is no server to the servers it knows of from gossip.
package router

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// Config tunes a Router. A zero field takes its default.
type Config struct {
	Datacenter string
	Dial       func(ctx context.Context, address string) (net.Conn, error)
	Security   *rpcwire.Security // default plain text

	HoldTimeout      time.Duration // how long a call waits for the servers to have a leader; default 7s
	ClientTimeout    time.Duration // of a call that does not block; default 60s
	DefaultQueryTime time.Duration // of a read that blocks and does not say how long; default 300s
	MaxQueryTime     time.Duration // default 600s

	// Rate bounds the calls per second, with bursts of Burst; zero or negative for no bound.
	Rate  float64
	Burst int

	Logger hclog.Logger // default discards
}

// A Router is an rpc.Streamer that asks servers. Feed it gossip's events with Observe.
type Router struct {
	cfg    Config
	log    hclog.Logger
	client *rpcwire.Client

	mu      sync.Mutex
	servers []gossip.Server // the first is asked
	changed chan struct{}   // closed and replaced when servers appear
	timeout time.Duration

	rate Rate
}

var _ rpc.Streamer = (*Router)(nil)

// New returns a router that knows no server.
func New(cfg Config) *Router {
	if cfg.Security == nil {
		cfg.Security = &rpcwire.Security{}
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&cfg.HoldTimeout, 7 * time.Second}, {&cfg.ClientTimeout, 60 * time.Second},
		{&cfg.DefaultQueryTime, 300 * time.Second}, {&cfg.MaxQueryTime, 600 * time.Second},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	r := &Router{cfg: cfg, log: cfg.Logger.Named("router"), changed: make(chan struct{})}
	r.client = rpcwire.NewClient(func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := cfg.Dial(ctx, address)
		if err != nil {
			return nil, err
		}
		return cfg.Security.Secure(ctx, conn, rpcwire.ProtoRPC, cfg.Datacenter)
	})
	r.SetRate(cfg.Rate, cfg.Burst)
	r.SetTimeout(cfg.ClientTimeout)
	return r
}

// rebalanceEvery is how often another server is chosen, so that load spreads over servers that come back.
const rebalanceEvery = 2 * time.Minute

// Run spreads load until ctx ends, then closes every connection.
func (r *Router) Run(ctx context.Context) error {
	for {
		timer := time.NewTimer(rebalanceEvery + rand.N(rebalanceEvery/2))
		select {
		case <-ctx.Done():
			timer.Stop()
			return r.client.Close()
		case <-timer.C:
		}
		r.mu.Lock()
		rand.Shuffle(len(r.servers), func(i, j int) { r.servers[i], r.servers[j] = r.servers[j], r.servers[i] })
		r.mu.Unlock()
	}
}

// SetRate changes the bound on calls.
func (r *Router) SetRate(rate float64, burst int) { r.rate.Set(rate, burst) }

// SetTimeout changes how long calls to come may take that do not block.
func (r *Router) SetTimeout(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d > 0 {
		r.timeout = d
	}
}

// Observe learns of servers that come and go.
func (r *Router) Observe(e gossip.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range e.Members {
		s, ok := gossip.ParseServer(m)
		if !ok || s.Datacenter != r.cfg.Datacenter {
			continue
		}
		at := slices.IndexFunc(r.servers, func(o gossip.Server) bool { return o.Name == s.Name })
		switch e.Kind {
		case gossip.Joined, gossip.Updated:
			if at >= 0 {
				r.servers[at] = s
				continue
			}
			r.servers = slices.Insert(r.servers, rand.IntN(len(r.servers)+1), s)
			close(r.changed)
			r.changed = make(chan struct{})
		case gossip.Departed, gossip.Lost, gossip.Reaped:
			if at >= 0 {
				r.servers = slices.Delete(r.servers, at, at+1)
			}
		}
	}
}

// Servers returns the servers known, the one asked first.
func (r *Router) Servers() []gossip.Server {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.servers)
}

// pick returns the server to ask and how many there are.
func (r *Router) pick() (gossip.Server, int, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.servers) == 0 {
		return gossip.Server{}, 0, r.changed
	}
	return r.servers[0], len(r.servers), r.changed
}

// failed puts a server at the end.
func (r *Router) failed(s gossip.Server) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.servers) > 1 && r.servers[0].Name == s.Name {
		r.servers = append(r.servers[1:], r.servers[0])
	}
}

// Call performs a call at one of the servers.
func (r *Router) Call(ctx context.Context, d rpc.Descriptor, req, resp any) (err error) {
	metrics.IncrCounter(metricCalls, 1)
	defer func() {
		if err != nil {
			metrics.IncrCounter(metricFailed, 1)
		}
	}()
	if err := r.rate.admit(); err != nil {
		return err
	}
	r.mu.Lock()
	timeout, hold := r.timeout, r.cfg.HoldTimeout
	r.mu.Unlock()
	if o, ok := req.(interface{ ReadOptions() *read.Options }); ok && o.ReadOptions().MinIndex > 0 {
		wait := o.ReadOptions().MaxWait
		if wait <= 0 {
			wait = r.cfg.DefaultQueryTime
		}
		wait = min(wait, r.cfg.MaxQueryTime)
		wait += wait / 16
		timeout, hold = wait+r.cfg.HoldTimeout, wait
	}
	// A server holds a call as long by itself; leave it the time to say why it failed.
	ctx, cancel := context.WithTimeout(ctx, max(timeout, 3*r.cfg.HoldTimeout))
	defer cancel()
	return r.try(ctx, d.Kind, hold, func(address string) error { return r.client.Call(ctx, address, d.Name, req, resp) })
}

// Stream performs a call with byte streams at one of the servers.
func (r *Router) Stream(ctx context.Context, d rpc.Descriptor, req any, in io.Reader, resp any) (out io.ReadCloser, err error) {
	if err := r.rate.admit(); err != nil {
		return nil, err
	}
	kind := d.Kind
	if in != nil {
		kind = rpc.KindWrite // what was sent cannot be sent again
	}
	err = r.try(ctx, kind, r.cfg.HoldTimeout, func(address string) (err error) {
		out, err = r.client.Stream(ctx, address, d.Name, req, in, resp)
		return err
	})
	return out, err
}

// Duplex performs a call whose byte streams go on side by side (rpcwire.Client.Duplex) at the first server that answers it.
// It does not wait for one.
func (r *Router) Duplex(ctx context.Context, d rpc.Descriptor, req, resp any) (both io.ReadWriteCloser, err error) {
	if err := r.rate.admit(); err != nil {
		return nil, err
	}
	err = r.try(rpc.Impatient(ctx), rpc.KindRead, 0, func(address string) (err error) {
		if both, err = r.client.Duplex(ctx, address, d.Name, req, resp); errors.Is(err, wireerr.ErrNoLeader) {
			err = &unable{err} // another may have heard of one
		}
		return err
	})
	if u, ok := errors.AsType[*unable](err); ok {
		err = u.error
	}
	return both, err
}

// unable is the error of a server that is not to be asked again before the others.
type unable struct{ error }

// try asks servers until one has answered, the hold time is over, or the call may have been performed.
func (r *Router) try(ctx context.Context, kind rpc.Kind, hold time.Duration, call func(address string) error) error {
	began := time.Now()
	for asked := 1; ; asked++ {
		server, known, changed := r.pick()
		if known == 0 {
			return wireerr.ErrNoServers
		}
		err := call(server.Addr.String())
		if err == nil {
			return nil
		}
		unreachable, again := judge(kind, err)
		if unreachable {
			r.failed(server)
		}
		if !again || ctx.Err() != nil {
			return err
		}
		if unreachable && asked < known {
			continue // the others have not been asked yet
		}
		if rpc.IsImpatient(ctx) {
			if asked <= known {
				continue // a connection may have ended, and the server be there
			}
			return err
		}
		left := r.cfg.HoldTimeout/16 + time.Nanosecond
		wait := rand.N(left)
		if time.Since(began)+wait > hold {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-changed:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// judge tells whether a failed call says something about the server, and whether it may be tried again: it has
// certainly not been performed, or may be performed twice.
func judge(kind rpc.Kind, err error) (unreachable, again bool) {
	if dial, ok := errors.AsType[*rpcwire.DialError](err); ok {
		return true, !errors.Is(dial, rpcwire.ErrClosed)
	}
	if _, lost := errors.AsType[*rpcwire.LostError](err); lost {
		return true, kind == rpc.KindRead
	}
	if _, ok := errors.AsType[*unable](err); ok || errors.Is(err, wireerr.ErrRateLimited) {
		return true, true // it has too much to do; another may not
	}
	return false, errors.Is(err, wireerr.ErrNoLeader) || strings.Contains(err.Error(), "node is not the leader")
}
