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

// A tally counts the requests of an endpoint of the catalog: those that were made, those that succeeded, those that failed,
// and what was asked about services. What is nil is not counted.
type tally struct{ made, good, failed, query *measure.Counter }

// counted names what the catalog's endpoints are counted as: client.api.NAME, client.api.success.NAME and
// client.rpc.error.NAME, with the label node, this agent; and what counts questions about services, here where they are
// asked. Names of services are no labels: they come from requests.
var counted = map[string]struct{ name, query string }{
	"/v1/catalog/register": {"catalog_register", ""}, "/v1/catalog/deregister": {"catalog_deregister", ""},
	"/v1/catalog/datacenters": {"catalog_datacenters", ""}, "/v1/catalog/nodes": {"catalog_nodes", ""},
	"/v1/catalog/services": {"catalog_services", ""}, "/v1/catalog/service/": {"catalog_service_nodes", "catalog.service.query"},
	"/v1/catalog/connect/": {"catalog_service_nodes", "catalog.connect.query"}, "/v1/catalog/node/": {"catalog_node_services", ""},
	"/v1/catalog/node-services/": {"catalog_node_service_list", ""}, "/v1/catalog/gateway-services/": {"catalog_gateway_services", ""},
	"/v1/health/service/": {"", "health.service.query"}, "/v1/health/connect/": {"", "health.connect.query"},
	"/v1/health/ingress/": {"", "health.ingress.query"},
}

// tallyOf is that of the endpoint with a path, nil for none.
func tallyOf(path, node string) *tally {
	c, ok := counted[path]
	if !ok {
		return nil
	}
	t := &tally{}
	if c.query != "" {
		t.query = measure.NewCounter(c.query)
	}
	if c.name != "" {
		l := metrics.Label{Name: "node", Value: node}
		t.made, t.good, t.failed = measure.NewCounter("client.api."+c.name, l), measure.NewCounter("client.api.success."+c.name, l), measure.NewCounter("client.rpc.error."+c.name, l)
	}
	return t
}

// count counts a request that was answered with a status.
func (t *tally) count(status int) {
	if t.query != nil {
		t.query.Add(1)
	}
	if t.made == nil {
		return
	}
	t.made.Add(1)
	switch {
	case status < 400:
		t.good.Add(1)
	case status >= 500:
		t.failed.Add(1)
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
