package httpapi

import (
	"strings"
	"time"

	"github.com/hashicorp/go-metrics"
)

// metricRequests is a summary of the milliseconds that requests take, those that wait included. Labels: method; path, that
// of the endpoint with "_" for "/" and without its argument.
var metricRequests = []string{"api", "http"}

// label makes the labels of a route ahead, since every request needs some.
func (rt *route) label() {
	path := strings.ReplaceAll(strings.TrimPrefix(rt.prefix+rt.suffix, "/"), "/", "_")
	rt.labels = map[string][]metrics.Label{}
	for _, m := range rt.methods {
		rt.labels[m] = []metrics.Label{{Name: "method", Value: m}, {Name: "path", Value: path}}
	}
}

// measure notes a request by one of the methods that the route knows.
func (rt *route) measure(method string, began time.Time) {
	if labels := rt.labels[method]; labels != nil {
		metrics.MeasureSinceWithLabels(metricRequests, began, labels)
	}
}
