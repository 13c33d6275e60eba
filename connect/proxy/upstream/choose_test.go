package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
)

// manager returns one with a fixed seed.
func manager(seed uint64) (*upstream.Manager, *stats.Store) {
	rnd, mu := rand.New(rand.NewPCG(seed, seed)), new(sync.Mutex)
	st := stats.NewStore(nil)
	return upstream.NewManager(upstream.Config{
		Dial:  func(context.Context, string, string) (net.Conn, error) { return nopConn{}, nil },
		Stats: st,
		Rand:  func() uint64 { mu.Lock(); defer mu.Unlock(); return rnd.Uint64() },
	}), st
}

func addresses(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("10.0.%d.%d:1", i/250, i%250+1))
	}
	return out
}

// count chooses n times and tells how often each host was chosen. Between
// choices, hold is called with the host.
func count(t *testing.T, m *upstream.Manager, n int, hold func(*upstream.Host)) map[string]int {
	t.Helper()
	got := map[string]int{}
	for range n {
		_, h, err := m.Get("c").Choose(&upstream.Choice{})
		if err != nil {
			t.Fatal(err)
		}
		got[h.String()]++
		if hold != nil {
			hold(h)
		}
	}
	return got
}

// fits fails the test unless the counts fit the shares by a χ² test at 0.1 %.
func fits(t *testing.T, got map[string]int, want map[string]float64) {
	t.Helper()
	n, chi := 0, 0.0
	for _, c := range got {
		n += c
	}
	for h, share := range want {
		e := share * float64(n)
		chi += (float64(got[h]) - e) * (float64(got[h]) - e) / e
	}
	// Wilson and Hilferty's approximation of the quantile.
	df := float64(len(want) - 1)
	limit := df * math.Pow(1-2/(9*df)+3.09*math.Sqrt(2/(9*df)), 3)
	if chi > limit || len(got) > len(want) {
		t.Errorf("χ² is %.1f, above %.1f: %v, want shares %v", chi, limit, got, want)
	}
}

func TestDistribution(t *testing.T) {
	addrs := addresses(5)
	equal := map[string]float64{}
	weighted := map[string]float64{}
	for i, a := range addrs {
		equal[a] = 0.2
		weighted[a] = float64(i+1) / 15
	}
	for _, tt := range []struct {
		name string
		lb   model.LBPolicy
		w    bool
		want map[string]float64
	}{
		{"round robin", model.RoundRobin, false, equal}, {"weighted round robin", model.RoundRobin, true, weighted},
		{"least request", model.LeastRequest, false, equal}, {"weighted least request", model.LeastRequest, true, weighted},
		{"random", model.Random, false, equal}, {"random ignores weights", model.Random, true, equal},
		{"peak EWMA", model.PeakEWMAPolicy, false, equal},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, _ := manager(1)
			c := static(addrs...)
			c.LB, c.ActiveBias = tt.lb, 1
			for i := range c.Endpoints.Endpoints {
				if tt.w {
					c.Endpoints.Endpoints[i].Weight = uint32(i + 1)
				}
			}
			m.Set(c, true)
			fits(t, count(t, m, 20000, nil), tt.want)
		})
	}
}

func TestHashingSticksAndFallsBackToChance(t *testing.T) {
	for _, lb := range []model.LBPolicy{model.RingHash, model.Maglev} {
		t.Run(lb.String(), func(t *testing.T) {
			m, st := manager(2)
			c := static(addresses(10)...)
			c.LB = lb
			m.Set(c, true)
			pick := func(hash uint64) string {
				_, h, err := m.Get("c").Choose(&upstream.Choice{Hash: hash, HasHash: true})
				if err != nil {
					t.Fatal(err)
				}
				return h.String()
			}
			before, mix := map[uint64]string{}, rand.New(rand.NewPCG(3, 3))
			for range 2000 {
				x := mix.Uint64()
				before[x] = pick(x)
				if again := pick(x); again != before[x] {
					t.Fatalf("hash %x goes to %s and %s", x, before[x], again)
				}
			}
			// Without one of the hosts, few of the hashes of others move.
			less := static(addresses(9)...)
			less.LB = lb
			m.Set(less, true)
			moved, of := 0, 0
			for x, h := range before {
				if h == addresses(10)[9] {
					continue
				}
				of++
				if pick(x) != h {
					moved++
				}
			}
			if float64(moved) > 0.1*float64(of) {
				t.Errorf("%d of %d hashes moved that need not", moved, of)
			}
			if got := count(t, m, 2000, nil); len(got) != 9 {
				t.Errorf("without a hash, %d hosts are used, want all 9", len(got))
			}
			name := map[model.LBPolicy]string{model.RingHash: "ring_hash_lb.size", model.Maglev: "maglev_lb.max_entries_per_host"}[lb]
			if st.Value("cluster.c."+name) == 0 {
				t.Errorf("%s is 0", name)
			}
		})
	}
}

func TestBoundedLoadOverflowsToOthers(t *testing.T) {
	m, _ := manager(3)
	c := static(addresses(4)...)
	c.LB, c.HashBalance = model.RingHash, 125
	m.Set(c, true)
	got := map[string]int{}
	for range 80 {
		_, h, err := m.Get("c").Choose(&upstream.Choice{Hash: 7, HasHash: true})
		if err != nil {
			t.Fatal(err)
		}
		h.Begin()
		got[h.String()]++
	}
	for h, n := range got {
		if n > 28 {
			t.Errorf("%s has %d of 80 requests in progress, above 125%% of the average", h, n)
		}
	}
	if len(got) != 4 {
		t.Errorf("one hash went to %v; want all, as none may have more than 125%%", got)
	}
}

func TestLeastRequestPrefersIdleHosts(t *testing.T) {
	for _, scan := range []bool{false, true} {
		m, _ := manager(4)
		c := static(addresses(3)...)
		c.LB, c.FullScan = model.LeastRequest, scan
		m.Set(c, true)
		busy := map[string]bool{}
		got := count(t, m, 300, func(h *upstream.Host) {
			if !busy[h.String()] && len(busy) < 2 { // two hosts never finish
				busy[h.String()] = true
				for range 10 {
					h.Begin()
				}
			}
		})
		idle := 0
		for h, n := range got {
			if !busy[h] {
				idle = n
			}
		}
		// With two draws, the idle one is missed with probability 4/9.
		if least := map[bool]int{false: 130, true: 290}[scan]; idle < least {
			t.Errorf("full scan %v: the idle host got %d of 300, want %d at least: %v", scan, idle, least, got)
		}
	}
}

func TestPeakEWMAAvoidsSlowAndBrokenHosts(t *testing.T) {
	for _, tt := range []struct {
		name string
		bad  upstream.Result
	}{
		{"slow", upstream.Result{Status: 200, Latency: 2 * time.Second}},
		{"broken but fast", upstream.Result{Status: 503, Latency: time.Millisecond}},
		{"limiting", upstream.Result{Status: 429, Latency: time.Millisecond, RetryAfter: 5 * time.Second}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, _ := manager(5)
				c := static(addresses(4)...)
				c.LB = model.PeakEWMAPolicy
				m.Set(c, true)
				bad := addresses(4)[0]
				rnd, healed := rand.New(rand.NewPCG(1, 1)), false
				use := func(n int) int {
					return count(t, m, n, func(h *upstream.Host) {
						r := upstream.Result{Status: 200, Latency: 4*time.Millisecond + time.Duration(rnd.Int64N(int64(2*time.Millisecond)))}
						if h.String() == bad && !healed {
							r = tt.bad
						}
						m.Get("c").Report(h, r)
						time.Sleep(time.Millisecond)
					})[bad]
				}
				use(50)
				if n := use(1000); n > 100 {
					t.Errorf("the bad host got %d of 1000", n)
				}
				// What is long ago counts no more.
				healed = true
				time.Sleep(2 * time.Minute)
				use(50)
				if n := use(1000); n < 150 {
					t.Errorf("once it is good again, the host gets %d of 1000", n)
				}
			})
		})
	}
}

func TestRepicksAvoidHosts(t *testing.T) {
	for _, lb := range []model.LBPolicy{model.RoundRobin, model.LeastRequest, model.RingHash, model.Maglev} {
		m, _ := manager(6)
		c := static(addresses(3)...)
		c.LB = lb
		m.Set(c, true)
		again := 0
		for i := range 200 {
			ch := upstream.Choice{Hash: uint64(i) * 0x9e3779b97f4a7c15, HasHash: true}
			_, first, _ := m.Get("c").Choose(&ch)
			ch.Avoid, ch.Repicks = []*upstream.Host{first}, 5
			if _, second, _ := m.Get("c").Choose(&ch); second == first {
				again++
			}
			ch.Repicks = 0
			if _, second, _ := m.Get("c").Choose(&ch); second == nil {
				t.Fatal("no host without repicks")
			}
		}
		if again > 20 {
			t.Errorf("%v: the host to avoid came again %d times of 200", lb, again)
		}
	}
}

func TestPrioritiesToAvoid(t *testing.T) {
	m, _ := manager(7)
	c := static(addresses(4)...)
	c.Endpoints.Endpoints[2].Priority, c.Endpoints.Endpoints[3].Priority = 1, 1
	m.Set(c, true)
	_, first, _ := m.Get("c").Choose(&upstream.Choice{})
	ch := upstream.Choice{Avoid: []*upstream.Host{first}, AvoidPriorities: true}
	for range 50 {
		// Priority 1 has no load while 0 is well, but what it could carry counts once 0 is to be avoided.
		if _, h, err := m.Get("c").Choose(&ch); err != nil || h.Endpoint().Priority != 1 {
			t.Fatalf("host %v of priority %d, %v; want priority 1", h, h.Endpoint().Priority, err)
		}
	}
	sick := static(addresses(4)...)
	sick.Endpoints.Endpoints[0].Health = model.Unhealthy
	sick.Endpoints.Endpoints[2].Priority, sick.Endpoints.Endpoints[3].Priority = 1, 1
	m.Set(sick, true) // 70 and 30 percent
	for range 50 {
		if _, h, err := m.Get("c").Choose(&ch); err != nil || h.Endpoint().Priority != 1 {
			t.Fatalf("host %v of priority %d, %v; want priority 1", h, h.Endpoint().Priority, err)
		}
	}
}

// Endpoints that come again as they were, or with other metadata, do not start the turns anew.
func TestTurnsGoOnOverUpdates(t *testing.T) {
	m, _ := manager(16)
	c := static()
	c.Type, c.EDSName, c.Endpoints = model.EDS, "c", nil
	m.Set(c, true)
	m.SetEndpoints(hosts("c", addresses(3)...))
	got := map[string]int{}
	for i := range 30 {
		for h, n := range count(t, m, 1, nil) {
			got[h] += n
		}
		la := hosts("c", addresses(3)...)
		la.Endpoints[0].Metadata = model.Metadata{"x": {"n": float64(i)}}
		m.SetEndpoints(la)
	}
	for _, a := range addresses(3) {
		if got[a] != 10 {
			t.Errorf("shares %v, want 10 each", got)
			break
		}
	}
}

func TestOverrideHost(t *testing.T) {
	m, _ := manager(8)
	c := static(addresses(3)...)
	c.Endpoints.Endpoints[1].Health = model.Unhealthy
	m.Set(c, true)
	want := addresses(3)[2]
	for range 20 {
		if _, h, _ := m.Get("c").Choose(&upstream.Choice{OverrideHost: want}); h.String() != want {
			t.Fatalf("got %s, want %s", h, want)
		}
		if _, h, _ := m.Get("c").Choose(&upstream.Choice{OverrideHost: addresses(3)[1]}); h.String() == addresses(3)[1] {
			t.Fatal("an unhealthy host is taken since it is asked for")
		}
	}
}

func TestDropOverload(t *testing.T) {
	m, st := manager(9)
	c := static(addresses(2)...)
	c.Endpoints.Drops = []model.DropOverload{{Category: "lb", Fraction: model.Fraction{Numerator: 25, Denominator: 100}}}
	m.Set(c, true)
	dropped := 0
	for range 10000 {
		if _, _, err := m.Get("c").Choose(&upstream.Choice{}); errors.Is(err, upstream.ErrDropped) {
			dropped++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if dropped < 2300 || dropped > 2700 {
		t.Errorf("%d of 10000 were dropped, want about 2500", dropped)
	}
	if got := st.Value("cluster.c.upstream_rq_drop_overload"); int(got) != dropped {
		t.Errorf("counted %v, want %d", got, dropped)
	}
}

func TestSubsets(t *testing.T) {
	hosts := static("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1")
	for i, md := range []map[string]any{
		{"version": "v1", "stage": "prod"}, {"version": "v2", "stage": "prod"}, {"version": []any{"v2", "v3"}, "stage": "dev"}, {"other": 1.0},
	} {
		hosts.Endpoints.Endpoints[i].Metadata = model.Metadata{"envoy.lb": md}
	}
	tests := []struct {
		name    string
		subsets model.Subsets
		want    map[string]any
		hosts   []string // none: no healthy upstream
	}{
		{"one key", model.Subsets{Selectors: []model.SubsetSelector{{Keys: []string{"version"}, Fallback: model.FallbackCluster}}}, map[string]any{"version": "v1"}, []string{"1"}},
		{"two keys", model.Subsets{Selectors: []model.SubsetSelector{{Keys: []string{"stage", "version"}}}}, map[string]any{"version": "v2", "stage": "prod"}, []string{"2"}},
		{"no list without the option", model.Subsets{Selectors: []model.SubsetSelector{{Keys: []string{"version"}}}}, map[string]any{"version": "v3"}, nil},
		{"a list as any of its items", model.Subsets{ListAsAny: true, Selectors: []model.SubsetSelector{{Keys: []string{"version"}}}}, map[string]any{"version": "v2"}, []string{"2", "3"}},
		{"no such subset", model.Subsets{Selectors: []model.SubsetSelector{{Keys: []string{"version"}}}}, map[string]any{"version": "v9"}, nil},
		{"no selector for the keys", model.Subsets{Selectors: []model.SubsetSelector{{Keys: []string{"version"}}}}, map[string]any{"stage": "prod"}, nil},
		{"any endpoint", model.Subsets{Fallback: model.FallbackAny, Selectors: []model.SubsetSelector{{Keys: []string{"version"}, Fallback: model.FallbackCluster}}}, map[string]any{"version": "v9"}, []string{"1", "2", "3", "4"}},
		{"default subset", model.Subsets{Fallback: model.FallbackDefault, Default: model.NewMetadataMatches(map[string]any{"stage": "prod"}), Selectors: []model.SubsetSelector{{Keys: []string{"version"}, Fallback: model.FallbackCluster}}}, map[string]any{"version": "v9"}, []string{"1", "2"}},
		{"default subset without a wish", model.Subsets{Fallback: model.FallbackDefault, Default: model.NewMetadataMatches(map[string]any{"stage": "dev"})}, nil, []string{"3"}},
		{"selector's own fallback", model.Subsets{Fallback: model.FallbackAny, Selectors: []model.SubsetSelector{{Keys: []string{"version"}, Fallback: model.FallbackNone}}}, map[string]any{"version": "v9"}, nil},
		{"fewer keys", model.Subsets{Selectors: []model.SubsetSelector{
			{Keys: []string{"stage", "version"}, Fallback: model.FallbackKeySubset, FallbackKeys: []string{"stage"}}, {Keys: []string{"stage"}}}},
			map[string]any{"stage": "prod", "version": "v9"}, []string{"1", "2"}},
		{"one host per subset", model.Subsets{Selectors: []model.SubsetSelector{{Keys: []string{"stage"}, Single: true}}}, map[string]any{"stage": "prod"}, []string{"1"}},
		{"panic", model.Subsets{PanicAny: true, Selectors: []model.SubsetSelector{{Keys: []string{"version"}}}}, map[string]any{"version": "v9"}, []string{"1", "2", "3", "4"}},
		{"numbers", model.Subsets{Selectors: []model.SubsetSelector{{Keys: []string{"other"}}}}, map[string]any{"other": 1}, []string{"4"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, _ := manager(10)
			c := *hosts
			c.Subsets = &tt.subsets
			m.Set(&c, true)
			ch, got := upstream.Choice{Metadata: model.NewMetadataMatches(tt.want)}, map[string]bool{}
			for range 50 {
				_, h, err := m.Get("c").Choose(&ch)
				if err == nil {
					got[h.String()] = true
				} else if !errors.Is(err, upstream.ErrNoHealthyUpstream) {
					t.Fatal(err)
				}
			}
			want := map[string]bool{}
			for _, h := range tt.hosts {
				want["10.0.0."+h+":1"] = true
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func TestAggregateSpreadsOverPrioritiesOfItsMembers(t *testing.T) {
	m, _ := manager(11)
	member := func(name string, total, sick int) {
		c := static(addresses(10)[:total]...)
		c.Name = name
		for i := range sick {
			c.Endpoints.Endpoints[i].Health = model.Unhealthy
		}
		m.Set(c, true)
	}
	member("first", 10, 5)
	member("second", 10, 0)
	m.Set(&model.Cluster{Name: "inner", Type: model.Aggregate, Members: []string{"second"}}, true)
	m.Set(&model.Cluster{Name: "c", Type: model.Aggregate, Members: []string{"first", "absent", "inner"}}, true)
	share := func() map[string]int {
		got := map[string]int{}
		for range 10000 {
			owner, _, err := m.Get("c").Choose(&upstream.Choice{})
			if err != nil {
				t.Fatal(err)
			}
			got[owner.Model().Name]++
		}
		return got
	}
	fits(t, share(), map[string]float64{"first": 0.7, "second": 0.3})
	member("first", 10, 0)
	if got := share(); got["second"] != 0 {
		t.Errorf("all of the first are well: %v", got)
	}
	m.Remove("first")
	if got := share(); got["second"] != 10000 {
		t.Errorf("the first is gone: %v", got)
	}
}

func TestOriginalDestinationsAreKeptWhileTheyAreUsed(t *testing.T) {
	run(t, func(w *world) {
		w.m.Set(&model.Cluster{Name: "c", Type: model.OriginalDst, OriginalDst: model.OriginalDestination{Port: 99, Cleanup: 5 * time.Second}}, true)
		ch := upstream.Choice{Destination: model.Address{Host: "10.9.9.9", Port: 9}}
		_, h, err := w.m.Get("c").Choose(&ch)
		if err != nil || h.String() != "10.9.9.9:99" {
			t.Fatalf("host %v, %v", h, err)
		}
		h.Begin()
		p := new(closer)
		h.Pool(func() any { return p })
		time.Sleep(time.Minute)
		if _, again, _ := w.m.Get("c").Choose(&ch); again != h || p.closed.Load() != 0 {
			t.Errorf("a host with a request was forgotten, or its pool closed %d times", p.closed.Load())
		}
		h.End()
		time.Sleep(time.Minute)
		if _, again, _ := w.m.Get("c").Choose(&ch); again == h || p.closed.Load() != 1 {
			t.Errorf("an unused host was kept, or its pool closed %d times", p.closed.Load())
		}
	})
}

type closer struct{ closed atomic.Int32 }

func (c *closer) Close() error { c.closed.Add(1); return nil }

func TestPoolsAreGivenUpWithTheirHosts(t *testing.T) {
	m, _ := manager(12)
	m.Set(static("10.0.0.1:1", "10.0.0.2:1"), true)
	pool := func(addr string) (*upstream.Host, *closer) {
		_, h, err := m.Get("c").Choose(&upstream.Choice{OverrideHost: addr})
		if err != nil {
			t.Fatal(err)
		}
		return h, h.Pool(func() any { return new(closer) }).(*closer)
	}
	h1, p1 := pool("10.0.0.1:1")
	h2, p2 := pool("10.0.0.2:1")
	if _, again := pool("10.0.0.1:1"); again != p1 {
		t.Error("the pool of a host is made twice")
	}
	// What does not concern connections keeps them.
	c := static("10.0.0.1:1", "10.0.0.2:1")
	c.Breakers[0].MaxRequests = 5
	m.Set(c, true)
	if _, again := pool("10.0.0.1:1"); again != p1 || p1.closed.Load() != 0 {
		t.Error("a change of limits gave pools up")
	}
	if h1.Cluster() != m.Get("c") {
		t.Error("the host does not belong to the new version")
	}
	c = static("10.0.0.1:1")
	m.Set(c, true)
	if p1.closed.Load() != 0 || p2.closed.Load() != 1 {
		t.Errorf("after one host left: closed %d and %d times", p1.closed.Load(), p2.closed.Load())
	}
	if late := h2.Pool(func() any { t.Error("made anew"); return nil }); late != p2 {
		t.Error("a request that holds a host which left gets another pool")
	}
	c = static("10.0.0.1:1")
	c.HTTP.Protocol = model.UpstreamHTTP2
	m.Set(c, true)
	if _, again := pool("10.0.0.1:1"); again == p1 || p1.closed.Load() != 1 {
		t.Error("a pool survived the change of protocol")
	}
	_, p1 = pool("10.0.0.1:1")
	m.Remove("c")
	if p1.closed.Load() != 1 {
		t.Error("a pool survived its cluster")
	}
}

func TestBreakersAreExact(t *testing.T) {
	m, st := manager(13)
	c := static("10.0.0.1:1")
	c.Breakers = [2]model.Breaker{{MaxConnections: 8, MaxPending: 4, MaxRequests: 50, MaxRetries: 2, TrackRemaining: true}, {MaxRequests: 1}}
	m.Set(c, true)
	b := m.Get("c").Breaker(model.PriorityDefault)
	var most, in, refused atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 2000 {
				if !b.Try(upstream.Connections) {
					refused.Add(1)
					continue
				}
				n := in.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				in.Add(-1)
				b.Done(upstream.Connections)
			}
		})
	}
	wg.Wait()
	if most.Load() > 8 || b.Used(upstream.Connections) != 0 {
		t.Errorf("%d at a time, and %d left; the limit is 8", most.Load(), b.Used(upstream.Connections))
	}
	if got := st.Value("cluster.c.upstream_cx_overflow"); int64(got) != refused.Load() {
		t.Errorf("counted %v, want %d", got, refused.Load())
	}
	gauge := func(name string, want float64) {
		t.Helper()
		if got := st.Value("cluster.c.circuit_breakers.default." + name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	state := func(want upstream.BreakerState) {
		t.Helper()
		if got := b.State(upstream.Pending); got != want {
			t.Errorf("the breaker is %v, want %v", got, want)
		}
	}
	state(upstream.Closed)
	for range 4 {
		b.Try(upstream.Pending)
	}
	state(upstream.Open)
	gauge("rq_pending_open", 1)
	gauge("remaining_pending", 0)
	if b.Try(upstream.Pending) {
		t.Error("a fifth request may wait")
	}
	b.Done(upstream.Pending)
	state(upstream.HalfOpen)
	gauge("rq_pending_open", 0)
	gauge("rq_pending_half_open", 1)
	b.Done(upstream.Pending)
	state(upstream.Closed)
	if got := st.Value("cluster.c.upstream_rq_pending_overflow"); got != 1 {
		t.Errorf("pending overflow counted %v times", got)
	}
	// Priorities are apart, and changes forget nothing.
	high := m.Get("c").Breaker(model.PriorityHigh)
	if !high.Try(upstream.Requests) || high.Try(upstream.Requests) {
		t.Error("the high priority does not have its own limit of one")
	}
	again := *c
	again.Breakers[1].MaxRequests = 2
	m.Set(&again, true)
	high = m.Get("c").Breaker(model.PriorityHigh)
	if high.Used(upstream.Requests) != 1 || !high.Try(upstream.Requests) || high.Try(upstream.Requests) {
		t.Error("a change forgot what is in use, or its new limit")
	}
	// A budget goes with what is in progress.
	more := again
	more.Breakers[0].Budget = &model.RetryBudget{Percent: 20, Min: 3}
	m.Set(&more, true)
	for range 50 {
		b.Force(upstream.Requests)
	}
	n := 0
	for b.Try(upstream.Retries) {
		n++
	}
	if n != 10 { // 20 % of 50 and 2 that wait
		t.Errorf("%d retries at a time, want 10", n)
	}
	if st.Value("cluster.c.upstream_rq_retry_overflow") != 1 {
		t.Error("a retry too many was not counted")
	}
}

func TestHappyEyeballs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var dials []string
		start := time.Now()
		dial := func(ctx context.Context, _, addr string) (net.Conn, error) {
			mu.Lock()
			dials = append(dials, fmt.Sprint(addr, " ", time.Since(start)))
			mu.Unlock()
			switch addr {
			case "[2001:db8::1]:1": // nobody answers
				<-ctx.Done()
				return nil, ctx.Err()
			case "10.0.0.1:1":
				return nil, errors.New("connection refused")
			}
			return nopConn{}, nil
		}
		m := upstream.NewManager(upstream.Config{Dial: dial, Resolve: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("10.0.0.2")}, nil
		}})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		c := static()
		c.Type, c.ConnectTimeout, c.DNS = model.LogicalDNS, 5*time.Second, model.DNS{Refresh: time.Hour, Family: model.FamilyAll}
		c.Endpoints = &model.LoadAssignment{Localities: []model.Locality{{}}, Endpoints: []model.Endpoint{{Address: model.Address{Host: "a.example", Port: 1}, Weight: 1}}}
		m.Set(c, false)
		synctest.Wait()
		conn, attempts, err := m.Get("c").Connect(ctx, upstream.Request{})
		if err != nil || attempts != 1 {
			t.Fatalf("after %d attempts: %v", attempts, err)
		}
		conn.Close()
		// The second is tried after 300 ms beside the first; when it fails, the next at once.
		want := []string{"[2001:db8::1]:1 0s", "10.0.0.1:1 300ms", "[2001:db8::2]:1 300ms"}
		if !slices.Equal(dials, want) {
			t.Errorf("dialled %q, want %q", dials, want)
		}
		cancel()
		<-done
	})
}

func TestCodesAreCounted(t *testing.T) {
	m, st := manager(14)
	m.Set(static("10.0.0.1:1"), true)
	for _, s := range []int{200, 200, 404, 503, 0, 700} {
		m.Get("c").CountResponse(s)
	}
	for name, want := range map[string]float64{"upstream_rq_200": 2, "upstream_rq_404": 1, "upstream_rq_2xx": 2, "upstream_rq_5xx": 1, "upstream_rq_completed": 4} {
		if got := st.Value("cluster.c." + name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

func TestSlowStart(t *testing.T) {
	for _, lb := range []model.LBPolicy{model.RoundRobin, model.LeastRequest} {
		t.Run(lb.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, _ := manager(15)
				set := func(addrs ...string) {
					c := static(addrs...)
					c.LB, c.ActiveBias = lb, 1
					c.SlowStart = &model.SlowStart{Window: time.Minute, Aggression: 1, MinPercent: 10}
					m.Set(c, true)
				}
				set("10.0.0.1:1")
				time.Sleep(2 * time.Minute)
				set("10.0.0.1:1", "10.0.0.2:1")
				share := func() float64 { return float64(count(t, m, 2000, nil)["10.0.0.2:1"]) / 2000 }
				for _, tt := range []struct {
					after time.Duration
					want  float64 // weight
				}{{0, 0.1}, {3 * time.Second, 0.1}, {27 * time.Second, 0.5}, {15 * time.Second, 0.75}, {16 * time.Second, 1}} {
					time.Sleep(tt.after)
					if got, want := share(), tt.want/(1+tt.want); math.Abs(got-want) > 0.02 {
						t.Errorf("%v later the new host gets %.3f, want %.3f", tt.after, got, want)
					}
				}
				m.Remove("c")
			})
		})
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, lb := range []model.LBPolicy{model.RoundRobin, model.LeastRequest, model.Random, model.RingHash, model.Maglev, model.PeakEWMAPolicy} {
		for _, n := range []int{10, 1000} {
			for _, weighted := range []bool{false, true} {
				if weighted && lb != model.RoundRobin && lb != model.LeastRequest {
					continue
				}
				b.Run(fmt.Sprintf("%v/%d/weighted=%v", lb, n, weighted), func(b *testing.B) {
					m := upstream.NewManager(upstream.Config{})
					c := static(addresses(n)...)
					c.LB, c.ActiveBias = lb, 1
					for i := range c.Endpoints.Endpoints {
						if weighted {
							c.Endpoints.Endpoints[i].Weight = uint32(i%7 + 1)
						}
					}
					m.Set(c, true)
					cluster := m.Get("c")
					ch := upstream.Choice{HasHash: true}
					b.ReportAllocs()
					for b.Loop() {
						ch.Hash += 0x9e3779b97f4a7c15
						_, h, err := cluster.Choose(&ch)
						if err != nil {
							b.Fatal(err)
						}
						h.Begin()
						h.End()
					}
				})
			}
		}
	}
}

func BenchmarkReport(b *testing.B) {
	m := upstream.NewManager(upstream.Config{})
	c := static("10.0.0.1:1")
	c.LB = model.PeakEWMAPolicy
	c.Outlier = &model.Outlier{Consecutive5xx: 5, Interval: time.Hour}
	m.Set(c, true)
	_, h, _ := m.Get("c").Choose(&upstream.Choice{})
	b.ReportAllocs()
	for b.Loop() {
		m.Get("c").Report(h, upstream.Result{Status: 200, Latency: time.Millisecond})
		m.Get("c").CountResponse(200)
	}
	m.Remove("c")
}

func TestChoosingAllocatesNothing(t *testing.T) {
	for _, lb := range []model.LBPolicy{model.RoundRobin, model.LeastRequest, model.Random, model.RingHash, model.Maglev, model.PeakEWMAPolicy} {
		m := upstream.NewManager(upstream.Config{})
		c := static(addresses(20)...)
		c.LB = lb
		m.Set(c, true)
		cluster := m.Get("c")
		var ch upstream.Choice
		if n := testing.AllocsPerRun(100, func() {
			_, h, _ := cluster.Choose(&ch)
			h.Begin()
			cluster.Report(h, upstream.Result{Status: 200, Latency: time.Millisecond})
			cluster.CountResponse(200)
			h.End()
		}); n != 0 {
			t.Errorf("%v: %v allocations", lb, n)
		}
	}
}
