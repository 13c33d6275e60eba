//lint:file-ignore SA1019 services still answer with what Envoy has deprecated

// Package ratelimit asks a service whether requests come too fast.
package ratelimit

import (
	"math"
	"strconv"
	"strings"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/descriptor"
	"github.com/sarnmesh/sarn/connect/proxy/filter/held"
	"github.com/sarnmesh/sarn/connect/proxy/filter/unary"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter, Route: newRoute}

const name = "envoy.filters.http.ratelimit"

// DefaultTimeout is how long the service has to answer.
const DefaultTimeout = 20 * time.Millisecond

// Config says who is asked about what.
type Config struct {
	Service      unary.Service
	Domain       string
	Stage        uint32
	Requests     RequestType
	DenyOnError  bool
	ErrorStatus  int // 0 is 500
	Status       int // of refusals; 429 if it is less than 400
	Exhausted    bool
	Headers      bool // x-ratelimit-limit, -remaining and -reset in responses
	NoHeader     bool // refusals do not have x-envoy-ratelimited
	Edits        []model.HeaderEdit
	RateLimits   []model.RateLimit // instead of those of routes
	StatPrefix   string
	VirtualHosts descriptor.VirtualHostUse
	Enabled      *model.Fraction // nil: all
	Enforced     *model.Fraction
}

// A RequestType is which requests are asked about.
type RequestType uint8

// The types.
const (
	Both RequestType = iota
	Internal
	External
)

// FilterType returns "envoy.filters.http.ratelimit".
func (*Config) FilterType() string { return name }

// A RouteConfig is what a route says.
type RouteConfig struct {
	VirtualHosts descriptor.VirtualHostUse
	RateLimits   []model.RateLimit
	Domain       string // empty takes the filter's
}

// FilterType returns "envoy.filters.http.ratelimit".
func (*RouteConfig) FilterType() string { return name }

func newRoute(conf model.FilterConfig, _ *filter.Env) (any, error) { return conf.(*RouteConfig), nil }

type limitFilter struct {
	name     string
	conf     *Config
	env      *filter.Env
	edits    route.Edits
	clusters *filter.ClusterStats[counters]
}

type counters struct {
	OK      stats.Counter `stat:"ok"`
	Over    stats.Counter `stat:"over_limit"`
	Error   stats.Counter `stat:"error"`
	Allowed stats.Counter `stat:"failure_mode_allowed"`
}

func newFilter(filterName string, conf model.FilterConfig, env *filter.Env) (filter.Filter, error) {
	c := conf.(*Config)
	edits, err := route.NewEdits(c.Edits)
	clusters := filter.NewClusterStats[counters](env, "ratelimit", c.StatPrefix)
	return &limitFilter{name: filterName, conf: c, env: env, edits: edits, clusters: clusters}, err
}

func (f *limitFilter) counters(cluster string) *counters {
	if c := f.clusters.Of(cluster); c != nil {
		return c
	}
	return f.clusters.Of("")
}

// maxDescriptors bounds how much is asked at once.
const maxDescriptors = 64

func (f *limitFilter) Request(x *filter.Exchange) *filter.Reply {
	c := f.conf
	if c.Requests == Internal && !x.Internal || c.Requests == External && x.Internal || c.Enabled != nil && !c.Enabled.Hit(f.env.Rand()) {
		return nil
	}
	q := &ratelimitv3.RateLimitRequest{Domain: c.Domain}
	limits, hosts := c.RateLimits, c.VirtualHosts
	if r, isRoute := x.RouteConfig(f.name).(*RouteConfig); isRoute {
		hosts = r.VirtualHosts
		if len(r.RateLimits) > 0 {
			limits = r.RateLimits
		}
		if r.Domain != "" {
			q.Domain = r.Domain
		}
	}
	descriptor.Each(x, f.env, limits, c.Stage, hosts, func(entries []descriptor.Entry) bool {
		d := &commonv3.RateLimitDescriptor{}
		for _, e := range entries {
			d.Entries = append(d.Entries, &commonv3.RateLimitDescriptor_Entry{Key: e.Key, Value: strings.ToValidUTF8(e.Value, "!")})
		}
		q.Descriptors = append(q.Descriptors, d)
		return len(q.Descriptors) < maxDescriptors
	})
	if len(q.Descriptors) == 0 {
		return nil
	}
	n := f.counters(x.Match.Cluster)
	var a ratelimitv3.RateLimitResponse
	if err := unary.Call(x.Context(), f.env.Client, &c.Service, "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit", q, &a); err != nil {
		if x.Context().Err() != nil { // the client has left
			return held.Failed(err)
		}
		n.Error.Inc()
		if !c.DenyOnError {
			n.Allowed.Inc()
			return nil
		}
		return filter.Deny(orDefault(c.ErrorStatus, 500), "", "rate_limiter_error", accesslog.RateLimitServiceError)
	}
	if m := a.GetDynamicMetadata(); m != nil {
		for k, v := range m.AsMap() {
			x.SetMetadata(name, k, v)
		}
	}
	x.SetState(f, &a)
	switch a.GetOverallCode() {
	case ratelimitv3.RateLimitResponse_OK:
		n.OK.Inc()
		for _, h := range a.GetRequestHeadersToAdd() {
			if field, ok := valid(h.GetKey(), h.GetValue()); ok {
				x.Request.Header.Add(field.Name, field.Value)
			}
		}
		return nil
	case ratelimitv3.RateLimitResponse_OVER_LIMIT:
		n.Over.Inc()
		if c.Enforced != nil && !c.Enforced.Hit(f.env.Rand()) {
			return nil
		}
		status := c.Status
		if status < 400 {
			status = 429
		}
		r := filter.Deny(status, string(a.GetRawBody()), "request_rate_limited", accesslog.RateLimited)
		if c.Exhausted {
			r.GRPCStatus = 8
		}
		if !c.NoHeader {
			r.Header = append(r.Header, message.Field{Name: "x-envoy-ratelimited", Value: "true"})
		}
		r.Rule = name
		return r
	}
	n.Error.Inc()
	if c.DenyOnError {
		return filter.Deny(orDefault(c.ErrorStatus, 500), "", "rate_limiter_error", accesslog.RateLimitServiceError)
	}
	n.Allowed.Inc()
	return nil
}

func orDefault(n, def int) int {
	if n == 0 {
		return def
	}
	return n
}

// valid returns a header that a service wants to be added, if it may be.
func valid(name, value string) (message.Field, bool) {
	name = strings.ToLower(name)
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "content-length", "te", "host", "":
		return message.Field{}, false
	}
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return message.Field{}, false
		}
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return message.Field{}, false
	}
	return message.Field{Name: name, Value: value}, true
}

func (f *limitFilter) Response(x *filter.Exchange) *filter.Reply {
	a, asked := x.State(f).(*ratelimitv3.RateLimitResponse)
	if !asked {
		return nil
	}
	h := &x.Response.Header
	for _, add := range a.GetResponseHeadersToAdd() {
		if field, ok := valid(add.GetKey(), add.GetValue()); ok {
			h.Add(field.Name, field.Value)
		}
	}
	if a.GetOverallCode() == ratelimitv3.RateLimitResponse_OVER_LIMIT {
		f.edits.Apply(h, &x.Response.Arena, x.Entry)
	}
	if f.conf.Headers {
		tell(h, a.GetStatuses())
	}
	return nil
}

// tell adds the headers of draft-polli-ratelimit-headers-03, about the limit that is closest.
func tell(h *message.Header, statuses []*ratelimitv3.RateLimitResponse_DescriptorStatus) {
	var closest *ratelimitv3.RateLimitResponse_DescriptorStatus
	var policies strings.Builder
	for _, s := range statuses {
		l := s.GetCurrentLimit()
		if l == nil {
			continue
		}
		if closest == nil || s.GetLimitRemaining() < closest.GetLimitRemaining() {
			closest = s
		}
		window := seconds(l.GetUnit())
		if window == 0 {
			continue
		}
		policies.WriteString(", " + strconv.FormatUint(uint64(l.GetRequestsPerUnit()), 10) + ";w=" + strconv.Itoa(window))
		if l.GetName() != "" {
			policies.WriteString(`;name="` + l.GetName() + `"`)
		}
	}
	if closest == nil {
		return
	}
	h.Set("x-ratelimit-limit", strconv.FormatUint(uint64(closest.GetCurrentLimit().GetRequestsPerUnit()), 10)+policies.String())
	h.Set("x-ratelimit-remaining", strconv.FormatUint(uint64(closest.GetLimitRemaining()), 10))
	h.Set("x-ratelimit-reset", strconv.FormatFloat(math.Floor(closest.GetDurationUntilReset().AsDuration().Seconds()), 'f', 0, 64))
}

func seconds(u ratelimitv3.RateLimitResponse_RateLimit_Unit) int {
	switch u {
	case ratelimitv3.RateLimitResponse_RateLimit_SECOND:
		return 1
	case ratelimitv3.RateLimitResponse_RateLimit_MINUTE:
		return 60
	case ratelimitv3.RateLimitResponse_RateLimit_HOUR:
		return 3600
	case ratelimitv3.RateLimitResponse_RateLimit_DAY:
		return 86400
	case ratelimitv3.RateLimitResponse_RateLimit_WEEK:
		return 7 * 86400
	case ratelimitv3.RateLimitResponse_RateLimit_MONTH:
		return 30 * 86400
	case ratelimitv3.RateLimitResponse_RateLimit_YEAR:
		return 365 * 86400
	}
	return 0
}
