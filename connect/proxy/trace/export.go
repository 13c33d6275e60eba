package trace

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"

	"google.golang.org/protobuf/proto"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/internal/span"
)

// maxAnswer bounds what a collector may say.
const maxAnswer = 64 << 10

// otlp speaks the OpenTelemetry protocol, over gRPC or HTTP.
type otlp struct {
	conf     *model.OpenTelemetry
	env      *filter.Env
	resource map[string]string
}

func newOTLP(conf *model.OpenTelemetry, env *filter.Env) *otlp {
	r := map[string]string{"service.name": cmp.Or(conf.Service, env.NodeCluster, "unknown_service:sarn")}
	maps.Copy(r, conf.Resource)
	return &otlp{conf, env, r}
}

func (o *otlp) send(ctx context.Context, spans []*span.Data) error {
	body, err := proto.Marshal(span.Encode(o.resource, "sarn", spans))
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

func (z *zipkin) send(ctx context.Context, spans []*span.Data) error {
	out := make([]zipkinSpan, len(spans))
	for i, s := range spans {
		trace := s.Trace[:]
		if [8]byte(trace[:8]) == [8]byte{} {
			trace = trace[8:]
		}
		o := zipkinSpan{
			TraceID: hex.EncodeToString(trace), ID: hex.EncodeToString(s.Span[:]), Name: s.Name, Kind: "SERVER",
			Timestamp: s.Start.UnixMicro(), Duration: max(s.End.Sub(s.Start).Microseconds(), 1),
			Local: zipkinEndpoint{cmp.Or(z.env.NodeCluster, "sarn")}, Tags: map[string]string{},
		}
		if s.Kind == span.Client {
			o.Kind = "CLIENT"
		}
		if s.Parent != (span.ID{}) {
			o.ParentID = hex.EncodeToString(s.Parent[:])
		}
		for _, a := range s.Attributes {
			o.Tags[a.Key] = a.Text
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
