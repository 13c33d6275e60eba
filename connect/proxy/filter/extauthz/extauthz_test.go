package extauthz_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/extauthz"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/filter/unary"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/tlscontext"
)

func exact(t testing.TB, s string) model.StringMatch {
	m, err := model.NewStringMatch(model.MatchExact, s, false)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// grpcServer is an authorization service that answers the same to all.
type grpcServer struct {
	answer *authv3.CheckResponse
	asked  []*authv3.CheckRequest
	heads  []*message.Request
}

func (s *grpcServer) serve(_ context.Context, cluster string, r *message.Request, body []byte) (*filter.Answer, error) {
	if cluster != "authz" || r.Path != "/envoy.service.auth.v3.Authorization/Check" || r.Method != "POST" || int(binary.BigEndian.Uint32(body[1:])) != len(body)-5 {
		return nil, errors.New("not a call of the service")
	}
	var q authv3.CheckRequest
	if err := proto.Unmarshal(body[5:], &q); err != nil {
		return nil, err
	}
	s.asked, s.heads = append(s.asked, &q), append(s.heads, r)
	b, err := proto.Marshal(s.answer)
	a := &filter.Answer{Status: 200, Body: append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)}
	a.Trailer.Add("grpc-status", "0")
	return a, err
}

func overGRPC(t testing.TB, answer *authv3.CheckResponse, change func(*extauthz.Config)) (*filtertest.Bench, *grpcServer) {
	c := &extauthz.Config{GRPC: &unary.Service{Cluster: "authz", Timeout: extauthz.DefaultTimeout, Metadata: []message.Field{{Name: "x-token", Value: "t"}}}}
	if change != nil {
		change(c)
	}
	b, s := filtertest.New(t, extauthz.Type, c), &grpcServer{answer: answer}
	b.Client = s.serve
	return b, s
}

func header(k, v string) *corev3.HeaderValue { return &corev3.HeaderValue{Key: k, Value: v} }

func TestServiceIsToldWhatIsAsked(t *testing.T) {
	b, s := overGRPC(t, &authv3.CheckResponse{}, func(c *extauthz.Config) {
		c.Metadata, c.TLSSession = []string{"envoy.filters.http.jwt_authn", "none"}, true
		c.Body = &extauthz.Body{Max: 8, Partial: true}
		c.Disallowed = []model.StringMatch{exact(t, "cookie")}
	})
	b.Conn.Peer = &tlscontext.Peer{URIs: []string{"spiffe://td/web"}}
	b.Conn.LocalURIs = []string{"spiffe://td/db"}
	x := b.Exchange("POST", "/a?b=c", "x-a", "1", "x-a", "2\xff", "cookie", "secret", "x-envoy-auth-partial-body", "forged")
	x.Body = filtertest.Body("012345", "6789", "ab")
	x.SetMetadata("envoy.filters.http.jwt_authn", "sub", "bob")
	res := b.Run(x, nil)
	if res.Reply != nil || res.Sent != "0123456789ab" {
		t.Fatalf("reply %+v, the host got %q", res.Reply, res.Sent)
	}
	a := s.asked[0].GetAttributes()
	h := a.GetRequest().GetHttp()
	for what, pair := range map[string][2]string{
		"method": {h.GetMethod(), "POST"}, "path": {h.GetPath(), "/a?b=c"}, "host": {h.GetHost(), "web.test"}, "protocol": {h.GetProtocol(), "HTTP/1.1"},
		"joined": {h.GetHeaders()["x-a"], "1,2!"}, "cookie": {h.GetHeaders()["cookie"], ""}, "pseudo": {h.GetHeaders()[":path"], "/a?b=c"},
		"body": {h.GetBody(), "01234567"}, "partial": {h.GetHeaders()["x-envoy-auth-partial-body"], "true"},
		"source": {a.GetSource().GetPrincipal(), "spiffe://td/web"}, "destination": {a.GetDestination().GetPrincipal(), "spiffe://td/db"},
		"address":  {a.GetSource().GetAddress().GetSocketAddress().GetAddress(), "192.0.2.1"},
		"metadata": {a.GetMetadataContext().GetFilterMetadata()["envoy.filters.http.jwt_authn"].GetFields()["sub"].GetStringValue(), "bob"},
		"timeout":  {s.heads[0].Header.Get("grpc-timeout"), "200m"}, "initial metadata": {s.heads[0].Header.Get("x-token"), "t"},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %q, want %q", what, pair[0], pair[1])
		}
	}
}

func TestAcceptance(t *testing.T) {
	rerouted := false
	b, _ := overGRPC(t, &authv3.CheckResponse{
		DynamicMetadata: &structpb.Struct{Fields: map[string]*structpb.Value{"user": structpb.NewStringValue("bob")}},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*corev3.HeaderValueOption{
				{Header: header("X-Set", "new")}, {Header: header("x-old", "2"), Append: wrapperspb.Bool(true)}, {Header: header("x-none", "2"), Append: wrapperspb.Bool(true)},
			},
			HeadersToRemove:         []string{"X-Gone", ":path", "host"},
			ResponseHeadersToAdd:    []*corev3.HeaderValueOption{{Header: header("x-resp", "1")}},
			QueryParametersToSet:    []*corev3.QueryParameter{{Key: "q", Value: "a b"}},
			QueryParametersToRemove: []string{"secret"},
		}},
	}, func(c *extauthz.Config) { c.Reroute = true })
	x := b.Exchange("GET", "/a?secret=1&q=0&z=1", "x-set", "a", "x-set", "b", "x-old", "1", "x-gone", "1")
	x.Reroute = func() { rerouted = true }
	res := b.Run(x, nil)
	if got, want := x.Request.Path+"\n"+filtertest.Fields(&x.Request.Header), "/a?z=1&q=a+b\nx-set: new\nx-old: 1,2\n"; got != want || res.Reply != nil {
		t.Errorf("the host got %q, want %q; reply %+v", got, want, res.Reply)
	}
	if res.Header.Get("x-resp") != "1" || !rerouted || x.Entry.HTTP.Metadata["envoy.filters.http.ext_authz"]["user"] != "bob" {
		t.Errorf("response %s, rerouted %v, metadata %v", filtertest.Fields(&res.Header), rerouted, x.Entry.HTTP.Metadata)
	}
	if got := b.Counters(); got != "http.test.ext_authz.ok 1\n" {
		t.Error(got)
	}
}

func TestDenial(t *testing.T) {
	b, s := overGRPC(t, &authv3.CheckResponse{Status: &status.Status{Code: 7}}, nil)
	res := b.Run(b.Exchange("GET", "/"), nil)
	if res.Upstream || res.Status != 403 || res.Body != "" || res.Reply.Flags != accesslog.UnauthorizedExternalService || res.Reply.Details != "ext_authz_denied" {
		t.Errorf("%+v", res)
	}
	s.answer.HttpResponse = &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
		Status: &typev3.HttpStatus{Code: 401}, Body: "who?", Headers: []*corev3.HeaderValueOption{{Header: header("WWW-Authenticate", "x")}, {Header: header("content-length", "99")}},
	}}
	res = b.Run(b.Exchange("GET", "/"), nil)
	if res.Status != 401 || res.Body != "who?" || res.Header.Get("www-authenticate") != "x" || res.Header.Get("content-length") != "4" {
		t.Errorf("%d %q %s", res.Status, res.Body, filtertest.Fields(&res.Header))
	}
	s.answer.HttpResponse = &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{Headers: []*corev3.HeaderValueOption{{Header: header("x-a", "1\r\nx-b: 2")}}}}
	if res = b.Run(b.Exchange("GET", "/"), nil); res.Status != 500 {
		t.Errorf("%d with a header that is none", res.Status)
	}
}

func TestServiceFails(t *testing.T) {
	answer := func(body string, fields ...string) func() (*filter.Answer, error) {
		return func() (*filter.Answer, error) {
			return &filter.Answer{Status: 200, Body: []byte(body), Trailer: *filtertest.Trailers(fields...)}, nil
		}
	}
	for name, f := range map[string]func() (*filter.Answer, error){
		"unreachable":      func() (*filter.Answer, error) { return nil, errors.New("refused") },
		"status":           answer("", "grpc-status", "14"),
		"no status":        answer("\x00\x00\x00\x00\x00"),
		"no message":       answer("", "grpc-status", "0"),
		"half a message":   answer("\x00\x00\x00\x00\x09a", "grpc-status", "0"),
		"two messages":     answer("\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "grpc-status", "0"),
		"compressed":       answer("\x01\x00\x00\x00\x00", "grpc-status", "0"),
		"another protocol": answer("\x00\x00\x00\x00\x02\xff\xff", "grpc-status", "0"),
		"HTTP status":      func() (*filter.Answer, error) { return &filter.Answer{Status: 503}, nil },
	} {
		t.Run(name, func(t *testing.T) {
			for _, c := range []struct {
				allow  bool
				status int
				want   int
			}{{false, 0, 403}, {false, 503, 503}, {true, 0, 200}} {
				b, _ := overGRPC(t, nil, func(conf *extauthz.Config) {
					conf.AllowOnError, conf.AllowOnErrorHeader, conf.StatusOnError = c.allow, true, c.status
				})
				b.Client = func(context.Context, string, *message.Request, []byte) (*filter.Answer, error) { return f() }
				x := b.Exchange("GET", "/")
				res := b.Run(x, nil)
				if res.Status != c.want || (x.Request.Header.Get("x-envoy-auth-failure-mode-allowed") == "true") != c.allow {
					t.Errorf("%+v: %d, headers %s", c, res.Status, filtertest.Fields(&x.Request.Header))
				}
				if !c.allow && res.Reply.Details != "ext_authz_error" || b.Stats.Value("http.test.ext_authz.error") != 1 {
					t.Errorf("%+v: reply %+v, counters %s", c, res.Reply, b.Counters())
				}
			}
		})
	}
}

func TestServiceHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := overGRPC(t, nil, func(c *extauthz.Config) { c.AllowOnError = true })
		b.Client = func(ctx context.Context, _ string, _ *message.Request, _ []byte) (*filter.Answer, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		start := time.Now()
		if res := b.Run(b.Exchange("GET", "/"), nil); res.Reply != nil || time.Since(start) != 200*time.Millisecond || b.Stats.Value("http.test.ext_authz.error") != 1 {
			t.Errorf("%+v after %v", res, time.Since(start))
		}
		x := b.Exchange("GET", "/")
		x.Context() // made before another goroutine may end it
		time.AfterFunc(time.Millisecond, x.Cancel)
		if res := b.Run(x, nil); res.Upstream {
			t.Error("a request whose client has left went on")
		}
	})
}

func TestBodies(t *testing.T) {
	for _, tt := range []struct {
		name   string
		body   []string
		length int64
		conf   extauthz.Body
		status int
		told   string
	}{
		{"none", nil, 0, extauthz.Body{Max: 4}, 200, ""},
		{"all of it", []string{"ab", "cd"}, -1, extauthz.Body{Max: 4}, 200, "abcd"},
		{"too large", []string{"ab", "cde"}, -1, extauthz.Body{Max: 4}, 413, ""},
		{"announced as too large", []string{"ab"}, 5, extauthz.Body{Max: 4}, 413, ""},
		{"beginning", []string{"ab", "cde"}, 5, extauthz.Body{Max: 4, Partial: true}, 200, "abcd"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.conf.Raw = true
			b, s := overGRPC(t, &authv3.CheckResponse{}, func(c *extauthz.Config) { c.Body = &tt.conf })
			x := b.Exchange("POST", "/")
			x.Request.ContentLength = tt.length
			if tt.body != nil {
				x.Body = filtertest.Body(tt.body...)
			}
			res := b.Run(x, nil)
			if res.Status != tt.status {
				t.Fatalf("%d %q", res.Status, res.Body)
			}
			if tt.status == 200 && (string(s.asked[0].GetAttributes().GetRequest().GetHttp().GetRawBody()) != tt.told || res.Sent != strings.Join(tt.body, "")) {
				t.Errorf("told %q, the host got %q", s.asked[0].GetAttributes().GetRequest().GetHttp().GetRawBody(), res.Sent)
			}
		})
	}
	b, _ := overGRPC(t, &authv3.CheckResponse{}, func(c *extauthz.Config) { c.Body = &extauthz.Body{Max: 4} })
	x := b.Exchange("POST", "/")
	x.Body = &filtertest.Stream{Err: os.ErrDeadlineExceeded}
	if res := b.Run(x, nil); res.Status != 408 || res.Upstream {
		t.Errorf("%+v for a body that does not come", res)
	}
}

func TestRoutes(t *testing.T) {
	b, s := overGRPC(t, &authv3.CheckResponse{}, nil)
	b.Route(&extauthz.RouteConfig{Extensions: map[string]string{"k": "v"}})
	b.Run(b.Exchange("GET", "/"), nil)
	if e := s.asked[0].GetAttributes().GetContextExtensions(); e["k"] != "v" {
		t.Errorf("extensions %v", e)
	}
	b.Route(&extauthz.RouteConfig{Disabled: true})
	if res := b.Run(b.Exchange("GET", "/"), nil); res.Reply != nil || len(s.asked) != 1 {
		t.Errorf("asked %d times", len(s.asked))
	}
}

func TestShare(t *testing.T) {
	for deny, want := range map[bool]int{false: 200, true: 403} {
		b, s := overGRPC(t, &authv3.CheckResponse{}, func(c *extauthz.Config) { c.Enabled, c.DenyDisabled = &model.Fraction{Denominator: 100}, deny })
		if res := b.Run(b.Exchange("GET", "/"), nil); res.Status != want || len(s.asked) != 0 {
			t.Errorf("deny %v: %d", deny, res.Status)
		}
	}
}

func TestOverHTTP(t *testing.T) {
	var asked *message.Request
	answer := &filter.Answer{}
	conf := &extauthz.Config{
		HTTP: &extauthz.HTTPService{
			Cluster: "authz", Timeout: time.Second, PathPrefix: "/check", Add: []message.Field{{Name: "x-add", Value: "1"}},
			Upstream: []model.StringMatch{exact(t, "x-user")}, UpstreamAppend: []model.StringMatch{exact(t, "x-list")}, ClientOnSuccess: []model.StringMatch{exact(t, "x-ok")},
			Client: []model.StringMatch{exact(t, "x-why")}, Metadata: []model.StringMatch{exact(t, "x-md")},
		},
		Allowed: []model.StringMatch{exact(t, "x-in")},
	}
	b := filtertest.New(t, extauthz.Type, conf)
	b.Client = func(_ context.Context, _ string, r *message.Request, _ []byte) (*filter.Answer, error) {
		asked = r
		return answer, nil
	}
	run := func(status int, fields ...string) (*filter.Exchange, filtertest.Result) {
		*answer = filter.Answer{Status: status, Header: *filtertest.Trailers(fields...), Body: []byte("text")}
		x := b.Exchange("PUT", "/a?b", "x-in", "1", "x-out", "1", "authorization", "secret", "content-length", "3", "x-list", "a", "x-user", "forged", "x-rm", "1")
		return x, b.Run(x, nil)
	}
	x, res := run(200, "x-user", "bob", "x-list", "b", "x-ok", "1", "x-md", "m", "x-other", "1", "x-envoy-auth-headers-to-remove", "X-Rm, x-in")
	if got, want := asked.Method+asked.Authority+asked.Path+"\n"+filtertest.Fields(&asked.Header), "PUTweb.test/check/a?b\nx-in: 1\nauthorization: secret\nx-add: 1\ncontent-length: 0\nx-envoy-expected-rq-timeout-ms: 1000\n"; got != want {
		t.Errorf("asked\n%s", got)
	}
	if got, want := filtertest.Fields(&x.Request.Header), "x-out: 1\nauthorization: secret\ncontent-length: 3\nx-list: a,b\nx-user: bob\n"; got != want || res.Status != 200 {
		t.Errorf("%d, the host got\n%s", res.Status, got)
	}
	if res.Header.Get("x-ok") != "1" || x.Entry.HTTP.Metadata["envoy.filters.http.ext_authz"]["x-md"] != "m" {
		t.Errorf("response %s, metadata %v", filtertest.Fields(&res.Header), x.Entry.HTTP.Metadata)
	}
	_, res = run(302, "location", "/login", "x-why", "1", "x-other", "1", "content-length", "4")
	if got := filtertest.Fields(&res.Header); res.Status != 302 || res.Body != "text" || !strings.Contains(got, "location: /login\nx-why: 1\n") || strings.Contains(got, "x-other") || strings.Count(got, "content-length") != 1 {
		t.Errorf("%d %q\n%s", res.Status, res.Body, got)
	}
	if _, res = run(500); res.Status != 403 || res.Reply.Details != "ext_authz_error" {
		t.Errorf("%+v", res.Reply)
	}
}
