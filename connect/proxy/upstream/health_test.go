package upstream_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
)

// site is a network of HTTP/1.1 hosts that answer health checks.
type site struct {
	mu     sync.Mutex
	status map[string]int    // by address; 0 refuses connections, -1 never answers
	header map[string]string // "name: value"
	asked  map[string][]time.Duration
	start  time.Time
}

func (s *site) set(addr string, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status[addr] = status
}

func (s *site) say(addr, header string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.header[addr] = header
}

// times returns when a host was asked.
func (s *site) times(addr string) []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked[addr])
}

func (s *site) dial(_ context.Context, _, addr string) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status[addr] == 0 {
		return nil, errors.New("connection refused")
	}
	a, b := net.Pipe()
	go func() {
		defer b.Close()
		br := bufio.NewReader(b)
		for {
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			s.mu.Lock()
			status, header := s.status[addr], s.header[addr]
			s.asked[addr] = append(s.asked[addr], time.Since(s.start))
			s.mu.Unlock()
			if status < 0 {
				continue
			}
			if header != "" {
				header += "\r\n"
			}
			fmt.Fprintf(b, "HTTP/1.1 %d X\r\n%sContent-Length: 0\r\n\r\n", status, header)
		}
	}()
	return a, nil
}

// checked runs f with a manager whose hosts are those of a site.
func checked(t *testing.T, f func(t *testing.T, s *site, m *upstream.Manager, st *stats.Store)) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{status: map[string]int{}, header: map[string]string{}, asked: map[string][]time.Duration{}, start: time.Now()}
		st := stats.NewStore(nil)
		m := upstream.NewManager(upstream.Config{Dial: s.dial, Stats: st, Rand: func() uint64 { return 0 }})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		synctest.Wait()
		f(t, s, m, st)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func withCheck(addrs ...string) *model.Cluster {
	c := static(addrs...)
	c.PanicThreshold = 0
	c.HealthCheck = &model.HealthCheck{
		Timeout: time.Second, Interval: 10 * time.Second, NoTraffic: 10 * time.Second, UnhealthyInterval: 4 * time.Second,
		Unhealthy: 3, Healthy: 2, HTTP: &model.HTTPCheck{Method: "GET", Path: "/health", Retry: []model.StatusRange{{Start: 500, End: 501}}},
	}
	return c
}

// chosen returns the hosts that can be chosen.
func chosen(m *upstream.Manager) string {
	c := m.Get("c")
	if c == nil {
		return "warming"
	}
	seen := map[string]bool{}
	for range 30 {
		if _, h, err := c.Choose(&upstream.Choice{}); err == nil {
			seen[h.String()] = true
		}
	}
	var out []string
	for _, h := range m.Clusters()[0].Hosts {
		if a := h.Endpoint.Address.String(); seen[a] {
			out = append(out, a[strings.LastIndex(a[:len(a)-2], ".")+1:len(a)-2])
		}
	}
	return strings.Join(out, ",")
}

func TestClusterIsWarmOnceAllHostsWereChecked(t *testing.T) {
	checked(t, func(t *testing.T, s *site, m *upstream.Manager, st *stats.Store) {
		s.set("10.0.0.1:1", 200)
		s.set("10.0.0.2:1", -1)
		m.Set(withCheck("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"), false)
		synctest.Wait()
		if got := chosen(m); got != "warming" {
			t.Errorf("while a host does not answer: %s", got)
		}
		time.Sleep(1100 * time.Millisecond) // its time is up
		synctest.Wait()
		if got := chosen(m); got != "1" {
			t.Errorf("after the first round hosts %q are used, want 1", got)
		}
		for name, want := range map[string]float64{"attempt": 3, "success": 1, "failure": 2, "network_failure": 2, "healthy": 1} {
			if got := st.Value("cluster.c.health_check." + name); got != want {
				t.Errorf("%s is %v, want %v", name, got, want)
			}
		}
	})
}

func TestThresholds(t *testing.T) {
	checked(t, func(t *testing.T, s *site, m *upstream.Manager, st *stats.Store) {
		const a = "10.0.0.1:1"
		s.set(a, 200)
		s.set("10.0.0.2:1", 200)
		m.Set(withCheck(a, "10.0.0.2:1"), false)
		synctest.Wait()
		want := func(when, hosts string) {
			t.Helper()
			synctest.Wait()
			if got := chosen(m); got != hosts {
				t.Errorf("%s: hosts %q, want %q", when, got, hosts)
			}
		}
		want("at first", "1,2")
		if conn, _, err := m.Get("c").Connect(context.Background(), upstream.Request{}); err == nil {
			conn.Close() // there is traffic, which lets failed checks be repeated sooner
		}
		time.Sleep(5 * time.Second) // between checks
		s.set(a, 500)
		time.Sleep(6 * time.Second) // 11 s
		want("after one failure that may be retried", "1,2")
		time.Sleep(4 * time.Second) // 15 s
		want("after two", "1,2")
		time.Sleep(4 * time.Second) // 19 s
		want("after three", "2")
		s.set(a, 200)
		time.Sleep(4 * time.Second)
		want("after one success", "2")
		time.Sleep(10 * time.Second)
		want("after two successes", "1,2")
		s.set(a, 404)
		time.Sleep(10 * time.Second)
		want("a status that is neither expected nor to retry", "2")
		s.set(a, 200)
		time.Sleep(30 * time.Second)
		want("well again", "1,2")
		// A host that closed the connection meanwhile is not sick for that.
		s.set(a, -1)
		time.Sleep(30 * time.Second)
		want("it never answers", "2")
		for i, at := range s.times(a)[1:] {
			if d := at - s.times(a)[i]; d < 3*time.Second || d > 12*time.Second {
				t.Errorf("checks %v apart", d)
			}
		}
	})
}

func TestHostSaysItIsDegradedOrWantsOut(t *testing.T) {
	checked(t, func(t *testing.T, s *site, m *upstream.Manager, st *stats.Store) {
		s.set("10.0.0.1:1", 200)
		s.set("10.0.0.2:1", 200)
		s.say("10.0.0.2:1", "x-envoy-degraded: true")
		m.Set(withCheck("10.0.0.1:1", "10.0.0.2:1"), false)
		synctest.Wait()
		if got := st.Value("cluster.c.membership_degraded"); got != 1 {
			t.Errorf("%v hosts are degraded, want 1", got)
		}
		s.say("10.0.0.2:1", "x-envoy-immediate-health-check-fail: true")
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if got := chosen(m); got != "1" {
			t.Errorf("a host that wants out is used: %q", got)
		}
		_, h, _ := m.Get("c").Choose(&upstream.Choice{})
		m.Get("c").FailHealth(h)
		if got := chosen(m); got != "" {
			t.Errorf("a host that asked for it in a response is used: %q", got)
		}
		if got := st.Value("cluster.c.health_check.passive_failure"); got != 1 {
			t.Errorf("passive failures: %v", got)
		}
		time.Sleep(40 * time.Second)
		synctest.Wait()
		if got := chosen(m); got != "1" {
			t.Errorf("once it passed twice: %q", got)
		}
	})
}

func TestRemovedHostStaysWhileItPasses(t *testing.T) {
	checked(t, func(t *testing.T, s *site, m *upstream.Manager, st *stats.Store) {
		s.set("10.0.0.1:1", 200)
		s.set("10.0.0.2:1", 200)
		c := withCheck()
		c.Type, c.EDSName, c.Endpoints = model.EDS, "c", nil
		m.Set(c, false)
		m.SetEndpoints(hosts("c", "10.0.0.1:1", "10.0.0.2:1"))
		synctest.Wait()
		_, h, _ := m.Get("c").Choose(&upstream.Choice{OverrideHost: "10.0.0.2:1"})
		p := new(closer)
		h.Pool(func() any { return p })
		m.SetEndpoints(hosts("c", "10.0.0.1:1"))
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := chosen(m); got != "1,2" {
			t.Errorf("while it passes: %q", got)
		}
		s.set("10.0.0.2:1", 503)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if got := chosen(m); got != "1" || p.closed.Load() != 1 {
			t.Errorf("when it fails: %q, its pool was closed %d times", got, p.closed.Load())
		}
		if got := st.Value("cluster.c.membership_total"); got != 1 {
			t.Errorf("%v members", got)
		}
		asked := len(s.times("10.0.0.2:1"))
		time.Sleep(time.Minute)
		if len(s.times("10.0.0.2:1")) != asked {
			t.Error("a host that is gone is still checked")
		}
		// A change of the cluster does not forget what is known.
		again := *c
		again.ConnectTimeout = 7 * time.Second
		s.set("10.0.0.1:1", -1)
		m.Set(&again, false)
		if got := m.Get("c").Model().ConnectTimeout; got != 7*time.Second {
			t.Error("a new version waits though its hosts are known")
		}
		if got := chosen(m); got != "1" {
			t.Errorf("after a change: %q", got)
		}
	})
}

func TestFailedHostsAreDisconnected(t *testing.T) {
	checked(t, func(t *testing.T, s *site, m *upstream.Manager, _ *stats.Store) {
		s.set("10.0.0.1:1", 200)
		c := withCheck("10.0.0.1:1")
		c.CloseOnFailure = true
		m.Set(c, false)
		synctest.Wait()
		conn, _, err := m.Get("c").Connect(context.Background(), upstream.Request{})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ended := make(chan time.Duration, 1)
		go func() { conn.Read(make([]byte, 1)); ended <- time.Since(s.start) }()
		s.set("10.0.0.1:1", 418)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		select {
		case at := <-ended:
			if at < 10*time.Second {
				t.Errorf("closed after %v", at)
			}
		default:
			t.Error("still open though its host fails its checks")
		}
	})
}

// outliers runs f with a cluster of n hosts.
func outliers(t *testing.T, n int, o model.Outlier, f func(c *upstream.Cluster, hosts []*upstream.Host, value func(string) float64)) {
	checked(t, func(t *testing.T, s *site, m *upstream.Manager, st *stats.Store) {
		c := static(addresses(n)...)
		o.Interval, o.BaseEjection, o.MaxEjection = 10*time.Second, 30*time.Second, 300*time.Second
		if o.MaxEjectionPercent == 0 {
			o.MaxEjectionPercent = 100
		}
		c.Outlier = &o
		m.Set(c, true)
		var list []*upstream.Host
		for _, a := range addresses(n) {
			_, h, _ := m.Get("c").Choose(&upstream.Choice{OverrideHost: a})
			list = append(list, h)
		}
		f(m.Get("c"), list, func(name string) float64 { return st.Value("cluster.c.outlier_detection." + name) })
		m.Remove("c")
	})
}

func report(c *upstream.Cluster, h *upstream.Host, n int, r upstream.Result) {
	for range n {
		c.Report(h, r)
	}
}

func TestConsecutiveFailures(t *testing.T) {
	status := func(s int) upstream.Result { return upstream.Result{Status: s} }
	tests := []struct {
		name string
		o    model.Outlier
		do   []upstream.Result // repeated four times
		stat string            // that grows
	}{
		{"5xx", model.Outlier{Consecutive5xx: 4, EnforceConsecutive5xx: 100}, []upstream.Result{status(500)}, "enforced_consecutive_5xx"},
		{"5xx with a success in between", model.Outlier{Consecutive5xx: 4, EnforceConsecutive5xx: 100}, []upstream.Result{status(500), status(200)}, ""},
		{"500 is no gateway failure", model.Outlier{ConsecutiveGateway: 3, EnforceGateway: 100}, []upstream.Result{status(500)}, ""},
		{"gateway failures", model.Outlier{ConsecutiveGateway: 4, EnforceGateway: 100}, []upstream.Result{status(503)}, "enforced_consecutive_gateway_failure"},
		{"gateway failures with a 500 in between", model.Outlier{ConsecutiveGateway: 3, EnforceGateway: 100}, []upstream.Result{status(503), status(500)}, ""},
		{"not enforced", model.Outlier{ConsecutiveGateway: 4}, []upstream.Result{status(503)}, "detected_consecutive_gateway_failure"},
		{"timeouts are 504", model.Outlier{ConsecutiveGateway: 4, EnforceGateway: 100}, []upstream.Result{{Local: upstream.LocalTimeout}}, "enforced_consecutive_gateway_failure"},
		{"resets are 503", model.Outlier{Consecutive5xx: 4, EnforceConsecutive5xx: 100}, []upstream.Result{{Local: upstream.LocalReset}}, "enforced_consecutive_5xx"},
		{"unavailable by gRPC", model.Outlier{ConsecutiveGateway: 4, EnforceGateway: 100}, []upstream.Result{{Status: 200, GRPC: true, GRPCStatus: 14}}, "enforced_consecutive_gateway_failure"},
		{"not found by gRPC", model.Outlier{Consecutive5xx: 3, EnforceConsecutive5xx: 100}, []upstream.Result{{Status: 200, GRPC: true, GRPCStatus: 5}}, ""},
		{"local errors apart", model.Outlier{SplitLocalErrors: true, ConsecutiveLocal: 4, EnforceConsecutiveLocal: 100, Consecutive5xx: 1, EnforceConsecutive5xx: 100},
			[]upstream.Result{{Local: upstream.LocalReset}}, "enforced_consecutive_local_origin_failure"},
		{"answers do not excuse local errors", model.Outlier{SplitLocalErrors: true, ConsecutiveLocal: 4, EnforceConsecutiveLocal: 100},
			[]upstream.Result{{Local: upstream.LocalTimeout}, status(200)}, "enforced_consecutive_local_origin_failure"},
		{"connections excuse local errors", model.Outlier{SplitLocalErrors: true, ConsecutiveLocal: 3, EnforceConsecutiveLocal: 100},
			[]upstream.Result{{Local: upstream.LocalConnectFailure}, {Local: upstream.LocalConnected}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			outliers(t, 3, tt.o, func(c *upstream.Cluster, hosts []*upstream.Host, value func(string) float64) {
				for range 4 {
					for _, r := range tt.do {
						c.Report(hosts[0], r)
					}
				}
				ejected := 0.0
				if strings.HasPrefix(tt.stat, "enforced") {
					ejected = 1
				}
				if got := value("ejections_active"); got != ejected {
					t.Errorf("%v hosts are ejected, want %v", got, ejected)
				}
				if tt.stat != "" && value("ejections_"+tt.stat) != 1 {
					t.Errorf("%s is %v", tt.stat, value("ejections_"+tt.stat))
				}
			})
		})
	}
}

func TestSuccessRate(t *testing.T) {
	o := model.Outlier{SuccessRate: model.OutlierRate{MinHosts: 5, MinRequests: 100, Factor: 1.9, Enforce: 100}}
	outliers(t, 6, o, func(c *upstream.Cluster, hosts []*upstream.Host, value func(string) float64) {
		bad := func(failures int) {
			for i, h := range hosts {
				n := 2
				if i == 0 {
					n = failures
				}
				report(c, h, n, upstream.Result{Status: 500})
				report(c, h, 100-n, upstream.Result{Status: 200})
			}
			time.Sleep(10 * time.Second)
			synctest.Wait()
		}
		bad(2)
		if value("ejections_active") != 0 {
			t.Error("ejected though all are alike")
		}
		bad(40)
		if value("ejections_active") != 1 || value("ejections_enforced_success_rate") != 1 {
			t.Errorf("%v ejected by success rate, %v in all; want the worst", value("ejections_enforced_success_rate"), value("ejections_active"))
		}
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if value("ejections_active") != 0 {
			t.Error("not back after its time")
		}
		// Too few requests tell nothing.
		for i, h := range hosts {
			report(c, h, 90, upstream.Result{Status: 200 + 300*min(1, 1-min(1, i))})
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if value("ejections_active") != 0 {
			t.Error("ejected by too few requests")
		}
	})
}

func TestFailurePercentage(t *testing.T) {
	o := model.Outlier{FailurePercentage: model.OutlierRate{MinHosts: 2, MinRequests: 50, Factor: 85, Enforce: 100}, SuccessRate: model.OutlierRate{MinHosts: 100}}
	outliers(t, 3, o, func(c *upstream.Cluster, hosts []*upstream.Host, value func(string) float64) {
		report(c, hosts[0], 85, upstream.Result{Status: 500})
		report(c, hosts[0], 15, upstream.Result{Status: 200})
		report(c, hosts[1], 84, upstream.Result{Status: 500})
		report(c, hosts[1], 16, upstream.Result{Status: 200})
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if value("ejections_active") != 1 || value("ejections_enforced_failure_percentage") != 1 {
			t.Errorf("%v ejected, want the one with 85%%", value("ejections_active"))
		}
	})
}

func TestEjectionsGrowAndAreForgiven(t *testing.T) {
	o := model.Outlier{Consecutive5xx: 1, EnforceConsecutive5xx: 100}
	outliers(t, 3, o, func(c *upstream.Cluster, hosts []*upstream.Host, value func(string) float64) {
		lasts := func() time.Duration {
			c.Report(hosts[0], upstream.Result{Status: 500})
			start := time.Now()
			for value("ejections_active") == 1 {
				time.Sleep(time.Second)
				synctest.Wait()
			}
			return time.Since(start)
		}
		for n, want := range []time.Duration{30 * time.Second, 60 * time.Second, 90 * time.Second} {
			if got := lasts(); got < want || got > want+11*time.Second {
				t.Errorf("ejection %d lasts %v, want %v and less than an interval", n+1, got, want)
			}
		}
		time.Sleep(time.Minute) // forgives all
		synctest.Wait()
		if got := lasts(); got > 41*time.Second {
			t.Errorf("after a long time without, an ejection lasts %v", got)
		}
	})
}

func TestEjectionsAreCapped(t *testing.T) {
	for _, tt := range []struct {
		name           string
		hosts, percent int
		always         bool
		want           float64
	}{
		{"ten percent of ten", 10, 10, false, 1}, {"ten percent of nine", 9, 10, false, 0}, {"ten percent of nine, but one always", 9, 10, true, 1},
		{"half of five", 5, 50, false, 2}, {"all", 4, 100, false, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := model.Outlier{Consecutive5xx: 1, EnforceConsecutive5xx: 100, MaxEjectionPercent: uint32(tt.percent), AlwaysEjectOne: tt.always}
			outliers(t, tt.hosts, o, func(c *upstream.Cluster, hosts []*upstream.Host, value func(string) float64) {
				for _, h := range hosts {
					c.Report(h, upstream.Result{Status: 500})
				}
				if got := value("ejections_active"); got != tt.want {
					t.Errorf("%v of %d are ejected, want %v", got, tt.hosts, tt.want)
				}
				if got := value("ejections_overflow"); got != float64(tt.hosts)-tt.want {
					t.Errorf("%v were one too many, want %v", got, float64(tt.hosts)-tt.want)
				}
			})
		})
	}
}

// A host that was ejected for its answers stays out, even if nobody else is left; only one that could not be reached
// may be tried.
func TestHostEjectedForAnswersIsNotTheLastResort(t *testing.T) {
	outliers(t, 1, model.Outlier{Consecutive5xx: 1, EnforceConsecutive5xx: 100}, func(c *upstream.Cluster, hosts []*upstream.Host, _ func(string) float64) {
		c.Report(hosts[0], upstream.Result{Status: 503})
		if _, h, err := c.Choose(&upstream.Choice{}); !errors.Is(err, upstream.ErrNoHealthyUpstream) {
			t.Errorf("chose %v, %v", h, err)
		}
	})
	outliers(t, 1, model.Outlier{Consecutive5xx: 1, EnforceConsecutive5xx: 100}, func(c *upstream.Cluster, hosts []*upstream.Host, _ func(string) float64) {
		c.Report(hosts[0], upstream.Result{Local: upstream.LocalConnectFailure})
		if _, h, err := c.Choose(&upstream.Choice{}); h != hosts[0] {
			t.Errorf("chose %v, %v", h, err)
		}
	})
}

func TestGoodCheckEndsEjection(t *testing.T) {
	for _, keep := range []bool{false, true} {
		checked(t, func(t *testing.T, s *site, m *upstream.Manager, st *stats.Store) {
			s.set("10.0.0.1:1", 200)
			c := withCheck("10.0.0.1:1")
			c.Outlier = &model.Outlier{Consecutive5xx: 1, EnforceConsecutive5xx: 100, Interval: 10 * time.Second, BaseEjection: time.Hour, MaxEjectionPercent: 100, KeepDespiteCheck: keep}
			m.Set(c, true)
			synctest.Wait()
			_, h, _ := m.Get("c").Choose(&upstream.Choice{})
			m.Get("c").Report(h, upstream.Result{Status: 500})
			time.Sleep(11 * time.Second)
			synctest.Wait()
			if got := st.Value("cluster.c.outlier_detection.ejections_active") == 1; got != keep {
				t.Errorf("after a good check, ejected: %v; want %v", got, keep)
			}
		})
	}
}

func TestStaleEndpointsAreDropped(t *testing.T) {
	checked(t, func(t *testing.T, s *site, m *upstream.Manager, st *stats.Store) {
		c := static()
		c.Type, c.EDSName, c.Endpoints = model.EDS, "c", nil
		m.Set(c, false)
		la := hosts("c", "10.0.0.1:1")
		la.StaleAfter = time.Minute
		m.SetEndpoints(la)
		time.Sleep(50 * time.Second)
		m.SetEndpoints(la)
		time.Sleep(50 * time.Second)
		if got := chosen(m); got != "1" {
			t.Errorf("refreshed in time: %q", got)
		}
		time.Sleep(11 * time.Second)
		if got := chosen(m); got != "" || st.Value("cluster.c.assignment_stale") != 1 {
			t.Errorf("too old: %q", got)
		}
	})
}
