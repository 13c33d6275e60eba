package cache_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

type request struct {
	read.Options
	Name string
	Tags map[string]string
}

type reply struct {
	read.Meta
	Value string
}

var call = rpc.Read[request, reply]("Test.Get")

// A server answers call like the servers do: at once, or once its index passes the one asked for.
type server struct {
	mu       sync.Mutex
	index    uint64
	value    string
	err      error
	changed  chan struct{}
	instant  bool // never blocks
	asked    int
	inFlight int
	requests []request
	patient  []bool // whether the call may be held until a server can be reached
	times    []time.Time
}

func newServer() *server { return &server{index: 5, value: "a", changed: make(chan struct{})} }

func (s *server) set(index uint64, value string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index, s.value, s.err = index, value, err
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *server) count() (asked, inFlight int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked, s.inFlight
}

func (s *server) Call(ctx context.Context, d rpc.Descriptor, req, resp any) error {
	r := *req.(*request)
	s.mu.Lock()
	s.asked++
	s.inFlight++
	s.requests = append(s.requests, r)
	s.patient = append(s.patient, !rpc.IsImpatient(ctx))
	s.times = append(s.times, time.Now())
	defer func() {
		s.inFlight--
		s.mu.Unlock()
	}()
	limit := time.After(r.MaxWait)
	for s.err == nil && r.MinIndex > 0 && s.index <= r.MinIndex && !s.instant {
		changed := s.changed
		s.mu.Unlock()
		var err error
		expired := false
		select {
		case <-changed:
		case <-limit:
			expired = true
		case <-ctx.Done():
			err = ctx.Err()
		}
		s.mu.Lock()
		if err != nil {
			return err
		}
		if expired {
			break
		}
	}
	if s.err != nil {
		return s.err
	}
	*resp.(*reply) = reply{Meta: read.Meta{Index: s.index}, Value: s.value + r.Name}
	return nil
}

// run runs f in a bubble with a running cache.
func run(t *testing.T, cfg cache.Config, f func(t *testing.T, c *cache.Cache, s *server)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		c := cache.New(s, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		f(t, c, s)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		if _, n := s.count(); n != 0 {
			t.Errorf("%d calls in flight after Run returned", n)
		}
		if _, _, err := cache.Get(t.Context(), c, call, &request{}); !errors.Is(err, cache.ErrStopped) {
			t.Errorf("Get after Run = %v, want ErrStopped", err)
		}
	})
}

func mustGet(t *testing.T, c *cache.Cache, req *request) (string, cache.Info) {
	t.Helper()
	r, info, err := cache.Get(t.Context(), c, call, req)
	if err != nil {
		t.Fatal(err)
	}
	return r.Value, info
}

func TestViewIsFetchedOnceAndKeptFresh(t *testing.T) {
	run(t, cache.Config{}, func(t *testing.T, c *cache.Cache, s *server) {
		if v, info := mustGet(t, c, &request{}); v != "a" || info.Hit || info.Index != 5 {
			t.Errorf("first Get = %q, %+v; want a miss of a at index 5", v, info)
		}
		time.Sleep(10 * time.Second)
		if v, info := mustGet(t, c, &request{}); v != "a" || !info.Hit || info.Age != 0 {
			t.Errorf("second Get = %q, %+v; want a fresh hit", v, info)
		}
		s.set(6, "b", nil)
		synctest.Wait()
		if v, info := mustGet(t, c, &request{}); v != "b" || !info.Hit || info.Index != 6 {
			t.Errorf("Get after a change = %q, %+v; want a hit of b at index 6", v, info)
		}
		if asked, inFlight := s.count(); asked != 3 || inFlight != 1 {
			t.Errorf("asked %d times, %d in flight; want 3 and the standing one", asked, inFlight)
		}
		for i, r := range s.requests {
			if r.Mode != read.Stale {
				t.Errorf("request %d has mode %v, want stale", i, r.Mode)
			}
		}
	})
}

func TestViewsAreKeyedByRequestAndToken(t *testing.T) {
	run(t, cache.Config{}, func(t *testing.T, c *cache.Cache, s *server) {
		with := func(f func(*request)) *request {
			r := &request{Name: "web", Tags: map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"}}
			f(r)
			return r
		}
		mustGet(t, c, with(func(*request) {}))
		tests := []struct {
			name string
			req  *request
			hit  bool
		}{
			{"equal", with(func(*request) {}), true},
			{"mode does not matter", with(func(r *request) { r.Mode = read.Default; r.MaxStale = 3 }), true},
			{"another name", with(func(r *request) { r.Name = "db" }), false},
			{"another token", with(func(r *request) { r.Token = "t" }), false},
			{"another datacenter", with(func(r *request) { r.Datacenter = "dc2" }), false},
			{"another filter", with(func(r *request) { r.Filter = "x" }), false},
			{"another map", with(func(r *request) { r.Tags["a"] = "2" }), false},
		}
		for _, tt := range tests {
			if _, info := mustGet(t, c, tt.req); info.Hit != tt.hit {
				t.Errorf("%s: hit = %t, want %t", tt.name, info.Hit, tt.hit)
			}
		}
	})
}

func TestConcurrentMissesShareOneFetch(t *testing.T) {
	run(t, cache.Config{}, func(t *testing.T, c *cache.Cache, s *server) {
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { mustGet(t, c, &request{}) })
		}
		wg.Wait()
		synctest.Wait()
		if asked, _ := s.count(); asked != 2 {
			t.Errorf("asked %d times, want the first fetch and the standing query", asked)
		}
	})
}

func TestBlockingGet(t *testing.T) {
	run(t, cache.Config{}, func(t *testing.T, c *cache.Cache, s *server) {
		mustGet(t, c, &request{})
		start := time.Now()
		go func() {
			time.Sleep(3 * time.Second)
			s.set(9, "b", nil)
		}()
		v, info := mustGet(t, c, &request{Options: read.Options{MinIndex: 5, MaxWait: time.Minute}})
		if took := time.Since(start); v != "b" || info.Hit || info.Index != 9 || took != 3*time.Second {
			t.Errorf("woken Get = %q, %+v after %v; want a miss of b at 9 after 3s", v, info, took)
		}
		start = time.Now()
		v, info = mustGet(t, c, &request{Options: read.Options{MinIndex: 9, MaxWait: 16 * time.Second}})
		if took := time.Since(start); v != "b" || info.Hit || took < 16*time.Second || took > 17*time.Second {
			t.Errorf("Get without a change = %q, %+v after %v; want b after 16s to 17s", v, info, took)
		}
		v, info = mustGet(t, c, &request{Options: read.Options{MinIndex: 3}})
		if v != "b" || info.Hit {
			t.Errorf("Get for a passed index = %q, %+v; want b, not a hit", v, info)
		}
	})
}

// The age of an answer is known only if the standing query fails when contact is lost, not when it would have ended.
func TestStandingQueriesLearnAtOnceThatContactIsLost(t *testing.T) {
	run(t, cache.Config{}, func(t *testing.T, c *cache.Cache, s *server) {
		if _, _, err := cache.Get(t.Context(), c, call, &request{Name: "x"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.patient) != 2 || !s.patient[0] || s.patient[1] {
			t.Errorf("patient: %v, want the first query to be, and the standing one not", s.patient)
		}
	})
}

func TestLostServersLeaveTheAnswerWithGrowingAge(t *testing.T) {
	run(t, cache.Config{}, func(t *testing.T, c *cache.Cache, s *server) {
		mustGet(t, c, &request{})
		s.set(5, "a", wireerr.ErrNoServers)
		synctest.Wait()
		s.mu.Lock()
		s.times = nil
		s.mu.Unlock()
		time.Sleep(90 * time.Second)
		if v, info := mustGet(t, c, &request{}); v != "a" || !info.Hit || info.Age != 90*time.Second {
			t.Errorf("Get 90s after the loss = %q, %+v; want a hit of age 90s", v, info)
		}
		time.Sleep(30 * time.Minute)
		s.mu.Lock()
		for i := 1; i < len(s.times); i++ {
			gap := s.times[i].Sub(s.times[i-1])
			switch failures := i + 1; {
			case failures <= 3 && gap > 500*time.Millisecond:
				t.Errorf("pause %d = %v, want hardly any", i, gap)
			case failures > 12 && (gap < time.Minute || gap > 2*time.Minute):
				t.Errorf("pause %d = %v, want one to two minutes", i, gap)
			}
		}
		s.mu.Unlock()
		s.set(7, "b", nil)
		c.Retry()
		synctest.Wait()
		if v, info := mustGet(t, c, &request{}); v != "b" || info.Age != 0 {
			t.Errorf("Get after recovery = %q, %+v; want b of age 0", v, info)
		}
	})
}

func TestFirstFailureIsReturnedAndNotKept(t *testing.T) {
	run(t, cache.Config{}, func(t *testing.T, c *cache.Cache, s *server) {
		s.set(5, "a", wireerr.ErrNoLeader)
		for range 3 {
			if _, _, err := cache.Get(t.Context(), c, call, &request{}); !errors.Is(err, wireerr.ErrNoLeader) {
				t.Errorf("Get = %v, want no leader", err)
			}
		}
		if got := c.Stats(); got.Views != 0 {
			t.Errorf("%d views after failures, want none", got.Views)
		}
		s.set(5, "a", nil)
		mustGet(t, c, &request{})
	})
}

func TestRefusedViewForgetsItsAnswer(t *testing.T) {
	run(t, cache.Config{}, func(t *testing.T, c *cache.Cache, s *server) {
		mustGet(t, c, &request{})
		s.set(6, "secret", wireerr.ErrTokenNotFound)
		synctest.Wait()
		if r, _, ok := cache.Peek(c, call, &request{}); ok {
			t.Errorf("Peek after the token was revoked = %v", r.Value)
		}
		if _, _, err := cache.Get(t.Context(), c, call, &request{}); !errors.Is(err, wireerr.ErrTokenNotFound) {
			t.Errorf("Get after the token was revoked = %v", err)
		}
	})
}

func TestWatch(t *testing.T) {
	run(t, cache.Config{TTL: time.Hour}, func(t *testing.T, c *cache.Cache, s *server) {
		var got []string
		record := func(r *reply, err error) {
			if err != nil {
				got = append(got, err.Error())
			} else {
				got = append(got, r.Value)
			}
		}
		want := func(vs ...string) {
			t.Helper()
			synctest.Wait()
			if fmt.Sprint(got) != fmt.Sprint(vs) {
				t.Errorf("watcher saw %q, want %q", got, vs)
			}
		}
		cancel := cache.Watch(c, call, &request{}, record)
		want("a")
		s.set(6, "b", nil)
		want("a", "b")
		s.set(6, "b", wireerr.ErrNoLeader)
		time.Sleep(time.Minute) // several failures of one kind are told once
		want("a", "b", "No cluster leader")
		s.set(6, "b", nil)
		time.Sleep(2 * time.Minute)
		want("a", "b", "No cluster leader", "b")
		time.Sleep(3 * time.Hour)
		if n := c.Stats().Views; n != 1 {
			t.Errorf("%d views, want the watched one not to expire", n)
		}
		want("a", "b", "No cluster leader", "b")
		cancel()
		s.set(7, "c", nil)
		want("a", "b", "No cluster leader", "b")
		time.Sleep(2 * time.Hour)
		if n := c.Stats().Views; n != 0 {
			t.Errorf("%d views long after cancel, want none", n)
		}
		if _, n := s.count(); n != 0 {
			t.Errorf("%d standing queries long after cancel, want none", n)
		}
	})
}

func TestWatchOfAStandingViewStartsWithItsAnswer(t *testing.T) {
	run(t, cache.Config{}, func(t *testing.T, c *cache.Cache, s *server) {
		mustGet(t, c, &request{})
		s.set(5, "a", wireerr.ErrNoServers)
		synctest.Wait()
		var values []string
		cancel := cache.Watch(c, call, &request{}, func(r *reply, err error) {
			if err == nil {
				values = append(values, r.Value)
			}
		})
		defer cancel()
		if fmt.Sprint(values) != "[a]" {
			t.Errorf("watch made while the servers are lost saw %q, want the kept answer", values)
		}
	})
}

func TestWatchersOfOneViewMayComeAndGoInCallbacks(t *testing.T) {
	run(t, cache.Config{}, func(t *testing.T, c *cache.Cache, s *server) {
		var inner []string
		var cancelInner func()
		cancel := cache.Watch(c, call, &request{}, func(r *reply, err error) {
			if cancelInner == nil {
				cancelInner = cache.Watch(c, call, &request{}, func(r *reply, err error) {
					inner = append(inner, r.Value)
				})
			}
		})
		synctest.Wait()
		s.set(6, "b", nil)
		synctest.Wait()
		if fmt.Sprint(inner) != "[a b]" {
			t.Errorf("watcher made inside a callback saw %q", inner)
		}
		cancel()
		cancelInner()
	})
}

func TestUnusedViewExpires(t *testing.T) {
	run(t, cache.Config{}, func(t *testing.T, c *cache.Cache, s *server) {
		mustGet(t, c, &request{})
		time.Sleep(71 * time.Hour)
		if _, info := mustGet(t, c, &request{}); !info.Hit {
			t.Error("a view used 71h ago is gone")
		}
		time.Sleep(74 * time.Hour)
		if n := c.Stats().Views; n != 0 {
			t.Errorf("%d views after 74h of disuse", n)
		}
		if _, info := mustGet(t, c, &request{}); info.Hit {
			t.Error("hit after expiry")
		}
	})
}

func TestFullCacheDropsTheLeastRecentlyUsed(t *testing.T) {
	run(t, cache.Config{MaxEntries: 32}, func(t *testing.T, c *cache.Cache, s *server) {
		for i := range 100 {
			mustGet(t, c, &request{Name: fmt.Sprint(i)})
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		if n := c.Stats().Views; n > 32 {
			t.Errorf("%d views, want at most 32", n)
		}
		if _, n := s.count(); n > 32 {
			t.Errorf("%d standing queries, want at most 32", n)
		}
		if _, info := mustGet(t, c, &request{Name: "99"}); !info.Hit {
			t.Error("the most recent view is gone")
		}
		if _, info := mustGet(t, c, &request{Name: "0"}); info.Hit {
			t.Error("the oldest view is still there")
		}
	})
}

func TestCacheFullOfWatchesAnswersWithoutView(t *testing.T) {
	run(t, cache.Config{MaxEntries: 2}, func(t *testing.T, c *cache.Cache, s *server) {
		for i := range 3 {
			defer cache.Watch(c, call, &request{Name: fmt.Sprint(i)}, func(*reply, error) {})()
		}
		for range 2 {
			if v, info := mustGet(t, c, &request{Name: "x"}); v != "ax" || info.Hit {
				t.Errorf("Get = %q, %+v; want a direct answer", v, info)
			}
		}
		if got := c.Stats(); got.Views != 3 || got.Watched != 3 {
			t.Errorf("stats %+v, want the three watched views alone", got)
		}
	})
}

func TestServerThatNeverBlocksIsNotHammered(t *testing.T) {
	run(t, cache.Config{}, func(t *testing.T, c *cache.Cache, s *server) {
		s.instant = true
		mustGet(t, c, &request{})
		time.Sleep(100 * time.Second)
		if asked, _ := s.count(); asked > 110 {
			t.Errorf("asked %d times in 100s", asked)
		}
	})
}

func TestFetchRate(t *testing.T) {
	run(t, cache.Config{FetchRate: 1, FetchBurst: 3}, func(t *testing.T, c *cache.Cache, s *server) {
		mustGet(t, c, &request{})
		for i := range 100 { // ten changes per second for ten seconds
			time.Sleep(100 * time.Millisecond)
			s.set(uint64(10+i), "b", nil)
		}
		if asked, _ := s.count(); asked < 10 || asked > 14 {
			t.Errorf("asked %d times in 10s, want one a second and a burst of 3", asked)
		}
	})
}

func TestIndexGoingBackwards(t *testing.T) {
	run(t, cache.Config{MaxWait: time.Minute}, func(t *testing.T, c *cache.Cache, s *server) {
		mustGet(t, c, &request{})
		s.set(2, "restored", nil)
		time.Sleep(2 * time.Minute)
		if v, info := mustGet(t, c, &request{}); v != "restored" || info.Index != 2 {
			t.Errorf("Get after a restore = %q, %+v; want restored at 2", v, info)
		}
		s.set(3, "next", nil)
		synctest.Wait()
		if v, _ := mustGet(t, c, &request{}); v != "next" {
			t.Errorf("Get = %q, want next", v)
		}
	})
}

func TestIndexOfViews(t *testing.T) {
	run(t, cache.Config{TTL: time.Hour}, func(t *testing.T, c *cache.Cache, s *server) {
		x := cache.NewIndex(c, call, func(name string) *request { return &request{Name: name} })
		if _, _, ok := x.Peek("web"); ok {
			t.Error("Peek before Get found something")
		}
		if r, info, err := x.Get(t.Context(), "web"); err != nil || r.Value != "aweb" || info.Hit {
			t.Fatalf("Get = %v, %+v, %v", r, info, err)
		}
		if _, info := mustGet(t, c, &request{Name: "web"}); !info.Hit {
			t.Error("the index does not share the view of Get")
		}
		if r, info, ok := x.Peek("web"); !ok || r.Value != "aweb" || !info.Hit {
			t.Errorf("Peek = %v, %+v, %t", r, info, ok)
		}
		if n := testing.AllocsPerRun(10_000, func() { x.Peek("web") }); n != 0 {
			t.Errorf("Peek allocates %v times", n)
		}
		time.Sleep(2 * time.Hour)
		if _, _, ok := x.Peek("web"); ok {
			t.Error("Peek after expiry found something")
		}
		if _, info, err := x.Get(t.Context(), "web"); err != nil || info.Hit {
			t.Errorf("Get after expiry = %+v, %v; want a miss", info, err)
		}
	})
}

func TestKeep(t *testing.T) {
	run(t, cache.Config{TTL: time.Hour}, func(t *testing.T, c *cache.Cache, s *server) {
		keep := func(ctl cache.Control) string {
			r, info, err := cache.Keep(t.Context(), c, call, &request{}, ctl)
			if err != nil {
				return err.Error()
			}
			return fmt.Sprintf("%s hit=%t age=%v", r.Value, info.Hit, info.Age)
		}
		steps := []struct {
			name string
			ctl  cache.Control
			do   func()
			want string
		}{
			{name: "first is a miss", want: "a hit=false age=0s"},
			{name: "kept", want: "a hit=true age=0s"},
			{name: "not refreshed", do: func() { s.set(6, "b", nil); time.Sleep(2 * time.Second) }, want: "a hit=true age=2s"},
			{name: "young enough", ctl: cache.Control{MaxAge: time.Minute}, want: "a hit=true age=2s"},
			{name: "too old", ctl: cache.Control{MaxAge: time.Second}, want: "b hit=false age=0s"},
			{name: "revalidated", do: func() { s.set(7, "c", nil) }, ctl: cache.Control{MustRevalidate: true}, want: "c hit=false age=0s"},
			{name: "fetch fails", do: func() { s.set(7, "c", wireerr.ErrNoLeader); time.Sleep(3 * time.Second) },
				ctl: cache.Control{MaxAge: time.Second}, want: "No cluster leader"},
			{name: "fetch fails, old answer will do", ctl: cache.Control{MaxAge: time.Second, StaleIfError: time.Minute}, want: "c hit=true age=3s"},
			{name: "too old even then", ctl: cache.Control{MaxAge: time.Second, StaleIfError: 2 * time.Second}, want: "No cluster leader"},
			{name: "forgotten after the TTL", do: func() { time.Sleep(2 * time.Hour); s.set(8, "d", nil) }, want: "d hit=false age=0s"},
		}
		for _, st := range steps {
			if st.do != nil {
				st.do()
			}
			if got := keep(st.ctl); got != st.want {
				t.Errorf("%s: %s; want %s", st.name, got, st.want)
			}
		}
	})
}

func TestGetBeforeRunWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cache.New(newServer(), cache.Config{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := cache.Get(ctx, c, call, &request{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Get without Run = %v, want it to wait", err)
		}
		stopped, stop := context.WithCancel(t.Context())
		go c.Run(stopped)
		if r, _, err := cache.Get(t.Context(), c, call, &request{}); err != nil || r.Value != "a" {
			t.Errorf("Get = %v, %v", r, err)
		}
		stop()
	})
}

func BenchmarkIndexPeek(b *testing.B) {
	s := newServer()
	c := cache.New(s, cache.Config{})
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	x := cache.NewIndex(c, call, func(name string) *request { return &request{Name: name} })
	if _, _, err := x.Get(ctx, "web"); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		x.Peek("web")
	}
	cancel()
	<-done
}
