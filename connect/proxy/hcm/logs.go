package hcm

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// maxLogAnswer bounds what a collector of access logs may say.
const maxLogAnswer = 64 << 10

// SendLogs calls a collector of access logs with a request that is encoded already. Envoy's access log service gets a
// stream of one message.
func (f *Factory) SendLogs(ctx context.Context, c *model.LogCollector, request []byte) error {
	r := &message.Request{Version: message.HTTP2, Method: "POST", Scheme: "http", Authority: cmp.Or(c.Authority, c.Cluster),
		Path: "/opentelemetry.proto.collector.logs.v1.LogsService/Export"}
	if c.Service != model.OpenTelemetryLogs {
		r.Path = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
	}
	r.Header.Add("content-type", "application/grpc")
	r.Header.Add("te", "trailers")
	for _, h := range c.Headers {
		r.Header.Add(h.Name, h.Value)
	}
	body := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request))), request...)
	a, err := f.client.Do(ctx, c.Cluster, r, body, maxLogAnswer)
	if err != nil {
		return err
	}
	if a.Status != 200 {
		return fmt.Errorf("status %d", a.Status)
	}
	// Not every server of a stream answers with a message.
	if code := cmp.Or(a.Trailer.Get("grpc-status"), a.Header.Get("grpc-status")); code != "0" {
		return fmt.Errorf("gRPC status %q", code)
	}
	return nil
}
