package hcm

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/sarnmesh/sarn/connect/proxy/filter/unary"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// SendLogs calls a collector of access logs with a request that is encoded already.
func (f *Factory) SendLogs(ctx context.Context, c *model.LogCollector, request []byte) error {
	s := unary.Service{Cluster: c.Cluster, Authority: c.Authority, Timeout: c.Timeout}
	for _, h := range c.Headers {
		s.Metadata = append(s.Metadata, message.Field{Name: h.Name, Value: h.Value})
	}
	// A message keeps the bytes of fields that it does not know.
	var req, resp emptypb.Empty
	req.ProtoReflect().SetUnknown(request)
	return unary.Call(ctx, f.client, &s, "/opentelemetry.proto.collector.logs.v1.LogsService/Export", &req, &resp)
}
