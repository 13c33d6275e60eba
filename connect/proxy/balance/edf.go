package balance

import "sync"

// maxTurns bounds the memory of a period of weighted turns.
const maxTurns = 1 << 16

// turns returns one period of the earliest-deadline-first order in which a host
// of weight w comes w times, spread as evenly as can be. Weights are first
// divided by what they have in common, and rounded if the period would be huge.
func turns(of []uint32) []int32 {
	common, sum := uint64(0), uint64(0)
	for _, w := range of {
		common = gcd(common, uint64(w))
		sum += uint64(w)
	}
	weights := make([]float64, len(of))
	period := 0
	for i, w := range of {
		w := uint64(w) / common
		if s := sum / common; s > maxTurns {
			w = max(1, w*maxTurns/s)
		}
		weights[i] = float64(w)
		period += int(w)
	}
	s := newSchedule(len(of))
	out := make([]int32, period)
	for i := range out {
		out[i] = int32(s.next(func(i int) float64 { return weights[i] }))
	}
	return out
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// A schedule is an earliest-deadline-first queue: who has weight w comes back
// 1/w later.
type schedule struct {
	mu    sync.Mutex
	n     int
	queue []entry // binary heap, earliest first
	now   float64
	order uint64
}

type entry struct {
	at    float64
	order uint64 // first come first served among equals
	host  int
}

func newSchedule(n int) *schedule { return &schedule{n: n} }

// next takes the host whose turn it is and puts it back by its weight.
func (s *schedule) next(weight func(int) float64) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queue == nil {
		for i := range s.n {
			s.push(entry{at: 1 / weight(i), host: i})
		}
	}
	e := s.queue[0]
	s.now = e.at
	e.at = s.now + 1/weight(e.host)
	s.order++
	e.order = s.order
	s.queue[0] = e
	s.down(0)
	return e.host
}

func (s *schedule) push(e entry) {
	s.order++
	e.order = s.order
	s.queue = append(s.queue, e)
	for i := len(s.queue) - 1; i > 0; {
		up := (i - 1) / 2
		if !before(s.queue[i], s.queue[up]) {
			break
		}
		s.queue[i], s.queue[up] = s.queue[up], s.queue[i]
		i = up
	}
}

func (s *schedule) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(s.queue) {
			return
		}
		if c+1 < len(s.queue) && before(s.queue[c+1], s.queue[c]) {
			c++
		}
		if !before(s.queue[c], s.queue[i]) {
			return
		}
		s.queue[i], s.queue[c] = s.queue[c], s.queue[i]
		i = c
	}
}

func before(a, b entry) bool {
	if a.at != b.at {
		return a.at < b.at
	}
	return a.order < b.order
}
