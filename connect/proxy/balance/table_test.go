package balance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// share returns the percentage of healthy hosts out of 100 that a priority has.
func share(p, healthy int) []Host { return some(p, healthy, 0, 100) }

// The table that Envoy's documentation of priorities has.
func TestDocumentedPercentages(t *testing.T) {
	for _, tt := range []struct {
		healthy []int // percent, by priority
		want    []int
	}{
		{[]int{100, 100}, []int{100, 0}}, {[]int{72, 100}, []int{100, 0}}, {[]int{71, 100}, []int{99, 1}},
		{[]int{50, 100}, []int{70, 30}}, {[]int{25, 100}, []int{35, 65}}, {[]int{0, 100}, []int{0, 100}},
		{[]int{25, 25}, []int{50, 50}}, {[]int{100, 100, 100}, []int{100, 0, 0}}, {[]int{72, 72, 100}, []int{100, 0, 0}},
		{[]int{71, 71, 100}, []int{99, 1, 0}}, {[]int{50, 50, 100}, []int{70, 30, 0}}, {[]int{25, 100, 100}, []int{35, 65, 0}},
		{[]int{25, 25, 100}, []int{35, 35, 30}},
	} {
		var hosts []Host
		for p, h := range tt.healthy {
			hosts = append(hosts, share(p, h)...)
		}
		table := NewTable(hosts, Options{PanicThreshold: 50}, 0)
		if got := table.Loads().Healthy; !slices.Equal(got, tt.want) {
			t.Errorf("%v percent healthy: loads %v, want %v", tt.healthy, got, tt.want)
		}
	}
}

// A priority does not panic while all together can carry the load.
func TestPanicOfPriorities(t *testing.T) {
	for _, tt := range []struct {
		healthy []int
		panics  []bool
		loads   []int
	}{
		{[]int{72, 0}, []bool{false, false}, []int{100, 0}},
		{[]int{20, 100}, []bool{false, false}, []int{28, 72}},
		{[]int{20, 30}, []bool{true, true}, []int{50, 50}},
		{[]int{60, 0}, []bool{false, true}, []int{100, 0}},
		{[]int{5, 50}, []bool{true, false}, []int{10, 90}}, // 7 and 70 of 77, and 1 that rounding leaves
	} {
		hosts := slices.Concat(share(0, tt.healthy[0]), share(1, tt.healthy[1]))
		l := NewTable(hosts, Options{PanicThreshold: 50}, 0).Loads()
		if !slices.Equal(l.Panic, tt.panics) || !slices.Equal(l.Healthy, tt.loads) {
			t.Errorf("%v percent healthy: panic %v with loads %v, want %v with %v", tt.healthy, l.Panic, l.Healthy, tt.panics, tt.loads)
		}
	}
}

func TestExcludedHostsDoNotCount(t *testing.T) {
	hosts := some(0, 3, 0, 4)
	for range 10 {
		hosts = append(hosts, Host{Weight: 1, Health: Excluded})
	}
	table := NewTable(hosts, Options{PanicThreshold: 50, Policy: Random}, 0)
	if l := table.Loads(); l.Panic[0] || l.Healthy[0] != 100 {
		t.Errorf("loads %+v, want no panic", l)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		if p := table.Pick(&Input{Rand: rnd.Uint64}); p.Host > 2 {
			t.Fatalf("host %d was chosen", p.Host)
		}
	}
}

func TestHealthByWeight(t *testing.T) {
	hosts := []Host{{Weight: 30}, {Weight: 70, Health: Unhealthy}, {Weight: 1, Priority: 1}}
	if got := NewTable(hosts, Options{ByWeight: true}, 0).Loads().Healthy; !slices.Equal(got, []int{42, 58}) {
		t.Errorf("by weight: %v", got)
	}
	if got := NewTable(hosts, Options{}, 0).Loads().Healthy; !slices.Equal(got, []int{70, 30}) {
		t.Errorf("by number: %v", got)
	}
}

func TestPickOfOneLevel(t *testing.T) {
	hosts := slices.Concat(some(0, 2, 0, 2), some(1, 0, 1, 2))
	table := NewTable(hosts, Options{Policy: Random}, 0)
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		if p := table.Pick(&Input{Rand: rnd.Uint64, Level: 2}); !p.OK || p.Host != 2 {
			t.Fatalf("got %+v, want the degraded host of the second level", p)
		}
	}
	if p := table.Pick(&Input{Rand: rnd.Uint64, Level: 9}); p.OK {
		t.Errorf("got %+v of a level that is not there", p)
	}
}

// The value is that of std::hash<std::string> in the C++ standard library; longer keys are compared with Envoy.
func TestMurmur(t *testing.T) {
	if got := murmur2(nil, murmurSeed); got != 6142509188972423790 {
		t.Errorf("hash of nothing is %d", got)
	}
}

// Whoever is chosen, and in whatever state: the table never picks outside of its hosts, picks nobody only if nobody is
// fit, and gives the same answer for the same input.
func TestAnyTable(t *testing.T) {
	const seed = 42
	rnd := rand.New(rand.NewPCG(seed, seed))
	for round := range 800 {
		var hosts []Host
		opt := Options{
			Policy: Policy(rnd.IntN(6)), PanicThreshold: float64(rnd.IntN(3) * 50), FailTrafficOnPanic: rnd.IntN(5) == 0, FullScan: rnd.IntN(2) == 0,
			ByWeight: rnd.IntN(2) == 0, MaglevSize: 251, ActiveBias: float64(rnd.IntN(3)), HashBalance: uint32(rnd.IntN(2) * 150),
			Active: func(i int) int64 { return int64(i) }, Cost: func(i int) float64 { return float64(i) },
		}
		for n := range rnd.IntN(3) {
			opt.Localities = append(opt.Localities, Locality{Weight: uint32(n * 3)})
		}
		if rnd.IntN(3) == 0 {
			opt.Factor = func(int) float64 { return 0.5 }
		}
		fit := false
		for i := range rnd.IntN(8) {
			h := Host{Weight: uint32(rnd.IntN(9) + 1), Priority: rnd.IntN(3), Health: Health(rnd.IntN(4)), Key: fmt.Sprint("host-", i)}
			if len(opt.Localities) > 0 {
				h.Locality = rnd.IntN(len(opt.Localities))
			}
			fit = fit || h.Health == Healthy
			hosts = append(hosts, h)
		}
		table, hash := NewTable(hosts, opt, rnd.Uint64()), rnd.Uint64()
		for range 20 {
			in := Input{Rand: rnd.Uint64, Hash: hash, HasHash: true, Attempt: rnd.IntN(3), Avoid: Levels{uint64(rnd.IntN(4))}, Level: rnd.IntN(2) * rnd.IntN(4)}
			p := table.Pick(&in)
			switch {
			case p.OK && (p.Host < 0 || p.Host >= len(hosts)):
				t.Fatalf("seed %d, round %d: picked %d of %d", seed, round, p.Host, len(hosts))
			case p.OK && !p.Panic && hosts[p.Host].Health >= Unhealthy:
				t.Fatalf("seed %d, round %d: picked %+v without panic", seed, round, hosts[p.Host])
			case !p.OK && fit && in.Level == 0 && !opt.FailTrafficOnPanic:
				t.Fatalf("seed %d, round %d: nobody of %+v, with %+v", seed, round, hosts, opt)
			}
			hashes := opt.Policy == RingHash || opt.Policy == Maglev
			if again := table.Pick(&in); hashes && again != p {
				t.Fatalf("seed %d, round %d: %+v, then %+v", seed, round, p, again)
			}
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	for _, p := range []struct {
		name   string
		policy Policy
	}{{"round-robin", RoundRobin}, {"ring-hash", RingHash}, {"maglev", Maglev}} {
		for _, n := range []int{10, 1000} {
			b.Run(fmt.Sprintf("%s/%d", p.name, n), func(b *testing.B) {
				hosts := some(0, n, 0, n)
				for i := range hosts {
					hosts[i].Key = fmt.Sprintf("10.0.%d.%d:80", i/256, i%256)
				}
				b.ReportAllocs()
				for b.Loop() {
					NewTable(hosts, Options{Policy: p.policy}, 0)
				}
			})
		}
	}
}
