package localratelimit_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/descriptor"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/filter/localratelimit"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var always = model.Fraction{Numerator: 100, Denominator: 100}

func conf(max, perFill uint32, interval time.Duration) *localratelimit.Config {
	return &localratelimit.Config{
		StatPrefix: "lim", Enabled: always, Enforced: always,
		Bucket: &localratelimit.Bucket{Max: max, PerFill: perFill, FillInterval: interval},
	}
}

// pass sends requests and returns how many got through.
func pass(b *filtertest.Bench, n int, fields ...string) int {
	ok := 0
	for range n {
		if b.Run(b.Exchange("GET", "/?user=u1", fields...), nil).Reply == nil {
			ok++
		}
	}
	return ok
}

func TestBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := filtertest.New(t, localratelimit.Type, conf(3, 1, time.Second))
		if n := pass(b, 5); n != 3 {
			t.Errorf("%d of a full bucket of 3", n)
		}
		time.Sleep(999 * time.Millisecond)
		if n := pass(b, 1); n != 0 {
			t.Error("one came too early")
		}
		time.Sleep(time.Millisecond)
		if n := pass(b, 2); n != 1 {
			t.Errorf("%d after one fill", n)
		}
		time.Sleep(time.Hour)
		if n := pass(b, 9); n != 3 {
			t.Errorf("%d after an hour", n)
		}
		want := "lim.http_local_rate_limit.enabled 17\nlim.http_local_rate_limit.enforced 10\nlim.http_local_rate_limit.ok 7\nlim.http_local_rate_limit.rate_limited 10\n"
		if got := b.Counters(); got != want {
			t.Errorf("counters\n%s", got)
		}
	})
}

func TestBucketIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Fractions of nanoseconds do not add up to one more or less.
		b := filtertest.New(t, localratelimit.Type, conf(1000, 7, 50*time.Millisecond))
		if n := pass(b, 1001); n != 1000 {
			t.Errorf("%d of 1000", n)
		}
		total := 0
		for range 600 {
			time.Sleep(50 * time.Millisecond)
			total += pass(b, 8)
		}
		if total != 600*7 {
			t.Errorf("%d in 600 intervals of 7", total)
		}
	})
}

func TestConcurrentRequestsTakeEachTokenOnce(t *testing.T) {
	b := filtertest.New(t, localratelimit.Type, conf(1000, 1, time.Hour))
	var ok atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { ok.Add(int64(pass(b, 500))) })
	}
	wg.Wait()
	if ok.Load() != 1000 {
		t.Errorf("%d of 1000 tokens taken", ok.Load())
	}
}

func TestRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := conf(2, 1, 10*time.Second)
		c.Headers, c.RetryAfter, c.Exhausted = true, true, true
		c.ResponseEdits = []model.HeaderEdit{{Name: "x-local-rate-limit", Value: "true %RESPONSE_CODE%"}}
		b := filtertest.New(t, localratelimit.Type, c)
		res := b.Run(b.Exchange("GET", "/"), nil)
		if got, want := filtertest.Fields(&res.Header), "x-ratelimit-limit: 2\nx-ratelimit-remaining: 1\nx-ratelimit-reset: 0\n"; got != want {
			t.Errorf("headers\n%s", got)
		}
		pass(b, 1)
		time.Sleep(3 * time.Second)
		res = b.Run(b.Exchange("GET", "/"), nil)
		if res.Status != 429 || res.Body != "local_rate_limited" || res.Reply.Flags != accesslog.RateLimited || res.Reply.GRPCStatus != 8 || res.Reply.Details != "local_rate_limited" {
			t.Errorf("%d %q, reply %+v", res.Status, res.Body, res.Reply)
		}
		for name, want := range map[string]string{"x-ratelimit-remaining": "0", "x-ratelimit-reset": "7", "retry-after": "7"} {
			if got := res.Header.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if !strings.HasPrefix(res.Header.Get("x-local-rate-limit"), "true ") {
			t.Errorf("headers\n%s", filtertest.Fields(&res.Header))
		}
		c.Status = 503
		b = filtertest.New(t, localratelimit.Type, c)
		pass(b, 2)
		if res := b.Run(b.Exchange("GET", "/"), nil); res.Status != 503 || res.Header.Has("retry-after") {
			t.Errorf("%d, %s", res.Status, filtertest.Fields(&res.Header))
		}
	})
}

func TestShares(t *testing.T) {
	c := conf(1, 1, time.Hour)
	c.Enabled = model.Fraction{}
	b := filtertest.New(t, localratelimit.Type, c)
	if n := pass(b, 5); n != 5 || b.Counters() != "" {
		t.Errorf("%d passed a filter that is not enabled, counters\n%s", n, b.Counters())
	}
	c.Enabled, c.Enforced = always, model.Fraction{}
	c.RequestEdits = []model.HeaderEdit{{Name: "x-over", Value: "1"}}
	b = filtertest.New(t, localratelimit.Type, c)
	for _, over := range []string{"", "1"} {
		x := b.Exchange("GET", "/")
		if res := b.Run(x, nil); res.Reply != nil || x.Request.Header.Get("x-over") != over {
			t.Errorf("reply %+v, header %q, want %q", res.Reply, x.Request.Header.Get("x-over"), over)
		}
	}
}

func TestEveryConnectionItsOwn(t *testing.T) {
	c := conf(2, 1, time.Hour)
	c.PerConnection = true
	b := filtertest.New(t, localratelimit.Type, c)
	if n := pass(b, 3); n != 2 {
		t.Errorf("%d on the first connection", n)
	}
	b.Conn = &filter.Conn{}
	if n := pass(b, 3); n != 2 {
		t.Errorf("%d on the second", n)
	}
}

func TestDescriptors(t *testing.T) {
	bucket := func(max uint32) localratelimit.Bucket {
		return localratelimit.Bucket{Max: max, PerFill: 1, FillInterval: time.Hour}
	}
	c := conf(100, 1, time.Hour)
	c.RateLimits = []model.RateLimit{
		{Actions: []model.RateLimitAction{{Header: "x-user", HeaderKey: "user"}, {Generic: "api"}}},
		{Actions: []model.RateLimitAction{{RemoteAddress: true}}},
		{Actions: []model.RateLimitAction{{Header: "x-tenant", HeaderKey: "tenant"}}},
	}
	c.Descriptors = []localratelimit.Descriptor{
		{Entries: []descriptor.Entry{{Key: "user", Value: "bob"}, {Key: "generic_key", Value: "api"}}, Bucket: bucket(2)},
		{Entries: []descriptor.Entry{{Key: "user", Value: ""}, {Key: "generic_key", Value: "api"}}, Bucket: bucket(3)},
		{Entries: []descriptor.Entry{{Key: "tenant", Value: "free"}}, Bucket: bucket(1), Shadow: true},
	}
	c.MaxDynamic = 2
	b := filtertest.New(t, localratelimit.Type, c)
	for _, tt := range []struct {
		fields []string
		want   int
	}{
		{[]string{"x-user", "bob"}, 2},
		{[]string{"x-user", "eve"}, 3},
		{[]string{"x-user", "eve"}, 0},
		{[]string{"x-user", "ann"}, 3},
		{[]string{"x-tenant", "free"}, 5}, // shadow
		{nil, 5},
		{[]string{"x-user", "joe"}, 3}, // eve's is the oldest now, and goes
		{[]string{"x-user", "ann"}, 0},
		{[]string{"x-user", "eve"}, 3},
	} {
		if n := pass(b, 5, tt.fields...); n != tt.want {
			t.Errorf("%v: %d passed, want %d", tt.fields, n, tt.want)
		}
	}
}

func TestDefaultBucketCountsUnlessTold(t *testing.T) {
	for only, want := range map[bool]int{false: 0, true: 2} {
		c := conf(2, 1, time.Hour)
		c.OnlyDescriptors = only
		c.RateLimits = []model.RateLimit{{Actions: []model.RateLimitAction{{Header: "x-user", HeaderKey: "user"}}}}
		c.Descriptors = []localratelimit.Descriptor{{Entries: []descriptor.Entry{{Key: "user", Value: "bob"}}, Bucket: *c.Bucket}}
		b := filtertest.New(t, localratelimit.Type, c)
		pass(b, 2, "x-user", "bob")
		if n := pass(b, 5); n != want {
			t.Errorf("only descriptors %v: %d others passed, want %d", only, n, want)
		}
	}
}

func TestRoutesDescribe(t *testing.T) {
	c := conf(100, 1, time.Hour)
	c.Stage = 1
	c.Descriptors = []localratelimit.Descriptor{{Entries: []descriptor.Entry{{Key: "destination_cluster", Value: "up"}}, Bucket: localratelimit.Bucket{Max: 1, PerFill: 1, FillInterval: time.Hour}}}
	for stage, want := range map[uint32]int{0: 5, 1: 1} {
		b := filtertest.New(t, localratelimit.Type, c)
		b.Route(nil, func(r *model.Route) {
			r.Forward.RateLimits = []model.RateLimit{{Stage: stage, Actions: []model.RateLimitAction{{DestinationCluster: true}}}}
		})
		if n := pass(b, 5); n != want {
			t.Errorf("stage %d: %d passed, want %d", stage, n, want)
		}
	}
}

func TestRouteHasItsOwnBucket(t *testing.T) {
	b := filtertest.New(t, localratelimit.Type, &localratelimit.Config{StatPrefix: "lim"})
	if n := pass(b, 3); n != 3 {
		t.Errorf("%d passed no bucket", n)
	}
	b.Route(conf(1, 1, time.Hour))
	if n := pass(b, 3); n != 1 {
		t.Errorf("%d passed the bucket of the route", n)
	}
}

func TestNoAllocation(t *testing.T) {
	c := conf(1e6, 1e6, time.Second)
	c.RateLimits = []model.RateLimit{{Actions: []model.RateLimitAction{{Header: "x-user", HeaderKey: "user"}}}}
	c.Descriptors = []localratelimit.Descriptor{{Entries: []descriptor.Entry{{Key: "user", Value: ""}}, Bucket: *c.Bucket}}
	b := filtertest.New(t, localratelimit.Type, c)
	x := b.Exchange("GET", "/", "x-user", "bob")
	if n := testing.AllocsPerRun(100, func() { b.Filter.Request(x) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRequest(b *testing.B) {
	for _, descriptors := range []int{0, 10} {
		b.Run(fmt.Sprint(descriptors, "descriptors"), func(b *testing.B) {
			c := conf(1e9, 1e9, time.Second)
			for i := range descriptors {
				c.Descriptors = append(c.Descriptors, localratelimit.Descriptor{Entries: []descriptor.Entry{{Key: "user", Value: fmt.Sprint("u", i)}}, Bucket: *c.Bucket})
			}
			c.RateLimits = []model.RateLimit{{Actions: []model.RateLimitAction{{Header: "x-user", HeaderKey: "user"}}}}
			f := filtertest.New(b, localratelimit.Type, c)
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				x := f.Exchange("GET", "/", "x-user", "u9")
				for p.Next() {
					if f.Filter.Request(x) != nil {
						b.Error("refused")
					}
				}
			})
		})
	}
}
