package span

import (
	"maps"
	"slices"
	"strings"

	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	resourcev1 "go.opentelemetry.io/proto/otlp/resource/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
)

// Encode returns spans as OTLP has them, with the attributes of what has made them. TracesData has the same bytes as an
// ExportTraceServiceRequest, whose package brings much that is not needed.
func Encode(resource map[string]string, scope string, spans []*Data) *tracev1.TracesData {
	r := &resourcev1.Resource{}
	for _, k := range slices.Sorted(maps.Keys(resource)) {
		r.Attributes = append(r.Attributes, text(k, resource[k]))
	}
	out := make([]*tracev1.Span, len(spans))
	for i, s := range spans {
		out[i] = encode(s)
	}
	return &tracev1.TracesData{ResourceSpans: []*tracev1.ResourceSpans{{
		Resource: r, ScopeSpans: []*tracev1.ScopeSpans{{Scope: &commonv1.InstrumentationScope{Name: scope}, Spans: out}},
	}}}
}

var kinds = [...]tracev1.Span_SpanKind{
	Internal: tracev1.Span_SPAN_KIND_INTERNAL, Server: tracev1.Span_SPAN_KIND_SERVER, Client: tracev1.Span_SPAN_KIND_CLIENT,
}

func encode(s *Data) *tracev1.Span {
	p := &tracev1.Span{
		TraceId: s.Trace[:], SpanId: s.Span[:], TraceState: valid(s.State), Name: valid(s.Name), Kind: kinds[s.Kind],
		StartTimeUnixNano: uint64(s.Start.UnixNano()), EndTimeUnixNano: uint64(s.End.UnixNano()),
	}
	if s.Parent != (ID{}) {
		p.ParentSpanId = s.Parent[:]
	}
	if s.Failed {
		p.Status = &tracev1.Status{Code: tracev1.Status_STATUS_CODE_ERROR}
	}
	for _, a := range s.Attributes {
		if a.Text != "" {
			p.Attributes = append(p.Attributes, text(a.Key, a.Text))
			continue
		}
		p.Attributes = append(p.Attributes, &commonv1.KeyValue{Key: a.Key, Value: &commonv1.AnyValue{Value: &commonv1.AnyValue_IntValue{IntValue: a.Number}}})
	}
	return p
}

// valid is the text as collectors take it: one that is no UTF-8 would make them refuse the whole batch.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func text(key, value string) *commonv1.KeyValue {
	return &commonv1.KeyValue{Key: valid(key), Value: &commonv1.AnyValue{Value: &commonv1.AnyValue_StringValue{StringValue: valid(value)}}}
}
