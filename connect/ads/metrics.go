package ads

import (
	"time"

	"github.com/hashicorp/go-metrics"
)

// Metrics of the package (spec/xds.md section 1.7). The first three carry the label version, the protocol version.
//
//	xds.server.streams                 gauge    streams that are open
//	xds.server.streamsUnauthenticated  gauge    those of them whose client did not say who it is yet
//	xds.server.streamStart             summary  milliseconds from the opening of a stream to its first configuration
//	xds.server.streamDrained           counter  streams ended so that their clients go to other servers
//	xds.server.idealStreamsMax         gauge    how many streams this server is to have at most, 0 for any number
var versionLabel = []metrics.Label{{Name: "version", Value: "v3"}}

func reportStreams(open, unidentified int) {
	metrics.SetGaugeWithLabels([]string{"xds", "server", "streams"}, float32(open), versionLabel)
	metrics.SetGaugeWithLabels([]string{"xds", "server", "streamsUnauthenticated"}, float32(unidentified), versionLabel)
}

func reportStart(opened time.Time) {
	metrics.MeasureSinceWithLabels([]string{"xds", "server", "streamStart"}, opened, versionLabel)
}

func reportDrained() { metrics.IncrCounter([]string{"xds", "server", "streamDrained"}, 1) }

func reportShare(n int) { metrics.SetGauge([]string{"xds", "server", "idealStreamsMax"}, float32(n)) }
