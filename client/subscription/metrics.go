package subscription

import (
	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/internal/measure"
)

// Metrics of this package.
var (
	// metricSubscriptions is a gauge: subjects that the agent subscribes to, each for one token.
	metricSubscriptions = []string{"feed", "client", "subscriptions"}
	// metricOpen is a gauge: 1 while there is a feed, 0 while there is none.
	metricOpen = []string{"feed", "client", "open"}
	// metricOpened counts the feeds that servers gave.
	metricOpened = measure.NewCounter("feed.client.opened")
)

// report sets the gauges.
func (c *Client) report() {
	c.mu.Lock()
	subscriptions, open := len(c.all), float32(0)
	if c.feed != nil {
		open = 1
	}
	c.mu.Unlock()
	metrics.SetGauge(metricSubscriptions, float32(subscriptions))
	metrics.SetGauge(metricOpen, open)
}
