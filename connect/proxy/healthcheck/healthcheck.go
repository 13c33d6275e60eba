// Package healthcheck asks the hosts of clusters whether they are well: by HTTP,
// by gRPC, or by connecting.
package healthcheck

import (
	"cmp"
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/internal/pause"
)

// A Target is a host to ask.
type Target struct {
	// Dial connects to the host. It offers the protocols if it speaks TLS and
	// nothing else is configured, and tells whether it speaks TLS.
	Dial     func(ctx context.Context, alpn []string) (c net.Conn, secure bool, err error)
	Cluster  string // name of its cluster
	Hostname string // of the host; may be empty
}

// A Result is what one check found.
type Result uint8

// The results.
const (
	Passed Result = iota
	Failed
	NetworkFailure // no answer, or none in time
	WrongService   // the answer is another service's
)

// A Report tells of one check.
type Report struct {
	Result   Result
	Healthy  bool  // what the host is held to be now
	Degraded bool  // a healthy host says of itself that it is
	Changed  bool  // Healthy was different before
	First    bool  // this is the first check of the host
	Err      error // of checks that did not pass
}

// A Checker asks one host again and again.
type Checker struct {
	conf *model.HealthCheck
	to   Target
	rand func() uint64
	used func() bool

	mu      sync.Mutex
	checked bool
	healthy bool
	good    uint32 // in a row
	bad     uint32
}

// New returns a checker of a host that was not checked before. Used tells
// whether the cluster was ever used; random numbers are uniform.
func New(conf *model.HealthCheck, to Target, used func() bool, random func() uint64) *Checker {
	return &Checker{conf: conf, to: to, used: used, rand: random}
}

// Resume makes the checker take over what an earlier one knew. It is for
// before Run.
func (c *Checker) Resume(healthy bool) { c.checked, c.healthy = true, healthy }

// Fail makes the host unhealthy at once, as it may ask for in its answers to
// ordinary requests. It reports whether the host was healthy.
func (c *Checker) Fail() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.healthy
	c.healthy, c.good, c.bad = false, 0, 0
	return was
}

// Run checks until ctx ends. Report is called after every check, one at a time.
func (c *Checker) Run(ctx context.Context, report func(Report)) error {
	p := c.prober()
	defer p.close()
	wait := time.Duration(0)
	if j := c.conf.InitialJitter; j > 0 {
		wait = time.Duration(c.rand() % uint64(j))
	}
	for first := true; ; first = false {
		if !pause.For(ctx, wait) {
			return nil
		}
		r := c.check(ctx, p)
		if ctx.Err() != nil {
			return nil
		}
		if r.Result == NetworkFailure || c.conf.NoReuse {
			p.close()
		}
		report(r)
		if wait = c.interval(r); first && c.conf.InitialJitter == 0 {
			// Hosts that came together are not asked together for ever.
			wait -= time.Duration(c.rand() % uint64(wait/2+1))
		}
	}
}

// An answer is what a prober got.
type answer struct {
	err       error // nil is good
	counted   bool  // a failure that only counts against the threshold
	network   bool  // no proper answer at all
	service   bool  // wrong service
	degraded  bool
	immediate bool // the host wants to be failed, whatever the answer
}

// A prober asks once.
type prober interface {
	probe(ctx context.Context) answer
	close() // the connection that is kept for the next time, if any
}

func (c *Checker) prober() prober {
	switch k := c.kept(); {
	case c.conf.TCP != nil:
		return &tcp{kept: k}
	case c.conf.GRPC != nil:
		return &rpc{h2{kept: k}}
	case c.conf.HTTP.HTTP2:
		return &h2{kept: k}
	default:
		return &h1{kept: k}
	}
}

// kept is what probers have in common.
type kept struct {
	conf *model.HealthCheck
	to   Target
}

func (c *Checker) kept() kept { return kept{c.conf, c.to} }

func (k *kept) alpn(def string) []string {
	if len(k.conf.ALPN) > 0 {
		return k.conf.ALPN
	}
	return []string{def}
}

func (c *Checker) check(ctx context.Context, p prober) Report {
	ctx, cancel := context.WithTimeout(ctx, c.conf.Timeout)
	a := p.probe(ctx)
	cancel()
	return c.judge(a)
}

// judge counts an answer.
func (c *Checker) judge(a answer) Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := Report{First: !c.checked, Err: a.err}
	was := c.healthy
	if a.immediate {
		r.Err = errors.Join(errImmediate, a.err)
	}
	if r.Err == nil {
		r.Result, r.Degraded = Passed, a.degraded
		c.bad = 0
		if c.good++; r.First || c.good >= c.conf.Healthy {
			c.healthy = true
		}
	} else {
		switch {
		case a.network:
			r.Result = NetworkFailure
		case a.service:
			r.Result = WrongService
		default:
			r.Result = Failed
		}
		c.good = 0
		if c.bad++; r.First || a.immediate || !a.counted && !a.network || c.bad >= c.conf.Unhealthy {
			c.healthy = false
		}
	}
	c.checked = true
	r.Healthy, r.Changed = c.healthy, was != c.healthy
	return r
}

var errImmediate = errors.New("the host asks to be taken out")

// interval returns the wait after a check.
func (c *Checker) interval(r Report) time.Duration {
	d := c.conf.Interval
	switch passed := r.Result == Passed; {
	case !c.used() && passed:
		d = c.conf.NoTrafficHealthy
	case !c.used():
		d = c.conf.NoTraffic
	case passed && r.Changed:
		d = c.conf.HealthyEdge
	case passed:
	case r.Changed:
		d = cmp.Or(c.conf.UnhealthyEdge, c.conf.UnhealthyInterval)
	default:
		d = c.conf.UnhealthyInterval
	}
	if d <= 0 {
		d = c.conf.Interval
	}
	if p := uint64(d) * uint64(c.conf.JitterPercent) / 100; p > 0 {
		d += time.Duration(c.rand() % p)
	}
	if j := c.conf.Jitter; j > 0 {
		d += time.Duration(c.rand() % uint64(j))
	}
	return d
}

// limit makes reading and writing end with ctx.
func limit(ctx context.Context, c net.Conn) (stop func()) {
	if d, ok := ctx.Deadline(); ok {
		c.SetDeadline(d)
	}
	end := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	return func() { end() }
}

// late replaces what a connection says when its time is up.
func late(err error) error {
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return errLate
	}
	return err
}

var errLate = errors.New("no answer in time")
