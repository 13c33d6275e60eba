// Package proxy is the data plane of the mesh: it executes the listeners and
// clusters that a control plane or a file describes.
//
// What it was told last stays in force for as long as it runs, whatever
// happens to the control plane, and if a state file is given also when it
// starts again.
package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/adsclient"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/filter/all"
	"github.com/sarnmesh/sarn/connect/proxy/hcm"
	"github.com/sarnmesh/sarn/connect/proxy/listener"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/pool"
	"github.com/sarnmesh/sarn/connect/proxy/quota"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/connect/proxy/tlscontext"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
)

// Config tunes a Proxy. A zero field takes its default.
type Config struct {
	Bootstrap *decode.Bootstrap // required
	Decoder   *decode.Decoder   // default reads files and the environment
	Version   string            // of the program
	UserAgent string            // default "sarn"

	// Targets are where the control plane is; default the hosts of the
	// bootstrap's ADS cluster.
	Targets []adsclient.Target
	// Metadata returns what goes along with a stream to the control plane;
	// default what the bootstrap says.
	Metadata func() []decode.Header

	// StateFile keeps the last good configuration, private keys included,
	// readable by the owner only. Empty keeps none.
	StateFile string

	// Listen, Dial, Resolve and OriginalDst reach the network; the defaults are
	// the operating system's.
	Listen      func(ctx context.Context, l *model.Listener, a model.Address) (net.Listener, error)
	Dial        func(ctx context.Context, network, address string) (net.Conn, error)
	Resolve     func(ctx context.Context, name string) ([]netip.Addr, error)
	OriginalDst func(net.Conn) (netip.AddrPort, bool)
	// OpenLog opens the file of an access log to append to; default os.OpenFile.
	OpenLog        func(path string) (io.WriteCloser, error)
	Stdout, Stderr io.Writer // of access logs; default discards

	// DrainTime is how long connections may stay whose listener was changed or
	// removed; default 10 minutes.
	DrainTime time.Duration
	// ShutdownTime is how long connections may stay once the proxy is told to
	// stop; default 10 seconds. New ones are taken for half of that time, as long
	// as others are open, and told to be short.
	ShutdownTime time.Duration
	// HandoverTime is how long connections may stay once another process has taken
	// the sockets over; default 15 minutes.
	HandoverTime   time.Duration
	MaxConnections int64 // of all listeners together; 0 does not limit
	// Connections and Memory are the proxy's part of what it shares with
	// others in the process: connections of clients, and bytes of bodies that
	// are kept. Nil does not limit.
	Connections, Memory *quota.Share

	Logger hclog.Logger // default discards
	Rand   func() uint64
}

// A Proxy runs listeners and clusters.
type Proxy struct {
	cfg       Config
	log       hclog.Logger
	start     time.Time
	stats     *stats.Store
	secrets   *tlscontext.Secrets
	sinks     *accesslog.Sinks
	upstreams *upstream.Manager
	pool      *pool.Pool
	http      *hcm.Factory
	listeners *listener.Manager
	client    *adsclient.Client // nil without a control plane

	wake chan struct{} // holds a token if something may have become ready
	save chan struct{} // holds a token if the configuration changed
	quit chan struct{} // closed by Quit
	left chan struct{} // closed by HandOver
	live chan struct{} // closed when the proxy is live

	drains chan drain // asked for, not begun

	quitOnce   sync.Once
	leftOnce   sync.Once
	state      atomic.Int32
	failHealth atomic.Bool

	mu       sync.Mutex
	store    map[string]map[string]*resource // by type URL and name
	static   map[string]map[string]bool      // names of the bootstrap's resources
	clusters map[string]*model.Cluster
	// routeClusters are the clusters that route configurations lead to, by the names of those.
	routeClusters map[string][]string
	active        map[string]*model.Listener // in force
	pending       map[string]*waiting        // newest versions that are not in force yet
	doomed        map[string]bool            // removed, but their address is wanted by a pending one
	answered      bool                       // the control plane or the state file told the listeners
}

// A resource is what came last under a name.
type resource struct {
	adsclient.Resource
	updated time.Time
	failure string // why a newer version was refused; empty if none was
}

// waiting is a listener that waits to be put into force.
type waiting struct {
	conf  *model.Listener
	err   error         // why it could not be opened; nil if it was not tried
	retry time.Time     // when to try again
	wait  time.Duration // last wait
}

// States of a proxy, as the admin server tells them.
const (
	StateInitializing = iota
	StateLive
	StateDraining
)

// New returns a proxy. Nothing happens until Run.
func New(cfg Config) (*Proxy, error) {
	if cfg.Bootstrap == nil {
		return nil, errors.New("no bootstrap")
	}
	if cfg.Decoder == nil {
		cfg.Decoder = decode.New(decode.FromSystem())
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.ShutdownTime <= 0 {
		cfg.ShutdownTime = 10 * time.Second
	}
	if cfg.HandoverTime <= 0 {
		cfg.HandoverTime = 15 * time.Minute
	}
	if cfg.OpenLog == nil {
		cfg.OpenLog = func(path string) (io.WriteCloser, error) {
			return os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		}
	}
	b := cfg.Bootstrap
	p := &Proxy{
		cfg: cfg, log: cfg.Logger, start: time.Now(),
		stats:    stats.NewStore(b.Tags),
		secrets:  tlscontext.NewSecrets(),
		wake:     make(chan struct{}, 1),
		save:     make(chan struct{}, 1),
		quit:     make(chan struct{}),
		left:     make(chan struct{}),
		live:     make(chan struct{}),
		drains:   make(chan drain, 1),
		store:    map[string]map[string]*resource{},
		static:   map[string]map[string]bool{},
		clusters: map[string]*model.Cluster{}, routeClusters: map[string][]string{},
		active:  map[string]*model.Listener{},
		pending: map[string]*waiting{},
		doomed:  map[string]bool{},
	}
	p.stats.Keep(b.Keep)
	p.stats.Buckets(b.Buckets)
	p.sinks = accesslog.NewSinks(cfg.Stdout, cfg.Stderr, cfg.OpenLog)
	p.upstreams = upstream.NewManager(upstream.Config{
		Dial: cfg.Dial, Resolve: cfg.Resolve, Secrets: p.secrets, Stats: p.stats, Rand: cfg.Rand,
		Logger: cfg.Logger.Named("upstream"), Warm: func(string) { poke(p.wake) },
	})
	if cfg.Rand == nil {
		cfg.Rand = rand.Uint64
	}
	p.pool = pool.New()
	p.http = hcm.New(hcm.Config{
		Upstreams: p.upstreams, Pool: p.pool, Stats: p.stats, Sinks: p.sinks,
		Filters: all.Types(), Rand: cfg.Rand, Logger: cfg.Logger.Named("http"),
		Failing: func() bool { return p.failHealth.Load() || p.state.Load() == StateDraining },
		NodeID:  b.Node.ID, NodeCluster: b.Node.Cluster, Memory: cfg.Memory,
	})
	p.sinks.Collect(accesslog.Collect{Send: p.http.SendLogs, NodeID: b.Node.ID, NodeCluster: b.Node.Cluster, Zone: b.Node.Zone, Logger: cfg.Logger.Named("accesslog")})
	p.listeners = listener.NewManager(listener.Config{
		Listen: cfg.Listen, OriginalDst: cfg.OriginalDst, Upstreams: p.upstreams, HTTP: p.http, Secrets: p.secrets, Stats: p.stats,
		Logs: p.sinks, Logger: cfg.Logger.Named("listener"), Rand: cfg.Rand,
		DrainTime: cfg.DrainTime, MaxConnections: cfg.MaxConnections, Share: cfg.Connections, Failing: p.failHealth.Load,
	})
	p.serverStats()
	if b.ADS == nil && len(cfg.Targets) == 0 {
		return p, nil
	}
	ads := b.ADS
	if ads == nil {
		ads = &decode.ADS{}
	}
	targets := cfg.Targets
	if len(targets) == 0 {
		targets = []adsclient.Target{{Name: ads.Cluster, Dial: p.dialCluster(ads.Cluster)}}
	}
	metadata := cfg.Metadata
	if metadata == nil {
		metadata = func() []decode.Header { return ads.Metadata }
	}
	p.client = adsclient.New(adsclient.Config{
		Node: b.Node, UserAgent: cmp.Or(cfg.UserAgent, "sarn"), Version: cfg.Version,
		Targets: targets, Metadata: metadata, SotW: ads.SotW,
		Logger: cfg.Logger.Named("xds"), Stats: p.stats,
	}, p)
	return p, nil
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// dialCluster connects to a host of a static cluster, for HTTP/2.
func (p *Proxy) dialCluster(name string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		c := p.upstreams.Get(name)
		if c == nil {
			return nil, fmt.Errorf("cluster %q has no hosts yet", name)
		}
		conn, _, err := c.Connect(ctx, upstream.Request{MaxAttempts: 1, ALPN: []string{"h2"}})
		if err != nil {
			return nil, err
		}
		return conn, nil
	}
}

// Run runs the proxy until ctx ends, Quit is called or another process took the
// sockets over. It then tells clients to go elsewhere, waits for connections to
// end for the time that its configuration says, and ends the rest.
func (p *Proxy) Run(ctx context.Context) error {
	// What serves connections outlives ctx until they are drained. So does the
	// control plane: what is forbidden meanwhile is forbidden to them, too.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, work := errgroup.WithContext(work)
	g.Go(func() error { return p.upstreams.Run(work) })
	g.Go(func() error { return p.sinks.Run(work) })
	for _, s := range p.cfg.Bootstrap.Sinks {
		g.Go(func() error { return p.statsD(s).Run(work) })
	}

	p.begin()
	saving, release := context.WithCancel(work)
	defer release()
	g.Go(func() error { return p.settleLoop(work) })
	g.Go(func() error { return p.drainLoop(saving) })
	if p.cfg.StateFile != "" {
		g.Go(func() error { return p.saveLoop(saving) })
	}
	if p.client != nil {
		g.Go(func() error { return p.client.Run(work) })
	}
	select {
	case <-ctx.Done():
	case <-p.quit:
	case <-p.left:
	case <-work.Done(): // something failed
	}
	p.state.Store(StateDraining)
	release()
	p.drain(ctx)
	p.http.Close()
	deliver, cancelDelivery := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	p.sinks.Deliver(deliver)
	cancelDelivery()
	if err := p.pool.Close(); err != nil {
		p.log.Debug("closing connections to hosts", "error", err)
	}
	stop()
	return g.Wait()
}

// statsD returns a sink of metrics.
func (p *Proxy) statsD(s decode.StatsD) *stats.StatsD {
	dial := p.cfg.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	network := "udp"
	if s.Address.Path != "" {
		network = "unixgram"
	}
	s.Logger = p.log.Named("stats")
	return stats.NewStatsD(p.stats, func(ctx context.Context) (io.WriteCloser, error) {
		return dial(ctx, network, s.Address.String())
	}, s.StatsDConfig)
}

// Quit makes Run stop as if its context had ended.
func (p *Proxy) Quit() { p.quitOnce.Do(func() { close(p.quit) }) }

// begin puts the static resources into force, and what the state file has.
func (p *Proxy) begin() {
	b := p.cfg.Bootstrap
	p.mu.Lock()
	mark := func(typeURL, name string) {
		if p.static[typeURL] == nil {
			p.static[typeURL] = map[string]bool{}
		}
		p.static[typeURL][name] = true
	}
	p.secrets.Set(b.Secrets...)
	for _, s := range b.Secrets {
		mark(decode.TypeSecret, s.Name)
	}
	for _, c := range b.Clusters {
		mark(decode.TypeCluster, c.Name)
		p.clusters[c.Name] = c
		p.upstreams.Set(c, true)
	}
	for _, l := range b.Listeners {
		mark(decode.TypeListener, l.Name)
		p.pending[l.Name] = &waiting{conf: l}
	}
	p.answered = p.client == nil
	p.settle(nil)
	p.subscribe()
	p.mu.Unlock()
	p.restore()
	if p.client != nil {
		if b.CDS || b.ADS == nil {
			p.client.WantAll(decode.TypeCluster)
		}
		if b.LDS || b.ADS == nil {
			p.client.WantAll(decode.TypeListener)
		}
	}
}

// Ready reports whether the proxy does what it was told and may be sent traffic.
func (p *Proxy) Ready() bool {
	return p.state.Load() == StateLive && !p.failHealth.Load()
}

// State returns "INITIALIZING", "LIVE" or "DRAINING".
func (p *Proxy) State() string {
	switch s := p.state.Load(); {
	case s == StateInitializing:
		return "INITIALIZING"
	case s == StateDraining || p.failHealth.Load():
		return "DRAINING"
	}
	return "LIVE"
}

// FailHealth makes the proxy report that it is not ready, or takes that back.
func (p *Proxy) FailHealth(fail bool) { p.failHealth.Store(fail) }

// ReopenLogs makes the files of access logs be opened anew, after they were moved away.
func (p *Proxy) ReopenLogs() { p.sinks.Reopen() }

// Stats returns the metrics.
func (p *Proxy) Stats() *stats.Store { return p.stats }

// Upstreams returns the state of the clusters.
func (p *Proxy) Upstreams() []upstream.Info { return p.upstreams.Clusters() }

// Listeners returns the state of the listeners.
func (p *Proxy) Listeners() []listener.Info { return p.listeners.Listeners() }

// Started returns when the proxy was made.
func (p *Proxy) Started() time.Time { return p.start }

// Node returns who the proxy is.
func (p *Proxy) Node() decode.Node { return p.cfg.Bootstrap.Node }

// Version returns the version of the program.
func (p *Proxy) Version() string { return p.cfg.Version }
