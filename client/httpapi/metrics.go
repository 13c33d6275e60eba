package httpapi

import (
	"strings"
	"time"

	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/internal/measure"
)

// metricRequests is a summary of the milliseconds that requests take, those that wait included. Labels: method; path, that
// of the endpoint with "_" for "/" and without its argument. What is asked for does not make new ones.
const metricRequests = "api.http"

// label makes the timers of a route ahead, since every request needs one.
func (rt *route) label() {
	path := strings.ReplaceAll(strings.TrimPrefix(rt.prefix+rt.suffix, "/"), "/", "_")
	for _, m := range rt.methods {
		rt.timers = append(rt.timers, measure.NewTimer(metricRequests, metrics.Label{Name: "method", Value: m}, metrics.Label{Name: "path", Value: path}))
	}
}

// measure notes a request by one of the methods that the route knows.
func (rt *route) measure(method string, began time.Time) {
	for i, m := range rt.methods {
		if m == method {
			rt.timers[i].Since(began)
			return
		}
	}
}
