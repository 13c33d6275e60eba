package ads

import (
	"time"

	"github.com/hashicorp/go-metrics"
)

// Metrics of the package (spec/xds.md section 1.7). All carry the label version, the protocol version.
//
//	xds.server.streams                 gauge    streams that are open
//	xds.server.streamsUnauthenticated  gauge    those of them whose client did not say who it is yet
//	xds.server.streamStart             summary  milliseconds from the opening of a stream to its first configuration
var versionLabel = []metrics.Label{{Name: "version", Value: "v3"}}

func reportStreams(open, unidentified int) {
	metrics.SetGaugeWithLabels([]string{"xds", "server", "streams"}, float32(open), versionLabel)
	metrics.SetGaugeWithLabels([]string{"xds", "server", "streamsUnauthenticated"}, float32(unidentified), versionLabel)
}

func reportStart(opened time.Time) {
	metrics.MeasureSinceWithLabels([]string{"xds", "server", "streamStart"}, opened, versionLabel)
}
