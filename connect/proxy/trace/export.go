package trace

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	resourcev1 "go.opentelemetry.io/proto/otlp/resource/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// maxAnswer bounds what a collector may say.
const maxAnswer = 64 << 10

// otlp speaks the OpenTelemetry protocol, over gRPC or HTTP.
type otlp struct {
	conf     *model.OpenTelemetry
	env      *filter.Env
	resource *resourcev1.Resource
}

// valid is the text as collectors take it: one that is no UTF-8 would make them refuse the whole batch.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func text(key, value string) *commonv1.KeyValue {
	value = valid(value)
	return &commonv1.KeyValue{Key: key, Value: &commonv1.AnyValue{Value: &commonv1.AnyValue_StringValue{StringValue: value}}}
}

func newOTLP(conf *model.OpenTelemetry, env *filter.Env) *otlp {
	r := &resourcev1.Resource{Attributes: []*commonv1.KeyValue{text("service.name", cmp.Or(conf.Service, env.NodeCluster, "unknown_service:sarn"))}}
	for k, v := range conf.Resource {
		r.Attributes = append(r.Attributes, text(k, v))
	}
	return &otlp{conf, env, r}
}

func (o *otlp) send(ctx context.Context, spans []*Span) error {
	out := make([]*tracev1.Span, len(spans))
	for i, s := range spans {
		p := &tracev1.Span{
			TraceId: s.trace[:], SpanId: s.id[:], TraceState: valid(s.state), Name: valid(s.name),
			StartTimeUnixNano: uint64(s.start.UnixNano()), EndTimeUnixNano: uint64(s.end.UnixNano()),
			Kind: tracev1.Span_SPAN_KIND_SERVER,
		}
		if s.kind == Client {
			p.Kind = tracev1.Span_SPAN_KIND_CLIENT
		}
		if s.parent != [8]byte{} {
			p.ParentSpanId = s.parent[:]
		}
		if s.failed {
			p.Status = &tracev1.Status{Code: tracev1.Status_STATUS_CODE_ERROR}
		}
		for _, t := range s.tags {
			p.Attributes = append(p.Attributes, text(t.key, t.value))
		}
		out[i] = p
	}
	// The same bytes as an ExportTraceServiceRequest, whose package brings much that is not needed.
	body, err := proto.Marshal(&tracev1.TracesData{ResourceSpans: []*tracev1.ResourceSpans{{
		Resource: o.resource, ScopeSpans: []*tracev1.ScopeSpans{{Scope: &commonv1.InstrumentationScope{Name: "sarn"}, Spans: out}},
	}}})
	if err != nil {
		return err
	}
	r := &message.Request{Version: message.HTTP2, Method: "POST", Scheme: "http", Authority: cmp.Or(o.conf.Authority, o.conf.Cluster)}
	if o.conf.HTTPPath != "" {
		r.Path = o.conf.HTTPPath
		r.Header.Add("content-type", "application/x-protobuf")
		r.Header.Add("content-length", strconv.Itoa(len(body)))
	} else {
		r.Path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
		r.Header.Add("content-type", "application/grpc")
		r.Header.Add("te", "trailers")
		body = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
	}
	for _, h := range o.conf.Headers {
		r.Header.Add(h.Name, h.Value)
	}
	a, err := o.env.Client.Do(ctx, o.conf.Cluster, r, body, maxAnswer)
	if err != nil {
		return err
	}
	if a.Status != 200 {
		return fmt.Errorf("status %d", a.Status)
	}
	if o.conf.HTTPPath == "" {
		if s := cmp.Or(a.Trailer.Get("grpc-status"), a.Header.Get("grpc-status")); s != "0" {
			return fmt.Errorf("grpc-status %q: %s", s, cmp.Or(a.Trailer.Get("grpc-message"), a.Header.Get("grpc-message")))
		}
	}
	return nil
}

// zipkin speaks version 2 of Zipkin's API, in JSON.
type zipkin struct {
	conf *model.Zipkin
	env  *filter.Env
}

type zipkinSpan struct {
	TraceID   string            `json:"traceId"`
	ID        string            `json:"id"`
	ParentID  string            `json:"parentId,omitempty"`
	Name      string            `json:"name"`
	Kind      string            `json:"kind"`
	Timestamp int64             `json:"timestamp"`
	Duration  int64             `json:"duration"`
	Shared    bool              `json:"shared,omitempty"`
	Local     zipkinEndpoint    `json:"localEndpoint"`
	Tags      map[string]string `json:"tags"`
}

type zipkinEndpoint struct {
	Service string `json:"serviceName"`
}

func (z *zipkin) send(ctx context.Context, spans []*Span) error {
	out := make([]zipkinSpan, len(spans))
	for i, s := range spans {
		trace := s.trace[:]
		if [8]byte(trace[:8]) == [8]byte{} {
			trace = trace[8:]
		}
		o := zipkinSpan{
			TraceID: hex.EncodeToString(trace), ID: hex.EncodeToString(s.id[:]), Name: s.name, Kind: "SERVER",
			Timestamp: s.start.UnixMicro(), Duration: max(s.end.Sub(s.start).Microseconds(), 1),
			Local: zipkinEndpoint{cmp.Or(z.env.NodeCluster, "sarn")}, Tags: map[string]string{},
		}
		if s.kind == Client {
			o.Kind = "CLIENT"
		}
		if s.parent != [8]byte{} {
			o.ParentID = hex.EncodeToString(s.parent[:])
		}
		for _, t := range s.tags {
			o.Tags[t.key] = t.value
		}
		out[i] = o
	}
	body, err := json.Marshal(out)
	if err != nil {
		return err
	}
	r := &message.Request{Version: message.HTTP11, Method: "POST", Scheme: "http", Path: cmp.Or(z.conf.Endpoint, "/api/v2/spans"), Authority: cmp.Or(z.conf.Host, z.conf.Cluster)}
	r.Header.Add("content-type", "application/json")
	r.Header.Add("content-length", strconv.Itoa(len(body)))
	a, err := z.env.Client.Do(ctx, z.conf.Cluster, r, body, maxAnswer)
	if err != nil {
		return err
	}
	if a.Status != 200 && a.Status != 202 {
		return fmt.Errorf("status %d", a.Status)
	}
	return nil
}
