// Package healthcheck answers health checks, or remembers what the service behind the proxy answers to them.
package healthcheck

import (
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter}

const name = "envoy.filters.http.health_check"

// Config says what is a health check and who answers it.
type Config struct {
	PassThrough bool                // the service answers, unless the proxy itself is told to fail
	CacheTime   time.Duration       // PassThrough: how long an answer is given again; 0 not at all
	MinHealthy  []Cluster           // else: what must be healthy
	Headers     []model.HeaderMatch // what is a health check
}

// A Cluster must have a percentage of healthy hosts.
type Cluster struct {
	Name    string
	Percent float64
}

// FilterType returns "envoy.filters.http.health_check".
func (*Config) FilterType() string { return name }

type healthFilter struct {
	conf *Config
	env  *filter.Env
	last atomic.Pointer[answer]
}

type answer struct {
	status int
	until  time.Time
}

func newFilter(_ string, conf model.FilterConfig, env *filter.Env) (filter.Filter, error) {
	return &healthFilter{conf: conf.(*Config), env: env}, nil
}

func (f *healthFilter) Request(x *filter.Exchange) *filter.Reply {
	if !route.Headers(f.conf.Headers, x.Request) {
		return nil
	}
	x.SetState(f, true)
	x.Entry.HTTP.HealthCheck = true
	var a *answer
	if f.conf.PassThrough {
		if a = f.last.Load(); a != nil && !time.Now().Before(a.until) {
			a = nil
		}
		if a == nil && !f.env.Failing() {
			return nil
		}
	}
	status, details := 200, "health_check_ok"
	switch {
	case f.env.Failing():
		status, details = 503, "health_check_failed"
	case a != nil:
		status, details = a.status, "health_check_cached"
	default:
		if len(f.conf.MinHealthy) > 0 {
			details = "health_check_ok_cluster_healthy"
		}
		for _, c := range f.conf.MinHealthy {
			healthy, total, known := f.env.Clusters.Health(c.Name)
			switch {
			case c.Percent == 0:
				continue
			case !known:
				status, details = 503, "health_check_failed_no_cluster_found"
			case total == 0:
				status, details = 503, "health_check_failed_cluster_empty"
			case 100*float64(healthy) < c.Percent*float64(total):
				status, details = 503, "health_check_failed_cluster_unhealthy"
			}
		}
	}
	r := filter.Deny(status, "", details, 0)
	if status/100 != 2 {
		r.Flags = accesslog.FailedLocalHealthCheck
	}
	return r
}

func (f *healthFilter) Response(x *filter.Exchange) *filter.Reply {
	h := &x.Response.Header
	if x.State(f) == nil {
		if f.env.Failing() {
			h.Set("x-envoy-immediate-health-check-fail", "true")
		}
		return nil
	}
	if f.conf.PassThrough && f.conf.CacheTime > 0 {
		if a := f.last.Load(); a == nil || !time.Now().Before(a.until) {
			f.last.Store(&answer{x.Response.Status, time.Now().Add(f.conf.CacheTime)})
		}
	}
	h.Set("x-envoy-upstream-healthchecked-cluster", f.env.NodeCluster)
	return nil
}
