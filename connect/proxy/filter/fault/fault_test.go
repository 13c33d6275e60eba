package fault_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/fault"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var always = model.Fraction{Numerator: 100, Denominator: 100}

func TestFaults(t *testing.T) {
	unavailable := uint32(14)
	half := model.Fraction{Numerator: 50, Denominator: 100}
	byHeader := &fault.Config{Delay: &fault.Delay{ByHeader: true, Percentage: always}, Abort: &fault.Abort{ByHeader: true, Percentage: half}}
	tests := []struct {
		name   string
		conf   *fault.Config
		fields []string
		random uint64
		delay  time.Duration
		status int // 0: the host is asked
		grpc   int
	}{
		{"delay", &fault.Config{Delay: &fault.Delay{Fixed: time.Second, Percentage: always}}, nil, 0, time.Second, 0, 0},
		{"below the share", &fault.Config{Delay: &fault.Delay{Fixed: time.Second, Percentage: half}}, nil, 149, time.Second, 0, 0},
		{"above the share", &fault.Config{Delay: &fault.Delay{Fixed: time.Second, Percentage: half}}, nil, 150, 0, 0, 0},
		{"abort", &fault.Config{Abort: &fault.Abort{Status: 503, Percentage: always}}, nil, 0, 0, 503, -1},
		{"abort of gRPC", &fault.Config{Abort: &fault.Abort{GRPCStatus: &unavailable, Percentage: always}}, nil, 0, 0, 200, 14},
		{"delay and abort", &fault.Config{Delay: &fault.Delay{Fixed: 5 * time.Millisecond, Percentage: always}, Abort: &fault.Abort{Status: 500, Percentage: always}}, nil, 0, 5 * time.Millisecond, 500, -1},
		{"headers decide: none", byHeader, nil, 0, 0, 0, 0},
		{"headers decide: delay", byHeader, []string{"x-envoy-fault-delay-request", "70"}, 0, 70 * time.Millisecond, 0, 0},
		{"headers decide: delay of no number", byHeader, []string{"x-envoy-fault-delay-request", "-1"}, 0, 0, 0, 0},
		{"headers decide: abort", byHeader, []string{"x-envoy-fault-abort-request", "418"}, 0, 0, 418, -1},
		{"headers decide: no status", byHeader, []string{"x-envoy-fault-abort-request", "99"}, 0, 0, 0, 0},
		{"headers decide: gRPC", byHeader, []string{"x-envoy-fault-abort-grpc-request", "7"}, 0, 0, 200, 7},
		{"headers decide: smaller share", byHeader, []string{"x-envoy-fault-abort-request", "418", "x-envoy-fault-abort-request-percentage", "20"}, 20, 0, 0, 0},
		{"headers decide: no larger share", byHeader, []string{"x-envoy-fault-abort-request", "418", "x-envoy-fault-abort-request-percentage", "90"}, 60, 0, 0, 0},
		{"node", &fault.Config{Abort: &fault.Abort{Status: 500, Percentage: always}, DownstreamNodes: []string{"a", "b"}}, []string{"x-envoy-downstream-service-node", "b"}, 0, 0, 500, -1},
		{"other node", &fault.Config{Abort: &fault.Abort{Status: 500, Percentage: always}, DownstreamNodes: []string{"a", "b"}}, []string{"x-envoy-downstream-service-node", "c"}, 0, 0, 0, 0},
		{"other cluster", &fault.Config{Abort: &fault.Abort{Status: 500, Percentage: always}, UpstreamCluster: "db"}, nil, 0, 0, 0, 0},
		{"header missing", &fault.Config{Abort: &fault.Abort{Status: 500, Percentage: always}, Headers: []model.HeaderMatch{{Name: "x-a"}}}, nil, 0, 0, 0, 0},
		{"header", &fault.Config{Abort: &fault.Abort{Status: 500, Percentage: always}, Headers: []model.HeaderMatch{{Name: "x-a"}}}, []string{"x-a", ""}, 0, 0, 500, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := filtertest.New(t, fault.Type, tt.conf)
				b.Random = tt.random
				x := b.Exchange("GET", "/", tt.fields...)
				start := time.Now()
				res := b.Run(x, nil)
				if got := time.Since(start); got != tt.delay {
					t.Errorf("took %v, want %v", got, tt.delay)
				}
				if delayed := x.Entry.Flags&accesslog.DelayInjected != 0; delayed != (tt.delay > 0) {
					t.Errorf("flags %v", x.Entry.Flags)
				}
				if tt.status == 0 {
					if res.Reply != nil {
						t.Errorf("reply %+v", res.Reply)
					}
					return
				}
				if res.Status != tt.status || res.Body != "fault filter abort" || res.Reply.GRPCStatus != tt.grpc || res.Reply.Flags != accesslog.FaultInjected {
					t.Errorf("%d %q, reply %+v", res.Status, res.Body, res.Reply)
				}
			})
		})
	}
}

func TestClientThatLeavesIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := filtertest.New(t, fault.Type, &fault.Config{Delay: &fault.Delay{Fixed: time.Hour, Percentage: always}})
		x := b.Exchange("GET", "/")
		x.Context() // made before another goroutine may end it
		time.AfterFunc(time.Second, x.Cancel)
		start := time.Now()
		if res := b.Run(x, nil); res.Upstream || !res.Reply.Reset || time.Since(start) != time.Second {
			t.Errorf("%+v after %v", res, time.Since(start))
		}
		if n := b.Stats.Value("http.test.fault.active_faults"); n != 0 {
			t.Errorf("%v faults are still active", n)
		}
	})
}

func TestActiveFaultsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		two := uint32(2)
		b := filtertest.New(t, fault.Type, &fault.Config{Delay: &fault.Delay{Fixed: time.Second, Percentage: always}, MaxActive: &two})
		start := time.Now()
		var took [4]time.Duration
		for i := range took {
			go func() {
				b.Run(b.Exchange("GET", "/", "x-envoy-downstream-service-cluster", "web"), nil)
				took[i] = time.Since(start)
			}()
		}
		synctest.Wait()
		if n := b.Stats.Value("http.test.fault.active_faults"); n != 2 {
			t.Errorf("%v active", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		delayed := 0
		for _, d := range took {
			if d == time.Second {
				delayed++
			} else if d != 0 {
				t.Errorf("took %v", d)
			}
		}
		want := "http.test.fault.delays_injected 2\nhttp.test.fault.faults_overflow 2\nhttp.test.fault.web.delays_injected 2\n"
		if got := b.Counters(); delayed != 2 || got != want {
			t.Errorf("%d delayed, counters\n%s", delayed, got)
		}
	})
}

func TestCallersDoNotMakeCountersWithoutEnd(t *testing.T) {
	b := filtertest.New(t, fault.Type, &fault.Config{Abort: &fault.Abort{Status: 500, Percentage: always}})
	for i := range 300 {
		b.Run(b.Exchange("GET", "/", "x-envoy-downstream-service-cluster", fmt.Sprint("c", i)), nil)
	}
	b.Run(b.Exchange("GET", "/", "x-envoy-downstream-service-cluster", "a\nb"), nil)
	if n := strings.Count(b.Counters(), "\n"); n != 101 {
		t.Errorf("%d counters", n)
	}
}

func TestResponseIsSlowedDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := filtertest.New(t, fault.Type, &fault.Config{RateLimit: &fault.RateLimit{ByHeader: true, Percentage: always}})
		x := b.Exchange("GET", "/", "x-envoy-fault-throughput-response", "2")
		start := time.Now()
		body := strings.Repeat("0123456789abcdef", 128) // 2 KiB
		res := b.Run(x, func(x *filter.Exchange) {
			s := filtertest.Body(body[:100], body[100:])
			s.Tail = filtertest.Trailers("x-end", "1")
			x.ResponseBody = s
		})
		if took := time.Since(start); took < 950*time.Millisecond || took > 1050*time.Millisecond {
			t.Errorf("2 KiB at 2 KiB/s took %v", took)
		}
		if res.Body != body || res.Trailer.Get("x-end") != "1" || res.Err != nil {
			t.Errorf("%d bytes, trailer %v, error %v", len(res.Body), res.Trailer, res.Err)
		}
		x = b.Exchange("GET", "/", "x-envoy-fault-throughput-response", "1")
		x.Context() // made before another goroutine may end it
		time.AfterFunc(100*time.Millisecond, x.Cancel)
		if res := b.Run(x, func(x *filter.Exchange) { x.ResponseBody = filtertest.Body(body) }); res.Err != context.Canceled {
			t.Errorf("error %v when the client has left", res.Err)
		}
	})
}

func TestRouteHasItsOwnFaults(t *testing.T) {
	b := filtertest.New(t, fault.Type, &fault.Config{Abort: &fault.Abort{Status: 500, Percentage: always}, UpstreamCluster: "up"})
	b.Route(nil)
	if res := b.Run(b.Exchange("GET", "/"), nil); res.Status != 500 {
		t.Errorf("status %d for the cluster", res.Status)
	}
	b.Route(&fault.Config{Abort: &fault.Abort{Status: 418, Percentage: always, Body: "teapot"}})
	if res := b.Run(b.Exchange("GET", "/"), nil); res.Status != 418 || res.Body != "teapot" {
		t.Errorf("%d %q", res.Status, res.Body)
	}
}

func BenchmarkNoFault(b *testing.B) {
	f := filtertest.New(b, fault.Type, &fault.Config{Abort: &fault.Abort{Status: 500}, Delay: &fault.Delay{ByHeader: true, Percentage: always}})
	x := f.Exchange("GET", "/")
	b.ReportAllocs()
	for b.Loop() {
		if f.Filter.Request(x) != nil {
			b.Fatal("aborted")
		}
	}
}
