package balance

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// some returns healthy out of total hosts of one priority.
func some(priority, healthy, degraded, total int) []Host {
	var hosts []Host
	for i := range total {
		h := Host{Weight: 1, Priority: priority, Health: Unhealthy}
		switch {
		case i < healthy:
			h.Health = Healthy
		case i < healthy+degraded:
			h.Health = Degraded
		}
		hosts = append(hosts, h)
	}
	return hosts
}

func TestLoadOfPriorities(t *testing.T) {
	tests := []struct {
		name              string
		hosts             []Host
		healthy, degraded []int
	}{
		{"all healthy", slices.Concat(some(0, 4, 0, 4), some(1, 4, 0, 4)), []int{100, 0}, []int{0, 0}},
		{"72 percent healthy is still full load", slices.Concat(some(0, 72, 0, 100), some(1, 100, 0, 100)), []int{100, 0}, []int{0, 0}},
		{"71 percent healthy spills one percent", slices.Concat(some(0, 71, 0, 100), some(1, 100, 0, 100)), []int{99, 1}, []int{0, 0}},
		{"50 percent", slices.Concat(some(0, 50, 0, 100), some(1, 100, 0, 100)), []int{70, 30}, []int{0, 0}},
		{"25 percent in both is normalized", slices.Concat(some(0, 25, 0, 100), some(1, 25, 0, 100)), []int{50, 50}, []int{0, 0}},
		{"first priority empty of health", slices.Concat(some(0, 0, 0, 100), some(1, 100, 0, 100)), []int{0, 100}, []int{0, 0}},
		{"degraded take what is left", slices.Concat(some(0, 50, 50, 100)), []int{70}, []int{30}},
		{"nothing healthy is by host count", slices.Concat(some(0, 0, 0, 30), some(1, 0, 0, 10)), []int{75, 25}, []int{0, 0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := NewTable(tt.hosts, Options{PanicThreshold: 1}, 0).Loads()
			if !slices.Equal(l.Healthy, tt.healthy) || !slices.Equal(l.Degraded, tt.degraded) {
				t.Errorf("loads %v and %v, want %v and %v", l.Healthy, l.Degraded, tt.healthy, tt.degraded)
			}
		})
	}
}

func TestPanicIgnoresHealthBelowTheThreshold(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	seen := func(opt Options, hosts []Host) (map[int]bool, bool) {
		got, panicked := map[int]bool{}, false
		tb := NewTable(hosts, opt, 0)
		for range 1000 {
			p := tb.Pick(&Input{Rand: rnd.Uint64})
			panicked = panicked || p.Panic
			if p.OK {
				got[p.Host] = true
			}
		}
		return got, panicked
	}
	if got, p := seen(Options{PanicThreshold: 50, Policy: Random}, some(0, 49, 0, 100)); len(got) != 100 || !p {
		t.Errorf("49%% healthy: %d hosts used, panic %v; want all 100 in panic", len(got), p)
	}
	if got, p := seen(Options{PanicThreshold: 50, Policy: Random}, some(0, 50, 0, 100)); len(got) != 50 || p {
		t.Errorf("50%% healthy: %d hosts used, panic %v; want the 50 healthy", len(got), p)
	}
	if got, p := seen(Options{}, some(0, 1, 0, 100)); len(got) != 1 || p {
		t.Errorf("threshold 0: %d hosts used, panic %v; want the only healthy one", len(got), p)
	}
	if got, _ := seen(Options{}, some(0, 0, 0, 10)); len(got) != 0 {
		t.Errorf("threshold 0 and nobody healthy: %d hosts used, want none", len(got))
	}
	if got, p := seen(Options{PanicThreshold: 50, FailTrafficOnPanic: true}, some(0, 1, 0, 10)); len(got) != 0 || !p {
		t.Errorf("fail on panic: %d hosts used, panic %v; want none in panic", len(got), p)
	}
}

func TestShares(t *testing.T) {
	weighted := []Host{{Weight: 1}, {Weight: 2}, {Weight: 5}}
	equal := []Host{{Weight: 3}, {Weight: 3}, {Weight: 3}}
	tests := []struct {
		name  string
		hosts []Host
		opt   Options
		want  []float64
		exact bool
	}{
		{"round robin equal", equal, Options{Policy: RoundRobin}, []float64{1. / 3, 1. / 3, 1. / 3}, true},
		{"round robin weighted", weighted, Options{Policy: RoundRobin}, []float64{1. / 8, 2. / 8, 5. / 8}, true},
		{"least request idle weighted", weighted, Options{Policy: LeastRequest, ActiveBias: 1}, []float64{1. / 8, 2. / 8, 5. / 8}, true},
		{"least request idle equal", equal, Options{Policy: LeastRequest}, []float64{1. / 3, 1. / 3, 1. / 3}, false},
		{"random ignores weights", weighted, Options{Policy: Random}, []float64{1. / 3, 1. / 3, 1. / 3}, false},
		{"localities by weight", []Host{{Weight: 1, Locality: 0}, {Weight: 1, Locality: 1}, {Weight: 1, Locality: 1}}, Options{Policy: RoundRobin, Localities: []Locality{{Weight: 3}, {Weight: 1}}}, []float64{.75, .125, .125}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			const n = 24000
			rnd := rand.New(rand.NewPCG(7, 7))
			tt.opt.Active = func(int) int64 { return 0 }
			tb := NewTable(tt.hosts, tt.opt, 12345)
			count := make([]float64, len(tt.hosts))
			for range n {
				p := tb.Pick(&Input{Rand: rnd.Uint64})
				if !p.OK {
					t.Fatal("no host")
				}
				count[p.Host]++
			}
			for i, c := range count {
				slack := 0.02
				if tt.exact {
					slack = 3. / n
				}
				if math.Abs(c/n-tt.want[i]) > slack {
					t.Errorf("host %d got a share of %.4f, want %.4f", i, c/n, tt.want[i])
				}
			}
		})
	}
}

func TestLeastRequestAvoidsTheBusy(t *testing.T) {
	busy := []int64{100, 0, 0, 0}
	hosts := some(0, 4, 0, 4)
	rnd := rand.New(rand.NewPCG(3, 4))
	tb := NewTable(hosts, Options{Policy: LeastRequest, Choices: 2, Active: func(i int) int64 { return busy[i] }}, 0)
	n := 0
	for range 8000 {
		if tb.Pick(&Input{Rand: rnd.Uint64}).Host == 0 {
			n++
		}
	}
	// Chosen only if both draws hit it: 1/16.
	if n < 350 || n > 650 {
		t.Errorf("the busy host got %d of 8000, want about 500", n)
	}
}

func TestWeightedTurnsAreSpread(t *testing.T) {
	tb := NewTable([]Host{{Weight: 1}, {Weight: 3}}, Options{}, math.MaxUint64)
	rnd := rand.New(rand.NewPCG(3, 4))
	run, longest := 0, 0
	for range 400 {
		if tb.Pick(&Input{Rand: rnd.Uint64}).Host == 1 {
			run++
			longest = max(longest, run)
		} else {
			run = 0
		}
	}
	if longest != 3 {
		t.Errorf("longest run of the heavy host is %d, want 3", longest)
	}
}
