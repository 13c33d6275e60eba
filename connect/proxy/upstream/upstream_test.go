package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
)

// network is a network where an address answers or does not.
type network struct {
	mu    sync.Mutex
	dead  map[string]bool
	dials []string
	names map[string][]string // host names; nil entry does not resolve
	looks int
}

func (n *network) dial(_ context.Context, _, address string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dials = append(n.dials, address)
	if n.dead[address] {
		return nil, errors.New("connection refused")
	}
	a, b := net.Pipe()
	b.Close()
	return a, nil
}

func (n *network) resolve(_ context.Context, name string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.looks++
	addrs, ok := n.names[name]
	if !ok {
		return nil, errors.New("no such host")
	}
	var out []netip.Addr
	for _, a := range addrs {
		out = append(out, netip.MustParseAddr(a))
	}
	return out, nil
}

func (n *network) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

type world struct {
	*testing.T
	n     *network
	m     *upstream.Manager
	stats *stats.Store
	warm  []string
}

func run(t *testing.T, f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, n: &network{dead: map[string]bool{}, names: map[string][]string{}}, stats: stats.NewStore(nil)}
		turn := uint64(0)
		w.m = upstream.NewManager(upstream.Config{
			Dial: w.n.dial, Resolve: w.n.resolve, Stats: w.stats,
			Rand: func() uint64 { turn++; return turn - 1 },
			Warm: func(name string) { w.warm = append(w.warm, name) },
		})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- w.m.Run(ctx) }()
		synctest.Wait()
		f(w)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func hosts(name string, addrs ...string) *model.LoadAssignment {
	la := &model.LoadAssignment{Cluster: name, Localities: []model.Locality{{}}}
	for _, a := range addrs {
		ap := netip.MustParseAddrPort(a)
		la.Endpoints = append(la.Endpoints, model.Endpoint{Address: model.Address{Host: ap.Addr().String(), Port: ap.Port()}, Weight: 1})
	}
	return la
}

func static(addrs ...string) *model.Cluster {
	return &model.Cluster{Name: "c", Endpoints: hosts("c", addrs...), ConnectTimeout: time.Second, Breakers: [2]model.Breaker{{MaxConnections: 100}}, Choices: 2}
}

// to connects and returns where to, or how it failed.
func (w *world) to(req upstream.Request) string {
	c, _, err := w.m.Get("c").Connect(context.Background(), req)
	if err != nil {
		var ce *upstream.ConnectError
		if !errors.As(err, &ce) {
			w.Fatalf("error of type %T: %v", err, err)
		}
		return ce.Flags.String()
	}
	defer c.Close()
	return c.Host.Address().String()
}

func TestAttempts(t *testing.T) {
	run(t, func(w *world) {
		w.n.dead["10.0.0.1:1"], w.n.dead["10.0.0.2:1"] = true, true
		w.m.Set(static("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"), true)
		for range 6 {
			if got := w.to(upstream.Request{}); got != "10.0.0.3:1" {
				t.Errorf("by default got %q, want the host that lives", got)
			}
		}
		w.n.dead["10.0.0.3:1"] = true
		w.n.dials = nil
		if got := w.to(upstream.Request{}); got != "URX,UF" || len(w.n.dials) != 3 {
			t.Errorf("all dead: %q after %v", got, w.n.dials)
		}
		w.n.dials = nil
		if w.to(upstream.Request{MaxAttempts: 1}); len(w.n.dials) != 1 {
			t.Errorf("one attempt dialled %v", w.n.dials)
		}
		w.n.dials = nil
		if w.to(upstream.Request{MaxAttempts: 5}); len(w.n.dials) != 5 {
			t.Errorf("five attempts dialled %v", w.n.dials)
		}
		w.m.Set(static(), true)
		if got := w.to(upstream.Request{}); got != accesslog.NoHealthyUpstream.String() {
			t.Errorf("no hosts: %q", got)
		}
	})
}

func TestUnhealthyHostsAreLeftAlone(t *testing.T) {
	run(t, func(w *world) {
		c := static("10.0.0.1:1", "10.0.0.2:1")
		c.Endpoints.Endpoints[0].Health = model.Unhealthy
		w.m.Set(c, true)
		for range 5 {
			if got := w.to(upstream.Request{}); got != "10.0.0.2:1" {
				t.Errorf("got %q", got)
			}
		}
		w.n.dead["10.0.0.2:1"] = true
		if got := w.to(upstream.Request{}); got != "URX,UF" {
			t.Errorf("the healthy host is dead: %q, want a failure and not the unhealthy one", got)
		}
	})
}

func TestCircuitBreaker(t *testing.T) {
	run(t, func(w *world) {
		c := static("10.0.0.1:1")
		c.Breakers[0].MaxConnections = 2
		w.m.Set(c, true)
		var open []*upstream.Conn
		for range 2 {
			conn, _, err := w.m.Get("c").Connect(context.Background(), upstream.Request{})
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, conn)
		}
		if got := w.to(upstream.Request{}); got != "UO" {
			t.Errorf("above the limit: %q", got)
		}
		// A change of the cluster does not forget what is open.
		again := static("10.0.0.1:1")
		again.Breakers[0].MaxConnections, again.ConnectTimeout = 2, 2*time.Second
		w.m.Set(again, true)
		if got := w.to(upstream.Request{}); got != "UO" {
			t.Errorf("above the limit after a change: %q", got)
		}
		open[0].Close()
		open[0].Close() // gives its place back once
		if got := w.to(upstream.Request{}); got != "10.0.0.1:1" {
			t.Errorf("below the limit: %q", got)
		}
		if got := w.stats.Value("cluster.c.upstream_cx_active"); got != 1 {
			t.Errorf("%v connections are counted, want 1", got)
		}
		open[1].Close()
		if got := w.stats.Value("cluster.c.upstream_cx_overflow"); got != 2 {
			t.Errorf("overflow counted %v times, want 2", got)
		}
	})
}

func TestFailingHostIsEjectedAndComesBack(t *testing.T) {
	run(t, func(w *world) {
		var addrs []string
		for i := range 10 {
			addrs = append(addrs, fmt.Sprintf("10.0.0.%d:1", i+1))
		}
		c := static(addrs...)
		c.Outlier = &model.Outlier{Consecutive5xx: 3, EnforceConsecutive5xx: 100, Interval: 10 * time.Second,
			BaseEjection: 30 * time.Second, MaxEjection: 300 * time.Second, MaxEjectionPercent: 10}
		w.m.Set(c, true)
		w.n.dead["10.0.0.1:1"] = true
		hits := func(n int) int {
			w.n.dials = nil
			for range n {
				w.to(upstream.Request{})
			}
			hit := 0
			for _, d := range w.n.dials {
				if d == "10.0.0.1:1" {
					hit++
				}
			}
			return hit
		}
		if got := hits(100); got != 3 {
			t.Errorf("the dead host was tried %d times before its ejection, want 3", got)
		}
		if got := w.stats.Value("cluster.c.outlier_detection.ejections_active"); got != 1 {
			t.Errorf("%v hosts are ejected, want 1", got)
		}
		// One in ten is the most that may be ejected.
		w.n.dead["10.0.0.2:1"] = true
		hits(100)
		if got := w.stats.Value("cluster.c.outlier_detection.ejections_overflow"); got == 0 {
			t.Error("the cap did not count")
		}
		w.n.dead["10.0.0.2:1"] = false
		time.Sleep(29 * time.Second)
		if got := hits(50); got != 0 {
			t.Errorf("tried %d times while ejected", got)
		}
		time.Sleep(2 * time.Second) // looked at every ten
		if got := hits(100); got != 3 {
			t.Errorf("tried %d times once it was back, want 3", got)
		}
		// The second time lasts twice as long.
		time.Sleep(59 * time.Second)
		if got := hits(50); got != 0 {
			t.Errorf("tried %d times within the second ejection", got)
		}
		w.n.dead["10.0.0.1:1"] = false
		time.Sleep(11 * time.Second)
		if got := hits(50); got == 0 {
			t.Error("never tried again")
		}
		// A change of endpoints keeps what is known.
		w.m.SetEndpoints(hosts("c", addrs...))
	})
}

// A cluster whose only host was ejected is tried all the same: it is back as soon as the instance is.
func TestEjectedHostIsTriedWhenNobodyElseIsLeft(t *testing.T) {
	outlier := &model.Outlier{Consecutive5xx: 2, EnforceConsecutive5xx: 100, Interval: 10 * time.Second,
		BaseEjection: 30 * time.Second, MaxEjection: 300 * time.Second, MaxEjectionPercent: 100}
	eject := func(w *world, addrs ...string) {
		for _, a := range addrs {
			w.n.set(func() { w.n.dead[a] = true })
		}
		for range 20 {
			w.to(upstream.Request{})
		}
		if got := w.stats.Value("cluster.c.outlier_detection.ejections_active"); int(got) != len(addrs) {
			w.Fatalf("%v hosts are ejected, want %d", got, len(addrs))
		}
	}
	t.Run("one host", func(t *testing.T) {
		run(t, func(w *world) {
			c := static("10.0.0.1:1")
			c.Outlier = outlier
			w.m.Set(c, true)
			eject(w, "10.0.0.1:1")
			w.n.dials = nil
			if got := w.to(upstream.Request{}); got != "URX,UF" || len(w.n.dials) != 1 {
				t.Errorf("while it is dead: %q after %v; want one attempt", got, w.n.dials)
			}
			w.n.set(func() { w.n.dead["10.0.0.1:1"] = false })
			if got := w.to(upstream.Request{}); got != "10.0.0.1:1" {
				t.Errorf("once it lives: %q", got)
			}
		})
	})
	t.Run("a healthy one comes first", func(t *testing.T) {
		run(t, func(w *world) {
			c := static("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1")
			c.Outlier = outlier
			w.m.Set(c, true)
			eject(w, "10.0.0.1:1", "10.0.0.2:1")
			w.n.dials = nil
			for range 10 {
				if got := w.to(upstream.Request{}); got != "10.0.0.3:1" {
					t.Errorf("with one healthy host: %q", got)
				}
			}
			if len(w.n.dials) != 10 {
				t.Errorf("ejected hosts were tried: %v", w.n.dials)
			}
		})
	})
	t.Run("each is tried", func(t *testing.T) {
		run(t, func(w *world) {
			c := static("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1")
			c.Outlier = outlier
			w.m.Set(c, true)
			eject(w, "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1")
			w.n.set(func() { w.n.dead["10.0.0.2:1"] = false })
			if got := w.to(upstream.Request{}); got != "10.0.0.2:1" {
				t.Errorf("with one alive among the ejected: %q", got)
			}
		})
	})
	t.Run("not one the control plane calls unhealthy", func(t *testing.T) {
		run(t, func(w *world) {
			c := static("10.0.0.1:1")
			c.Outlier = outlier
			w.m.Set(c, true)
			eject(w, "10.0.0.1:1")
			w.n.set(func() { w.n.dead["10.0.0.1:1"] = false })
			sick := static("10.0.0.1:1")
			sick.Outlier = outlier
			sick.Endpoints.Endpoints[0].Health = model.Unhealthy
			w.m.Set(sick, true)
			if got := w.to(upstream.Request{}); got != accesslog.NoHealthyUpstream.String() {
				t.Errorf("got %q", got)
			}
		})
	})
}

func TestNamesAreLookedUpAgainAndAgain(t *testing.T) {
	run(t, func(w *world) {
		w.n.names["db.example"] = []string{"10.0.0.2", "10.0.0.1"}
		c := static()
		c.Type = model.StrictDNS
		c.Endpoints = &model.LoadAssignment{Localities: []model.Locality{{}}, Endpoints: []model.Endpoint{{Address: model.Address{Host: "db.example", Port: 5}, Weight: 1}}}
		c.DNS.Refresh = 5 * time.Second
		w.m.Set(c, false)
		synctest.Wait()
		if len(w.warm) != 1 {
			t.Fatalf("warm: %v", w.warm)
		}
		seen := map[string]bool{w.to(upstream.Request{}): true, w.to(upstream.Request{}): true}
		if !seen["10.0.0.1:5"] || !seen["10.0.0.2:5"] {
			t.Errorf("connected to %v", seen)
		}
		w.n.set(func() { w.n.names["db.example"] = []string{"10.0.0.3"} })
		time.Sleep(6 * time.Second)
		if got := w.to(upstream.Request{}); got != "10.0.0.3:5" {
			t.Errorf("after a change: %q", got)
		}
		w.n.set(func() { delete(w.n.names, "db.example") })
		time.Sleep(time.Minute)
		if got := w.to(upstream.Request{}); got != "10.0.0.3:5" {
			t.Errorf("while lookups fail: %q, want the last known", got)
		}
		w.n.set(func() { w.n.names["db.example"] = nil })
		time.Sleep(6 * time.Second)
		if got := w.to(upstream.Request{}); got != "UH" {
			t.Errorf("after an empty answer: %q", got)
		}
		w.m.Remove("c")
		synctest.Wait()
		looks := w.n.looks
		time.Sleep(time.Minute)
		if w.n.looks != looks {
			t.Error("a removed cluster looks names up")
		}
	})
}

func TestAggregateFailsOver(t *testing.T) {
	run(t, func(w *world) {
		member := func(name, addr string) *model.Cluster {
			c := static(addr)
			c.Name = name
			return c
		}
		first := member("first", "10.0.0.1:1")
		w.m.Set(first, true)
		w.m.Set(member("second", "10.0.0.2:1"), true)
		w.m.Set(&model.Cluster{Name: "c", Type: model.Aggregate, Members: []string{"missing", "first", "second"}, ConnectTimeout: time.Second, Breakers: [2]model.Breaker{{MaxConnections: 10}}}, true)
		if got := w.to(upstream.Request{}); got != "10.0.0.1:1" {
			t.Errorf("both fit: %q", got)
		}
		sick := member("first", "10.0.0.1:1")
		sick.Endpoints.Endpoints[0].Health = model.Unhealthy
		w.m.Set(sick, true)
		if got := w.to(upstream.Request{}); got != "10.0.0.2:1" {
			t.Errorf("the first is sick: %q", got)
		}
		w.m.Set(first, true)
		w.n.dead["10.0.0.1:1"] = true
		if got := w.to(upstream.Request{}); got != "10.0.0.2:1" {
			t.Errorf("the first refuses: %q", got)
		}
	})
}

func TestOriginalDestination(t *testing.T) {
	run(t, func(w *world) {
		w.m.Set(&model.Cluster{Name: "c", Type: model.OriginalDst, ConnectTimeout: time.Second, Breakers: [2]model.Breaker{{MaxConnections: 10}}}, true)
		if got := w.to(upstream.Request{Destination: model.Address{Host: "10.9.9.9", Port: 9}}); got != "10.9.9.9:9" {
			t.Errorf("got %q", got)
		}
		if got := w.to(upstream.Request{}); got != "UH" {
			t.Errorf("without a destination: %q", got)
		}
	})
}

func BenchmarkConnect(b *testing.B) {
	m := upstream.NewManager(upstream.Config{Dial: func(context.Context, string, string) (net.Conn, error) { return nopConn{}, nil }})
	m.Set(static("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"), true)
	b.ReportAllocs()
	for b.Loop() {
		c, _, err := m.Get("c").Connect(context.Background(), upstream.Request{})
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

type nopConn struct{ net.Conn }

func (nopConn) Close() error { return nil }
