package feedrpc

import (
	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/internal/measure"
)

// internal tells feeds from the streams of those who are no agents of the cluster.
var internal = metrics.Label{Name: "server_type", Value: "internal"}

// Metrics of this package. The first two have the label server_type: internal.
var (
	// metricFeeds is a gauge: agents that have a feed. metricOpened counts the feeds that were given.
	metricFeeds  = []string{"grpc", "server", "streams"}
	metricOpened = measure.NewCounter("grpc.server.stream.count", internal)
	// metricSubscriptions is a gauge: of all agents, each of a subject and token. metricTopics is how many different ones
	// are kept for them.
	metricSubscriptions = []string{"feed", "server", "subscriptions"}
	metricTopics        = []string{"feed", "server", "topics"}
	// metricEvents counts the events that were sent, whole states among them.
	metricEvents = measure.NewCounter("feed.server.events")
)

// report sets the gauges.
func (h *Hub) report() {
	s := h.Stats()
	metrics.SetGaugeWithLabels(metricFeeds, float32(s.Feeds), []metrics.Label{internal})
	metrics.SetGauge(metricSubscriptions, float32(s.Subscriptions))
	metrics.SetGauge(metricTopics, float32(s.Topics))
}
