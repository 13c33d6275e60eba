package accesslog

import (
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// request returns the entry of a request of gRPC that was denied.
func request() *Entry {
	r := &message.Request{Version: message.HTTP2, Method: "POST", Path: "/pkg.Service/Call", Authority: "db", Scheme: "https"}
	r.Header.Add("content-type", "application/grpc")
	r.Header.Add("x-request-id", "000003e7-0000-4000-8000-000000000000")
	r.Header.Add("x-tag", "one")
	r.Header.Add("x-tag", "two")
	resp := &message.Response{Status: 200}
	resp.Header.Add("grpc-status", "7")
	return &Entry{HTTP: &HTTP{Request: r, Response: resp, Status: 200, Traced: true, Metadata: model.Metadata{"ns": {"k": "v"}},
		Received: -1, UpstreamStart: -1, UpstreamSent: -1, UpstreamHead: -1, UpstreamEnd: -1, Head: -1}}
}

func TestFiltersOfRequests(t *testing.T) {
	exact := func(s string) model.StringMatch {
		m, err := model.NewStringMatch(model.MatchExact, s, false)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	header := func(name, value string, invert bool) *model.LogFilter {
		return &model.LogFilter{Header: &model.HeaderMatch{Name: name, Kind: model.HeaderString, Match: exact(value), Invert: invert}}
	}
	status := func(op model.CompareOp, n uint64) *model.LogFilter {
		return &model.LogFilter{Status: &model.Comparison{Op: op, Value: n}}
	}
	grpc := func(exclude bool, list ...uint32) *model.LogFilter {
		return &model.LogFilter{GRPC: &model.GRPCStatuses{Statuses: list, Exclude: exclude}}
	}
	v := exact("v")
	metadata := func(key string, missing bool) *model.LogFilter {
		return &model.LogFilter{Metadata: &model.MetadataLogFilter{IfMissing: missing,
			Match: model.MetadataMatcher{Namespace: "ns", Path: []string{key}, Value: model.ValueMatch{String: &v}}}}
	}
	share := func(n uint32) *model.LogFilter {
		return &model.LogFilter{Fraction: &model.LogFraction{Fraction: model.Fraction{Numerator: n, Denominator: 1000}}}
	}
	types := func(exclude bool, list ...string) *model.LogFilter {
		return &model.LogFilter{Types: &model.LogTypes{Types: list, Exclude: exclude}}
	}
	check := request()
	check.HTTP.HealthCheck, check.HTTP.Traced = true, false
	plain := request()
	plain.HTTP.Response.Header.Reset()
	plain.HTTP.Status = 503
	connection := &Entry{}
	tests := []struct {
		name   string
		filter *model.LogFilter
		e      *Entry
		want   bool
	}{
		{"status", status(model.CompareAtLeast, 200), request(), true},
		{"another status", status(model.CompareAtLeast, 400), request(), false},
		{"the status of a connection is 0", status(model.CompareEqual, 0), connection, true},
		{"first value of a header", header("x-tag", "one", false), request(), true},
		{"second value of a header", header("x-tag", "two", false), request(), true},
		{"no value of a header", header("x-tag", "three", false), request(), false},
		{"inverted, one value fits", header("x-tag", "two", true), request(), false},
		{"inverted, no value fits", header("x-tag", "three", true), request(), true},
		{"inverted, but missing", header("x-none", "three", true), request(), false},
		{"method", header(":method", "POST", false), request(), true},
		{"header of a connection", header(":method", "POST", false), connection, false},
		{"gRPC status in the head", grpc(false, 7), request(), true},
		{"another gRPC status", grpc(false, 0, 2), request(), false},
		{"all but a gRPC status", grpc(true, 7), request(), false},
		{"gRPC status of a status of HTTP", grpc(false, 14), plain, true},
		{"gRPC status of a connection is unknown", grpc(false, 2), connection, true},
		{"no health check", &model.LogFilter{NotHealthCheck: true}, request(), true},
		{"a health check", &model.LogFilter{NotHealthCheck: true}, check, false},
		{"traced", &model.LogFilter{Traceable: true}, request(), true},
		{"not traced", &model.LogFilter{Traceable: true}, check, false},
		{"metadata", metadata("k", false), request(), true},
		{"metadata that is missing", metadata("x", false), request(), false},
		{"metadata that may be missing", metadata("x", true), request(), true},
		{"metadata of a connection that may be missing", metadata("k", true), connection, true},
		{"the id of the request is below the share", share(1000), request(), true},
		{"the id of the request is at the share", share(999), request(), false},
		{"type", types(false, "DownstreamEnd"), request(), true},
		{"type of a connection", types(false, "DownstreamEnd"), connection, false},
		{"all but a type", types(true, "TcpConnectionEnd"), connection, false},
		{"and", &model.LogFilter{And: []*model.LogFilter{status(model.CompareEqual, 200), grpc(false, 7)}}, request(), true},
		{"or", &model.LogFilter{Or: []*model.LogFilter{status(model.CompareEqual, 1), grpc(false, 1)}}, request(), false},
	}
	for _, tt := range tests {
		passes, err := CompileFilter(tt.filter)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got := passes(tt.e); got != tt.want {
			t.Errorf("%s: passes %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestBadFiltersAreRefused(t *testing.T) {
	deep := &model.LogFilter{Traceable: true}
	for range 2 * maxDepth {
		deep = &model.LogFilter{And: []*model.LogFilter{deep}}
	}
	for want, f := range map[string]*model.LogFilter{
		"unknown response flag": {Flags: &[]string{"XX"}}, "too deep": deep, "without a condition": {},
	} {
		if _, err := CompileFilter(f); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want it to say %q", err, want)
		}
	}
}

func TestStatusesOfGRPC(t *testing.T) {
	e := request()
	for format, want := range map[string]string{
		"%GRPC_STATUS%": "PermissionDenied", "%GRPC_STATUS(CAMEL_STRING)%": "PermissionDenied",
		"%GRPC_STATUS(SNAKE_STRING)%": "PERMISSION_DENIED", "%GRPC_STATUS(NUMBER)%": "7", "%GRPC_STATUS_NUMBER%": "7",
	} {
		f, err := ParseFormat(format)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(f.Append(nil, e)); got != want {
			t.Errorf("%s gives %q, want %q", format, got, want)
		}
	}
	f, err := ParseFormat("%GRPC_STATUS(SNAKE_STRING)%")
	if err != nil {
		t.Fatal(err)
	}
	trailer := new(message.Header)
	trailer.Add("grpc-status", "1")
	e.HTTP.ResponseTrailer = trailer
	if got := string(f.Append(nil, e)); got != "CANCELLED" {
		t.Errorf("the trailer gives %q, want CANCELLED", got)
	}
	trailer.Set("grpc-status", "99")
	if got := string(f.Append(nil, e)); got != "99" {
		t.Errorf("a status of nobody gives %q, want 99", got)
	}
	e.HTTP.Request.Header.Set("content-type", "text/plain")
	if got := string(f.Append(nil, e)); got != "-" {
		t.Errorf("a request that is none of gRPC gives %q, want -", got)
	}
}

// full is an entry with what most lines show.
func full() *Entry {
	e := request()
	e.Start, e.Duration, e.BytesReceived, e.BytesSent = entry.Start, entry.Duration, 10, 20
	e.UpstreamHost, e.UpstreamCluster, e.UpstreamLocal, e.RouteName = "10.0.0.1:80", "db", "10.0.0.2:4711", "api"
	e.DownstreamLocal, e.DownstreamRemote, e.ServerName = "10.0.0.3:20000", "10.0.0.4:5000", "db.default"
	e.HTTP.Details = "via_upstream"
	e.HTTP.Response.Header.Add("x-envoy-upstream-service-time", "12")
	return e
}

func BenchmarkLine(b *testing.B) {
	fields := map[string]any{}
	for k, op := range map[string]string{
		"start_time": "START_TIME", "route_name": "ROUTE_NAME", "method": "REQ(:METHOD)", "path": "REQ(X-ENVOY-ORIGINAL-PATH?:PATH)",
		"protocol": "PROTOCOL", "response_code": "RESPONSE_CODE", "response_flags": "RESPONSE_FLAGS", "response_code_details": "RESPONSE_CODE_DETAILS",
		"bytes_received": "BYTES_RECEIVED", "bytes_sent": "BYTES_SENT", "duration": "DURATION", "upstream_service_time": "RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)",
		"x_forwarded_for": "REQ(X-FORWARDED-FOR)", "user_agent": "REQ(USER-AGENT)", "request_id": "REQ(X-REQUEST-ID)", "authority": "REQ(:AUTHORITY)",
		"upstream_host": "UPSTREAM_HOST", "upstream_cluster": "UPSTREAM_CLUSTER", "upstream_local_address": "UPSTREAM_LOCAL_ADDRESS",
		"downstream_local_address": "DOWNSTREAM_LOCAL_ADDRESS", "requested_server_name": "REQUESTED_SERVER_NAME", "rule": "SARN_RULE",
	} {
		fields[k] = "%" + op + "%"
	}
	for name, m := range map[string]*model.AccessLog{"text": {}, "JSON": {JSON: fields}} {
		b.Run(name, func(b *testing.B) {
			m.Filter = &model.LogFilter{Status: &model.Comparison{Op: model.CompareAtLeast, Value: 100}}
			l, err := Compile(m, &counter{})
			if err != nil {
				b.Fatal(err)
			}
			e := full()
			b.ReportAllocs()
			for b.Loop() {
				l.Write(e)
			}
		})
	}
}

type counter struct{ n int }

func (c *counter) Write(b []byte) (int, error) {
	c.n += len(b)
	return len(b), nil
}

func TestLinesAllocateNothing(t *testing.T) {
	for name, m := range map[string]*model.AccessLog{"text": {}, "JSON": {JSON: map[string]any{"path": "%REQ(:PATH)%", "ms": "%DURATION%", "up": "%UPSTREAM_HOST%", "at": "%START_TIME%"}}} {
		l, err := Compile(m, &counter{})
		if err != nil {
			t.Fatal(err)
		}
		e := full()
		l.Write(e)
		if n := testing.AllocsPerRun(100, func() { l.Write(e) }); n >= 1 && !raceEnabled {
			t.Errorf("a %s line allocates %v times", name, n)
		}
	}
}
