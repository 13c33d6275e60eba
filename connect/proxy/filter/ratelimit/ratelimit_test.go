package ratelimit_test

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/filter/ratelimit"
	"github.com/sarnmesh/sarn/connect/proxy/filter/unary"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

func bench(t *testing.T, answer *ratelimitv3.RateLimitResponse, change func(*ratelimit.Config)) (*filtertest.Bench, *[]*ratelimitv3.RateLimitRequest) {
	c := &ratelimit.Config{
		Service: unary.Service{Cluster: "rl", Timeout: ratelimit.DefaultTimeout}, Domain: "d",
		RateLimits: []model.RateLimit{{Actions: []model.RateLimitAction{{Header: "x-user", HeaderKey: "user"}, {Generic: "api"}}}, {Actions: []model.RateLimitAction{{DestinationCluster: true}}}},
	}
	if change != nil {
		change(c)
	}
	b := filtertest.New(t, ratelimit.Type, c)
	b.Route(nil)
	asked := &[]*ratelimitv3.RateLimitRequest{}
	b.Client = func(_ context.Context, _ string, r *message.Request, body []byte) (*filter.Answer, error) {
		if answer == nil {
			return nil, errors.New("refused")
		}
		var q ratelimitv3.RateLimitRequest
		if err := proto.Unmarshal(body[5:], &q); err != nil || r.Path != "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit" {
			return nil, errors.New("not a call of the service")
		}
		*asked = append(*asked, &q)
		p, err := proto.Marshal(answer)
		return &filter.Answer{Status: 200, Body: append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(p))), p...), Trailer: *filtertest.Trailers("grpc-status", "0")}, err
	}
	return b, asked
}

func TestPass(t *testing.T) {
	b, asked := bench(t, &ratelimitv3.RateLimitResponse{
		OverallCode:         ratelimitv3.RateLimitResponse_OK,
		RequestHeadersToAdd: []*corev3.HeaderValue{{Key: "X-Q", Value: "1"}, {Key: "host", Value: "evil"}}, ResponseHeadersToAdd: []*corev3.HeaderValue{{Key: "x-a", Value: "2"}, {Key: "x-b", Value: "a\nb"}},
	}, nil)
	x := b.Exchange("GET", "/", "x-user", "bob")
	res := b.Run(x, nil)
	if res.Reply != nil || filtertest.Fields(&x.Request.Header) != "x-user: bob\nx-q: 1\n" || filtertest.Fields(&res.Header) != "x-a: 2\n" {
		t.Errorf("%+v\n%s", res, filtertest.Fields(&x.Request.Header))
	}
	d := (*asked)[0].GetDescriptors()
	if len(d) != 2 || d[0].GetEntries()[0].GetValue() != "bob" || d[0].GetEntries()[1].GetKey() != "generic_key" || d[1].GetEntries()[0].GetValue() != "up" || (*asked)[0].GetDomain() != "d" {
		t.Errorf("asked %v", *asked)
	}
	if got := b.Counters(); got != "cluster.up.ratelimit.ok 1\n" {
		t.Error(got)
	}
}

func TestOverLimit(t *testing.T) {
	answer := &ratelimitv3.RateLimitResponse{
		OverallCode: ratelimitv3.RateLimitResponse_OVER_LIMIT, RawBody: []byte("slow down"),
		Statuses: []*ratelimitv3.RateLimitResponse_DescriptorStatus{
			{CurrentLimit: &ratelimitv3.RateLimitResponse_RateLimit{RequestsPerUnit: 9, Unit: ratelimitv3.RateLimitResponse_RateLimit_HOUR}, LimitRemaining: 5},
			{CurrentLimit: &ratelimitv3.RateLimitResponse_RateLimit{RequestsPerUnit: 2, Unit: ratelimitv3.RateLimitResponse_RateLimit_SECOND, Name: "n"}, DurationUntilReset: durationpb.New(1500 * time.Millisecond)},
		},
	}
	b, _ := bench(t, answer, func(c *ratelimit.Config) {
		c.Headers, c.Exhausted, c.Edits = true, true, []model.HeaderEdit{{Name: "x-e", Value: "1"}}
	})
	res := b.Run(b.Exchange("GET", "/", "x-user", "bob"), nil)
	if res.Status != 429 || res.Body != "slow down" || res.Reply.Flags != accesslog.RateLimited || res.Reply.GRPCStatus != 8 || res.Reply.Details != "request_rate_limited" {
		t.Errorf("%+v", res)
	}
	for k, want := range map[string]string{"x-envoy-ratelimited": "true", "x-ratelimit-limit": `2, 9;w=3600, 2;w=1;name="n"`, "x-ratelimit-remaining": "0", "x-ratelimit-reset": "1", "x-e": "1"} {
		if got := res.Header.Get(k); got != want {
			t.Errorf("%s: %q, want %q", k, got, want)
		}
	}
	b, _ = bench(t, answer, func(c *ratelimit.Config) { c.Enforced = &model.Fraction{Denominator: 100} })
	if res := b.Run(b.Exchange("GET", "/", "x-user", "bob"), nil); res.Reply != nil || b.Counters() != "cluster.up.ratelimit.over_limit 1\n" {
		t.Errorf("%+v %s", res.Reply, b.Counters())
	}
}

func TestServiceFails(t *testing.T) {
	for deny, want := range map[bool]int{false: 200, true: 500} {
		b, _ := bench(t, nil, func(c *ratelimit.Config) { c.DenyOnError = deny })
		if res := b.Run(b.Exchange("GET", "/"), nil); res.Status != want || deny && res.Reply.Flags != accesslog.RateLimitServiceError {
			t.Errorf("deny %v: %+v", deny, res)
		}
		// What it does not understand is no acceptance either.
		b, _ = bench(t, &ratelimitv3.RateLimitResponse{}, func(c *ratelimit.Config) { c.DenyOnError = deny })
		if res := b.Run(b.Exchange("GET", "/"), nil); res.Status != want {
			t.Errorf("deny %v: %+v", deny, res)
		}
	}
}

func TestNothingToAsk(t *testing.T) {
	b, asked := bench(t, nil, func(c *ratelimit.Config) { c.RateLimits, c.DenyOnError = nil, true })
	if res := b.Run(b.Exchange("GET", "/"), nil); res.Reply != nil || len(*asked) != 0 {
		t.Errorf("%+v", res)
	}
	b, _ = bench(t, nil, func(c *ratelimit.Config) { c.Requests, c.DenyOnError = ratelimit.Internal, true })
	if res := b.Run(b.Exchange("GET", "/"), nil); res.Reply != nil {
		t.Errorf("an external request: %+v", res)
	}
	b.Route(&ratelimit.RouteConfig{Domain: "other"})
	x := b.Exchange("GET", "/")
	x.Internal = true
	if res := b.Run(x, nil); res.Status != 500 {
		t.Errorf("an internal request: %+v", res)
	}
}
