// Package fault delays and aborts requests, and slows responses down, to see how those who call cope.
package fault

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter, Route: newRoute}

const name = "envoy.filters.http.fault"

// Config says which requests fail, and how.
type Config struct {
	Delay     *Delay
	Abort     *Abort
	RateLimit *RateLimit

	// Of all requests, those to this cluster, from one of these nodes and with these headers; what is empty asks
	// for nothing.
	UpstreamCluster string
	DownstreamNodes []string
	Headers         []model.HeaderMatch

	MaxActive      *uint32        // exchanges with a fault at a time; nil any number
	NoClusterStats bool           // don't count by the cluster of the caller
	Metadata       map[string]any // dynamic metadata of exchanges with a fault
}

// A Delay waits before a request goes on.
type Delay struct {
	Fixed      time.Duration
	ByHeader   bool // the request says how long, in x-envoy-fault-delay-request
	Percentage model.Fraction
}

// An Abort answers a request. One of Status, GRPCStatus and ByHeader is set.
type Abort struct {
	Status     int
	GRPCStatus *uint32
	ByHeader   bool   // the request says how, in x-envoy-fault-abort-request or -abort-grpc-request
	Body       string // empty is "fault filter abort"
	Percentage model.Fraction
}

// A RateLimit slows the body of a response down.
type RateLimit struct {
	KiBps      uint64
	ByHeader   bool // the request says how much, in x-envoy-fault-throughput-response
	Percentage model.Fraction
}

// FilterType returns "envoy.filters.http.fault".
func (*Config) FilterType() string { return name }

type faultFilter struct {
	name     string
	env      *filter.Env
	conf     *Config
	stats    faultStats
	mu       sync.Mutex
	clusters map[string]*clusterStats // of callers that had a fault, up to maxClusters
}

type faultStats struct {
	delays, aborts, limited, overflow *stats.Counter
	active                            *stats.Gauge
}

type clusterStats struct{ delays, aborts *stats.Counter }

// maxClusters bounds the names of callers that are counted: they come from requests.
const maxClusters = 100

func newFilter(name string, conf model.FilterConfig, env *filter.Env) (filter.Filter, error) {
	s := env.Stats
	return &faultFilter{
		name: name, env: env, conf: conf.(*Config),
		stats: faultStats{
			delays: s.Counter("fault.delays_injected"), aborts: s.Counter("fault.aborts_injected"),
			limited: s.Counter("fault.response_rl_injected"), overflow: s.Counter("fault.faults_overflow"),
			active: s.Gauge("fault.active_faults"),
		},
		clusters: map[string]*clusterStats{},
	}, nil
}

func newRoute(conf model.FilterConfig, _ *filter.Env) (any, error) { return conf.(*Config), nil }

// An injection is what the filter does to one exchange.
type injection struct{ kibps uint64 }

func (f *faultFilter) Request(x *filter.Exchange) *filter.Reply {
	c := f.conf
	if r, ok := x.RouteConfig(f.name).(*Config); ok {
		c = r
	}
	h := &x.Request.Header
	if c.UpstreamCluster != "" && c.UpstreamCluster != x.Match.Cluster ||
		len(c.DownstreamNodes) > 0 && !slices.Contains(c.DownstreamNodes, h.Get("x-envoy-downstream-service-node")) ||
		!route.Headers(c.Headers, x.Request) {
		return nil
	}
	kibps := f.throughput(c, h)
	delay := f.delay(c, h)
	abort := f.abort(c, h)
	if delay == 0 && abort == nil && kibps == 0 {
		return nil
	}
	if f.stats.active.Inc(); c.MaxActive != nil && f.stats.active.Value() > int64(*c.MaxActive) {
		f.stats.active.Dec()
		f.stats.overflow.Inc()
		return nil
	}
	x.SetState(f, &injection{kibps})
	if c.Metadata != nil && (delay > 0 || abort != nil) {
		for k, v := range c.Metadata {
			x.SetMetadata(name, k, v)
		}
	}
	caller := f.caller(c, h.Get("x-envoy-downstream-service-cluster"))
	if kibps > 0 {
		f.stats.limited.Inc()
	}
	if delay > 0 {
		f.stats.delays.Inc()
		if caller != nil {
			caller.delays.Inc()
		}
		x.Entry.Flags |= accesslog.DelayInjected
		if !wait(x.Context(), delay) {
			return &filter.Reply{Reset: true, Details: "downstream_remote_disconnect", Flags: accesslog.DownstreamConnectionTermination, GRPCStatus: -1}
		}
	}
	if abort != nil {
		f.stats.aborts.Inc()
		if caller != nil {
			caller.aborts.Inc()
		}
	}
	return abort
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (f *faultFilter) delay(c *Config, h *message.Header) time.Duration {
	d := c.Delay
	if d == nil {
		return 0
	}
	wait, share := d.Fixed, d.Percentage
	if d.ByHeader {
		ms, ok := number(h, "x-envoy-fault-delay-request", math.MaxInt64/uint64(time.Millisecond))
		if !ok {
			return 0
		}
		wait, share = time.Duration(ms)*time.Millisecond, lower(h, "x-envoy-fault-delay-request-percentage", share)
	}
	if !share.Hit(f.env.Rand()) {
		return 0
	}
	return wait
}

func (f *faultFilter) abort(c *Config, h *message.Header) *filter.Reply {
	a := c.Abort
	if a == nil {
		return nil
	}
	status, code, share := a.Status, -1, a.Percentage
	if a.GRPCStatus != nil {
		status, code = 200, int(*a.GRPCStatus)
	}
	if a.ByHeader {
		if n, ok := number(h, "x-envoy-fault-abort-request", 599); ok && n >= 200 {
			status = int(n)
		} else if n, ok := number(h, "x-envoy-fault-abort-grpc-request", math.MaxInt32); ok {
			status, code = 200, int(n)
		} else {
			return nil
		}
		share = lower(h, "x-envoy-fault-abort-request-percentage", share)
	}
	if !share.Hit(f.env.Rand()) {
		return nil
	}
	r := filter.Deny(status, cmp.Or(a.Body, "fault filter abort"), "fault_filter_abort", accesslog.FaultInjected)
	r.GRPCStatus = code
	return r
}

func (f *faultFilter) throughput(c *Config, h *message.Header) uint64 {
	l := c.RateLimit
	if l == nil {
		return 0
	}
	n, share := l.KiBps, l.Percentage
	if l.ByHeader {
		var ok bool
		if n, ok = number(h, "x-envoy-fault-throughput-response", math.MaxInt32); !ok {
			return 0
		}
		share = lower(h, "x-envoy-fault-throughput-response-percentage", share)
	}
	if n == 0 || !share.Hit(f.env.Rand()) {
		return 0
	}
	return n
}

func number(h *message.Header, name string, limit uint64) (uint64, bool) {
	v := h.Get(name)
	if v == "" {
		return 0, false
	}
	n, err := strconv.ParseUint(v, 10, 64)
	return n, err == nil && n <= limit
}

// lower returns the share that a request asks for, which is no larger than the configured one.
func lower(h *message.Header, name string, share model.Fraction) model.Fraction {
	if n, ok := number(h, name, math.MaxUint32); ok {
		share.Numerator = min(share.Numerator, uint32(n))
	}
	return share
}

// caller returns the counters of the cluster that a request says it comes from; nil if it is not counted.
func (f *faultFilter) caller(c *Config, cluster string) *clusterStats {
	if c.NoClusterStats || cluster == "" || len(cluster) > 100 {
		return nil
	}
	for _, b := range []byte(cluster) {
		if (b < 'a' || b > 'z') && (b < 'A' || b > 'Z') && (b < '0' || b > '9') && b != '-' && b != '_' && b != '.' {
			return nil
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.clusters[cluster]
	if s == nil && len(f.clusters) < maxClusters {
		s = &clusterStats{f.env.Stats.Counter("fault." + cluster + ".delays_injected"), f.env.Stats.Counter("fault." + cluster + ".aborts_injected")}
		f.clusters[cluster] = s
	}
	return s
}

func (f *faultFilter) Response(x *filter.Exchange) *filter.Reply {
	if i, ok := x.State(f).(*injection); ok && i.kibps > 0 && x.ResponseBody != message.NoBody {
		x.ResponseBody = &slow{Source: x.ResponseBody, ctx: x.Context(), slice: max(1, int(i.kibps<<10/perSecond)), last: time.Now()}
	}
	return nil
}

func (f *faultFilter) Finish(x *filter.Exchange) {
	if _, ok := x.State(f).(*injection); ok {
		f.stats.active.Dec()
	}
}

const (
	perSecond = 20 // how often bytes are let through
	tick      = time.Second / perSecond
)

// slow lets a slice of a body through at each tick, and makes up for up to a second of silence.
type slow struct {
	message.Source
	ctx     context.Context
	slice   int // bytes
	last    time.Time
	credit  int
	pending []byte
	err     error // comes after pending
	started bool
}

func (s *slow) refill() {
	if !s.started {
		s.started, s.credit = true, s.slice
	}
	n := int(min(time.Since(s.last)/tick, perSecond))
	s.last = s.last.Add(time.Since(s.last) / tick * tick)
	s.credit = min(s.credit+n*s.slice, perSecond*s.slice)
}

func (s *slow) Ready() bool {
	if len(s.pending) == 0 {
		// Reading waits for credit only once there is something to send.
		return s.err != nil
	}
	s.refill()
	return s.credit > 0
}

func (s *slow) Read() ([]byte, error) {
	if len(s.pending) == 0 {
		if s.err != nil {
			return nil, s.err
		}
		if s.pending, s.err = s.Source.Read(); len(s.pending) == 0 {
			return nil, s.err
		}
	}
	for s.refill(); s.credit == 0; s.refill() {
		if !wait(s.ctx, tick-time.Since(s.last)) {
			return nil, s.ctx.Err()
		}
	}
	p := s.pending[:min(len(s.pending), s.credit)]
	s.pending, s.credit = s.pending[len(p):], s.credit-len(p)
	if len(s.pending) == 0 {
		return p, s.err
	}
	return p, nil
}
