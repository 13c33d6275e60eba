package proxy_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	logsv1 "go.opentelemetry.io/proto/otlp/logs/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
)

// otelCollector is a server of grpc-go that takes spans and lines.
type otelCollector struct {
	mu    sync.Mutex
	spans []*tracev1.Span
	logs  []*logsv1.LogRecord
	res   []string // attributes of the resources of lines
	token []string

	alsv3.UnimplementedAccessLogServiceServer
	id      *alsv3.StreamAccessLogsMessage_Identifier
	entries []*datav3.HTTPAccessLogEntry
}

// StreamAccessLogs takes lines as many a server does: without an answer at the end.
func (c *otelCollector) StreamAccessLogs(st alsv3.AccessLogService_StreamAccessLogsServer) error {
	for {
		m, err := st.Recv()
		if err != nil {
			return nil
		}
		c.mu.Lock()
		c.id = m.GetIdentifier()
		c.entries = append(c.entries, m.GetHttpLogs().GetLogEntry()...)
		c.mu.Unlock()
	}
}

// serve answers on a port of this machine and returns it.
func (c *otelCollector) serve(t *testing.T) int {
	t.Helper()
	s := grpc.NewServer()
	alsv3.RegisterAccessLogServiceServer(s, c)
	add := func(service string, take func(context.Context, func(any) error) error) {
		s.RegisterService(&grpc.ServiceDesc{ServiceName: service, HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
			MethodName: "Export",
			Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				return new(emptypb.Empty), take(ctx, decode)
			},
		}}}, c)
	}
	add("opentelemetry.proto.collector.trace.v1.TraceService", func(_ context.Context, decode func(any) error) error {
		var m tracev1.TracesData
		if err := decode(&m); err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, r := range m.GetResourceSpans() {
			for _, sc := range r.GetScopeSpans() {
				c.spans = append(c.spans, sc.GetSpans()...)
			}
		}
		return nil
	})
	add("opentelemetry.proto.collector.logs.v1.LogsService", func(ctx context.Context, decode func(any) error) error {
		var m logsv1.LogsData
		if err := decode(&m); err != nil {
			return err
		}
		md, _ := metadata.FromIncomingContext(ctx)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.token = md.Get("x-token")
		for _, r := range m.GetResourceLogs() {
			for _, a := range r.GetResource().GetAttributes() {
				c.res = append(c.res, a.GetKey()+"="+a.GetValue().GetStringValue())
			}
			for _, sc := range r.GetScopeLogs() {
				c.logs = append(c.logs, sc.GetLogRecords()...)
			}
		}
		return nil
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return ln.Addr().(*net.TCPAddr).Port
}

func (c *otelCollector) seen() ([]*tracev1.Span, []*logsv1.LogRecord) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans), slices.Clone(c.logs)
}

const observed = `
node: {id: edge-1, cluster: edge}
static_resources:
  listeners:
  - name: in
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          tracing:
            spawn_upstream_span: true
            custom_tags: [{tag: color, literal: {value: green}}, {tag: of-route, metadata: {kind: {route: {}}, metadata_key: {key: ns, path: [{key: k}]}}}]
            provider:
              name: envoy.tracers.opentelemetry
              typed_config:
                "@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
                service_name: edge
                grpc_service: {envoy_grpc: {cluster_name: collector}}
          access_log:
          - name: envoy.access_loggers.open_telemetry
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig
              log_name: requests
              grpc_service: {envoy_grpc: {cluster_name: collector}, initial_metadata: [{key: x-token, value: t}]}
              resource_attributes: {values: [{key: env, value: {string_value: test}}]}
              body: {string_value: "%%REQ(:METHOD)%% %%REQ(:PATH)%% %%RESPONSE_CODE%%"}
              attributes: {values: [
                {key: attempts, value: {string_value: "%%UPSTREAM_REQUEST_ATTEMPT_COUNT%%"}},
                {key: agent, value: {kvlist_value: {values: [{key: name, value: {string_value: "%%REQ(USER-AGENT)%%"}}, {key: known, value: {bool_value: true}}]}}}]}
          - name: envoy.access_loggers.http_grpc
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig
              common_config: {log_name: als, transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: collector}}}
              additional_request_headers_to_log: [X-Tenant]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                metadata: {filter_metadata: {ns: {k: v}}}
                route: {cluster: app, retry_policy: {retry_on: 5xx, num_retries: 2}}
  clusters:
  - name: app
    type: STATIC
    load_assignment: {cluster_name: app, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}]}]}
  - name: collector
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: {cluster_name: collector, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}]}]}
`

func TestSpansAndLinesReachACollector(t *testing.T) {
	var c otelCollector
	var calls atomic.Int32
	var parents sync.Map // of the calls that the host saw
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := calls.Add(1)
		parents.Store(n, r.Header.Get("traceparent"))
		if n == 1 {
			w.WriteHeader(503)
		}
	}))
	defer app.Close()
	d := decode.New(decode.FromSystem())
	b, err := d.Bootstrap("x.yaml", fmt.Appendf(nil, observed, app.Listener.Addr().(*net.TCPAddr).Port, c.serve(t)))
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.New(proxy.Config{Bootstrap: b, Decoder: d, ShutdownTime: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- p.Run(context.Background()) }()
	wait := func(what string, ready func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ready(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("still waiting for %s", what)
			}
		}
	}
	wait("the proxy", p.Ready)
	const trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	get := func(path string) {
		t.Helper()
		req, err := http.NewRequest("GET", "http://"+p.Listeners()[0].Addresses[0]+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("traceparent", "00-"+trace+"-"+caller+"-01")
		req.Header.Set("tracestate", "vendor=1")
		req.Header.Set("x-tenant", "blue")
		req.Header.Set("user-agent", "test\xff")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Fatalf("%s: status %d", path, resp.StatusCode)
		}
	}
	get("/retried")
	get("/second") // now there are as many spans as are sent at once
	wait("spans", func() bool { spans, _ := c.seen(); return len(spans) >= 5 })
	wait("lines", func() bool { _, logs := c.seen(); return len(logs) >= 2 })
	get("/last") // its line is delivered when the proxy ends
	p.Quit()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	spans, logs := c.seen()
	byKind := map[tracev1.Span_SpanKind][]*tracev1.Span{}
	for _, s := range spans[:3] {
		if fmt.Sprintf("%x", s.GetTraceId()) != trace || s.GetTraceState() != "vendor=1" {
			t.Errorf("a span of trace %x, state %q", s.GetTraceId(), s.GetTraceState())
		}
		byKind[s.GetKind()] = append(byKind[s.GetKind()], s)
	}
	server, attempts := byKind[tracev1.Span_SPAN_KIND_SERVER], byKind[tracev1.Span_SPAN_KIND_CLIENT]
	if len(server) != 1 || len(attempts) != 2 {
		t.Fatalf("%d spans of the server and %d of attempts, want 1 and 2", len(server), len(attempts))
	}
	if got := fmt.Sprintf("%x", server[0].GetParentSpanId()); got != caller {
		t.Errorf("the server's span is below %s, want the caller's", got)
	}
	tags := map[string]string{}
	for _, a := range server[0].GetAttributes() {
		tags[a.GetKey()] = a.GetValue().GetStringValue()
	}
	for key, want := range map[string]string{"http.status_code": "200", "http.method": "GET", "color": "green", "of-route": "v", "node_id": "edge-1", "upstream_cluster": "app"} {
		if tags[key] != want {
			t.Errorf("tag %s is %q, want %q", key, tags[key], want)
		}
	}
	failed := 0
	for i, s := range attempts {
		if string(s.GetParentSpanId()) != string(server[0].GetSpanId()) {
			t.Errorf("attempt %d is not below the server's span", i+1)
		}
		if s.GetStatus().GetCode() == tracev1.Status_STATUS_CODE_ERROR {
			failed++
		}
		seen := false
		parents.Range(func(_, v any) bool {
			seen = seen || v == fmt.Sprintf("00-%s-%x-01", trace, s.GetSpanId())
			return true
		})
		if !seen {
			t.Errorf("the host never saw attempt %x", s.GetSpanId())
		}
	}
	if failed != 1 {
		t.Errorf("%d attempts failed, want 1", failed)
	}

	if len(logs) != 3 {
		t.Fatalf("%d lines, want 3", len(logs))
	}
	first := logs[0]
	if got := first.GetBody().GetStringValue(); got != "GET /retried 200" {
		t.Errorf("line %q", got)
	}
	if got := logs[2].GetBody().GetStringValue(); got != "GET /last 200" {
		t.Errorf("last line %q", got)
	}
	if fmt.Sprintf("%x", first.GetTraceId()) != trace || time.Since(time.Unix(0, int64(first.GetTimeUnixNano()))) > time.Minute {
		t.Errorf("line of trace %x at %d", first.GetTraceId(), first.GetTimeUnixNano())
	}
	attrs := first.GetAttributes()
	if len(attrs) != 2 || attrs[0].GetValue().GetStringValue() != "2" || attrs[1].GetKey() != "agent" {
		t.Fatalf("attributes %v", attrs)
	}
	agent := attrs[1].GetValue().GetKvlistValue().GetValues()
	if len(agent) != 2 || !agent[0].GetValue().GetBoolValue() || agent[1].GetValue().GetStringValue() != "test\uFFFD" {
		t.Errorf("agent %v", agent)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	want := "log_name=requests zone_name= cluster_name=edge node_name=edge-1 env=test"
	if got := strings.Join(c.res[:min(5, len(c.res))], " "); got != want {
		t.Errorf("resource %q, want %q", got, want)
	}
	if c.id.GetLogName() != "als" || c.id.GetNode().GetId() != "edge-1" || len(c.entries) != 3 {
		t.Fatalf("the access log service got %d entries of %v, want 3", len(c.entries), c.id)
	}
	e := c.entries[0]
	if e.GetRequest().GetPath() != "/retried" || e.GetRequest().GetRequestHeaders()["x-tenant"] != "blue" || e.GetRequest().GetRequestMethod().String() != "GET" ||
		e.GetResponse().GetResponseCode().GetValue() != 200 || e.GetCommonProperties().GetUpstreamRequestAttemptCount() != 2 ||
		e.GetCommonProperties().GetUpstreamCluster() != "app" || e.GetProtocolVersion() != datav3.HTTPAccessLogEntry_HTTP11 ||
		e.GetCommonProperties().GetAccessLogType() != datav3.AccessLogType_DownstreamEnd {
		t.Errorf("entry %v", e)
	}
	if !slices.Equal(c.token, []string{"t"}) {
		t.Errorf("metadata %q", c.token)
	}
}
