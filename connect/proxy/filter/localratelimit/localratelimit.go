// Package localratelimit lets requests through at a rate that this proxy keeps by itself.
package localratelimit

import (
	"container/list"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/descriptor"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter, Route: newRoute}

const name = "envoy.filters.http.local_ratelimit"

// Config says how many requests may pass.
type Config struct {
	StatPrefix    string
	Bucket        *Bucket        // nil limits only what descriptors say
	Enabled       model.Fraction // of requests that are counted
	Enforced      model.Fraction // of those that are refused when there is no token
	PerConnection bool           // every connection has its own buckets

	Status        int // of refusals; 429 if it is less than 400
	Exhausted     bool
	ResponseEdits []model.HeaderEdit // of refusals
	RequestEdits  []model.HeaderEdit // of requests that would have been refused if that was enforced
	Headers       bool               // x-ratelimit-limit, -remaining and -reset in responses
	RetryAfter    bool               // header of refusals with 429

	Descriptors     []Descriptor
	RateLimits      []model.RateLimit // describe requests instead of those of routes
	Stage           uint32            // of the limits of routes
	VirtualHosts    descriptor.VirtualHostUse
	OnlyDescriptors bool // a request that fits a descriptor takes no token of Bucket
	MaxDynamic      int  // buckets kept for a descriptor with open values; 0 keeps 20
}

// A Descriptor is a bucket for the requests that are described just so. An entry with an empty value fits any, and each
// has its own bucket.
type Descriptor struct {
	Entries []descriptor.Entry
	Bucket  Bucket
	Shadow  bool // never refuses
}

// FilterType returns "envoy.filters.http.local_ratelimit".
func (*Config) FilterType() string { return name }

type limitFilter struct {
	name string
	own  *limiter
}

func newFilter(name string, conf model.FilterConfig, env *filter.Env) (filter.Filter, error) {
	l, err := newLimiter(conf.(*Config), env)
	if err != nil {
		return nil, err
	}
	return &limitFilter{name, l}, nil
}

func newRoute(conf model.FilterConfig, env *filter.Env) (any, error) {
	return newLimiter(conf.(*Config), env)
}

// A limiter is a configuration with its buckets.
type limiter struct {
	conf                           *Config
	env                            *filter.Env
	enabled, enforced, limited, ok *stats.Counter
	shared                         *buckets // nil if every connection has its own
	requestEdits, responseEdits    route.Edits
}

func newLimiter(conf *Config, env *filter.Env) (*limiter, error) {
	l := &limiter{conf: conf, env: env}
	var err error
	if l.requestEdits, err = route.NewEdits(conf.RequestEdits); err != nil {
		return nil, err
	}
	if l.responseEdits, err = route.NewEdits(conf.ResponseEdits); err != nil {
		return nil, err
	}
	s := env.Scope(stats.Label("envoy_local_http_ratelimit_prefix", conf.StatPrefix), stats.Text("http_local_rate_limit"))
	l.enabled, l.enforced, l.limited, l.ok = s.Counter("enabled"), s.Counter("enforced"), s.Counter("rate_limited"), s.Counter("ok")
	if !conf.PerConnection {
		l.shared = newBuckets(conf)
	}
	return l, nil
}

// buckets are all buckets of a limiter, or of one connection of it.
type buckets struct {
	conf    *Config
	common  *tokens // nil: none
	special []special
}

// special is the bucket, or the buckets, of a descriptor.
type special struct {
	conf   *Descriptor
	tokens *tokens // nil if a value is open

	mu      *sync.Mutex
	dynamic map[string]*list.Element // by the values
	used    *list.List               // of dynamicBucket, the last used first
}

type dynamicBucket struct {
	values string
	tokens *tokens
}

func newBuckets(conf *Config) *buckets {
	b := &buckets{conf: conf}
	if conf.Bucket != nil {
		b.common = newTokens(*conf.Bucket)
	}
	for i := range conf.Descriptors {
		s := special{conf: &conf.Descriptors[i]}
		if slices.ContainsFunc(s.conf.Entries, func(e descriptor.Entry) bool { return e.Value == "" }) {
			s.mu, s.dynamic, s.used = new(sync.Mutex), map[string]*list.Element{}, list.New()
		} else {
			s.tokens = newTokens(s.conf.Bucket)
		}
		b.special = append(b.special, s)
	}
	return b
}

// fit returns the first special bucket for a description; nil if there is none.
func (b *buckets) fit(entries []descriptor.Entry) (*tokens, *Descriptor) {
next:
	for i := range b.special {
		s := &b.special[i]
		if len(s.conf.Entries) != len(entries) {
			continue
		}
		for j, e := range s.conf.Entries {
			if e.Key != entries[j].Key || e.Value != "" && e.Value != entries[j].Value {
				continue next
			}
		}
		if s.tokens != nil {
			return s.tokens, s.conf
		}
		return s.open(entries, b.conf.MaxDynamic), s.conf
	}
	return nil, nil
}

// open returns the bucket of the values of a descriptor that leaves some open.
func (s *special) open(entries []descriptor.Entry, limit int) *tokens {
	if limit == 0 {
		limit = 20
	}
	var buf [128]byte
	key := buf[:0]
	for _, e := range entries {
		key = strconv.AppendInt(key, int64(len(e.Value)), 10)
		key = append(append(key, ':'), e.Value...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.dynamic[string(key)]; e != nil {
		s.used.MoveToFront(e)
		return e.Value.(*dynamicBucket).tokens
	}
	d := &dynamicBucket{string(key), newTokens(s.conf.Bucket)}
	s.dynamic[d.values] = s.used.PushFront(d)
	if s.used.Len() > limit {
		old := s.used.Remove(s.used.Back()).(*dynamicBucket)
		delete(s.dynamic, old.values)
	}
	return d.tokens
}

// maxFits bounds the descriptors of one request that count.
const maxFits = 16

// take takes the tokens that a request costs. It returns the bucket that decided; nil if none concerns the request.
func (b *buckets) take(x *filter.Exchange, env *filter.Env) (*tokens, bool) {
	type fit struct {
		tokens *tokens
		shadow bool
	}
	var buf [maxFits]fit
	fits := buf[:0]
	if len(b.special) > 0 {
		c := b.conf
		descriptor.Each(x, env, c.RateLimits, c.Stage, c.VirtualHosts, func(entries []descriptor.Entry) bool {
			if t, d := b.fit(entries); t != nil {
				fits = append(fits, fit{t, d.Shadow})
			}
			return len(fits) < maxFits
		})
		// The slowest first: if it refuses, the others lose nothing.
		slices.SortStableFunc(fits, func(a, b fit) int {
			switch {
			case a.tokens.per > b.tokens.per:
				return -1
			case a.tokens.per < b.tokens.per:
				return 1
			}
			return 0
		})
	}
	for _, f := range fits {
		if !f.tokens.take() && !f.shadow {
			return f.tokens, false
		}
	}
	if b.common != nil && (len(fits) == 0 || !b.conf.OnlyDescriptors) && !b.common.take() {
		return b.common, false
	}
	if len(fits) > 0 {
		return fits[0].tokens, true
	}
	return b.common, true
}

// refused marks the exchanges of a limiter that were refused.
type refused struct{ l *limiter }

func (f *limitFilter) limiter(x *filter.Exchange) *limiter {
	if l, ok := x.RouteConfig(f.name).(*limiter); ok {
		return l
	}
	return f.own
}

func (f *limitFilter) Request(x *filter.Exchange) *filter.Reply {
	l := f.limiter(x)
	c := l.conf
	if !c.Enabled.Hit(l.env.Rand()) {
		return nil
	}
	l.enabled.Inc()
	b := l.shared
	if b == nil {
		b = x.Conn.State(l, func() any { return newBuckets(c) }).(*buckets)
	}
	t, ok := b.take(x, l.env)
	if t != nil && (c.Headers || !ok) {
		x.SetState(l, t)
	}
	if ok {
		l.ok.Inc()
		return nil
	}
	l.limited.Inc()
	if !c.Enforced.Hit(l.env.Rand()) {
		l.requestEdits.Apply(&x.Request.Header, &x.Request.Arena, x.Entry)
		return nil
	}
	l.enforced.Inc()
	x.SetState(refused{l}, true)
	status := c.Status
	if status < 400 {
		status = 429
	}
	r := filter.Deny(status, "local_rate_limited", "local_rate_limited", accesslog.RateLimited)
	if c.Exhausted {
		r.GRPCStatus = 8
	}
	return r
}

func (f *limitFilter) Response(x *filter.Exchange) *filter.Reply {
	l := f.limiter(x)
	t, _ := x.State(l).(*tokens)
	if t == nil {
		return nil
	}
	h, a := &x.Response.Header, &x.Response.Arena
	if x.State(refused{l}) != nil {
		l.responseEdits.Apply(h, a, x.Entry)
		if l.conf.RetryAfter && x.Response.Status == 429 && !h.Has("retry-after") {
			h.Add("retry-after", number(a, max(1, seconds(t.untilNext()))))
		}
	}
	if l.conf.Headers {
		h.Set("x-ratelimit-limit", number(a, uint64(t.max)))
		h.Set("x-ratelimit-remaining", number(a, uint64(math.Floor(t.left()))))
		h.Set("x-ratelimit-reset", number(a, seconds(t.untilNext())))
	}
	return nil
}

func seconds(d time.Duration) uint64 { return uint64((d + time.Second - 1) / time.Second) }

func number(a *message.Arena, n uint64) string { return a.End(strconv.AppendUint(a.Begin(), n, 10)) }
