package grpcapi

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-metrics"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"github.com/sarnmesh/sarn/internal/measure"
)

var external = metrics.Label{Name: "server_type", Value: "external"}

// Metrics of this package, with the label server_type: external.
var (
	// metricRequests counts calls, metricStreamed those of them that are streams.
	metricRequests = measure.NewCounter("grpc.server.request.count", external)
	metricStreamed = measure.NewCounter("grpc.server.stream.count", external)
	// metricConnected counts connections. Gauges tell how many there are, and how many streams.
	metricConnected   = measure.NewCounter("grpc.server.connection.count", external)
	metricConnections = []string{"grpc", "server", "connections"}
	metricStreams     = []string{"grpc", "server", "streams"}
)

// reportEvery is the time between two reports of the gauges.
const reportEvery = 5 * time.Second

// A load is how much a server has to do. It is the stats handler of its gRPC servers, for their connections alone.
type load struct{ connections, streams atomic.Int64 }

// TagConn implements stats.Handler.
func (l *load) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn counts connections.
func (l *load) HandleConn(_ context.Context, s stats.ConnStats) {
	switch s.(type) {
	case *stats.ConnBegin:
		metricConnected.Add(1)
		l.connections.Add(1)
	case *stats.ConnEnd:
		l.connections.Add(-1)
	}
}

// TagRPC implements stats.Handler.
func (l *load) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC implements stats.Handler.
func (l *load) HandleRPC(context.Context, stats.RPCStats) {}

func (l *load) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	metricRequests.Add(1)
	return handle(ctx, req)
}

func (l *load) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	metricRequests.Add(1)
	metricStreamed.Add(1)
	l.streams.Add(1)
	defer l.streams.Add(-1)
	return handle(srv, ss)
}

// report sets the gauges until ctx ends.
func (l *load) report(ctx context.Context) {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		labels := []metrics.Label{external}
		metrics.SetGaugeWithLabels(metricConnections, float32(l.connections.Load()), labels)
		metrics.SetGaugeWithLabels(metricStreams, float32(l.streams.Load()), labels)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
