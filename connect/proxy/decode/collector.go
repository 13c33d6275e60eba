//lint:file-ignore SA1019 control planes still send what Envoy has deprecated

package decode

import (
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	otellogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// maxLogBatch bounds what is gathered for a collector before it is sent.
const maxLogBatch = 1 << 20

// logCollector decodes where lines go over the protocol of OpenTelemetry.
func (r *run) logCollector(path string, m *otellogv3.OpenTelemetryAccessLogConfig) *model.LogCollector {
	r.only(path, m, `common_config grpc_service log_name resource_attributes body attributes disable_builtin_labels
		buffer_flush_interval buffer_size_bytes`, "stat_prefix filter_state_objects_to_log")
	g, where := m.GetGrpcService(), path
	c := &model.LogCollector{Name: m.GetLogName(), Labels: !m.GetDisableBuiltinLabels()}
	size, interval := m.GetBufferSizeBytes(), m.GetBufferFlushInterval()
	if old := m.GetCommonConfig(); old != nil {
		p := join(path, "common_config")
		r.only(p, old, "log_name grpc_service transport_api_version buffer_flush_interval buffer_size_bytes", "filter_state_objects_to_log grpc_stream_retry_policy")
		if g == nil {
			g, where = old.GetGrpcService(), p
		}
		if c.Name == "" {
			c.Name = old.GetLogName()
		}
		if size == nil {
			size = old.GetBufferSizeBytes()
		}
		if interval == nil {
			interval = old.GetBufferFlushInterval()
		}
	}
	r.logDelivery(where, g, size, interval, c)
	for _, kv := range m.GetResourceAttributes().GetValues() {
		v, ok := kv.GetValue().GetValue().(*commonv1.AnyValue_StringValue)
		if !ok {
			r.errorf(join(path, "resource_attributes"), "%q is no text", kv.GetKey())
			continue
		}
		c.Resource = append(c.Resource, model.LogAttribute{Key: kv.GetKey(), Value: v.StringValue})
	}
	if m.GetBody() != nil {
		c.Body = r.anyValue(join(path, "body"), m.GetBody(), 0)
	}
	for _, kv := range m.GetAttributes().GetValues() {
		c.Attributes = append(c.Attributes, model.LogAttribute{Key: kv.GetKey(), Value: r.anyValue(join(path, "attributes"), kv.GetValue(), 0)})
	}
	return c
}

// accessLogService decodes where lines go to Envoy's access log service.
func (r *run) accessLogService(path string, service model.LogService, m *grpclogv3.CommonGrpcAccessLogConfig) *model.LogCollector {
	r.only(path, m, "log_name grpc_service transport_api_version buffer_flush_interval buffer_size_bytes", "filter_state_objects_to_log grpc_stream_retry_policy")
	c := &model.LogCollector{Service: service, Name: m.GetLogName()}
	r.logDelivery(path, m.GetGrpcService(), m.GetBufferSizeBytes(), m.GetBufferFlushInterval(), c)
	return c
}

// logDelivery decodes what all collectors have in common.
func (r *run) logDelivery(path string, g *corev3.GrpcService, size *wrapperspb.UInt32Value, interval *durationpb.Duration, c *model.LogCollector) {
	where := join(path, "grpc_service")
	if g == nil {
		r.errorf(where, "missing")
		return
	}
	retry := g.GetRetryPolicy()
	g.RetryPolicy = nil // lines are sent once
	s := r.grpcService(where, g)
	g.RetryPolicy = retry
	c.Cluster, c.Authority, c.Timeout = s.Cluster, s.Authority, s.Timeout
	for _, h := range s.Metadata {
		c.Headers = append(c.Headers, model.LogHeader{Name: h.Name, Value: h.Value})
	}
	c.FlushInterval = max(r.duration(join(path, "buffer_flush_interval"), interval, time.Second), time.Second)
	if size != nil {
		c.FlushSize = max(int(min(size.GetValue(), maxLogBatch)), 1)
	}
}

// lowered returns names of headers in lower case.
func lowered(names []string) []string {
	var out []string
	for _, n := range names {
		out = append(out, model.LowerASCII(n))
	}
	return out
}

// anyValue returns a value of OpenTelemetry in the form of JSON.
func (r *run) anyValue(path string, v *commonv1.AnyValue, depth int) any {
	if depth > 16 {
		r.errorf(path, "nests too deep")
		return nil
	}
	switch x := v.GetValue().(type) {
	case nil:
		return nil
	case *commonv1.AnyValue_StringValue:
		return x.StringValue
	case *commonv1.AnyValue_BoolValue:
		return x.BoolValue
	case *commonv1.AnyValue_IntValue:
		return x.IntValue
	case *commonv1.AnyValue_DoubleValue:
		return x.DoubleValue
	case *commonv1.AnyValue_ArrayValue:
		out := []any{}
		for _, item := range x.ArrayValue.GetValues() {
			out = append(out, r.anyValue(path, item, depth+1))
		}
		return out
	case *commonv1.AnyValue_KvlistValue:
		out := map[string]any{}
		for _, kv := range x.KvlistValue.GetValues() {
			out[kv.GetKey()] = r.anyValue(join(path, kv.GetKey()), kv.GetValue(), depth+1)
		}
		return out
	}
	r.errorf(path, "a value of bytes is not supported")
	return nil
}
