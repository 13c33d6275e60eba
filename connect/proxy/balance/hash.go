package balance

import (
	"encoding/binary"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// hashed places hosts by their keys, so that the same hash meets the same host
// wherever it is asked, here or in Envoy.
type hashed struct {
	shares []float64 // of each host of the group; they add up to 1
	points []point   // of the ring, by hash
	table  []int32   // of Maglev
}

type point struct {
	hash uint64
	host int32
}

func newHashed(hosts []Host, index, all []int, opt *Options) *hashed {
	h := &hashed{shares: make([]float64, len(index))}
	least, most := h.weigh(hosts, index, all, opt)
	if opt.Policy == RingHash {
		h.ring(hosts, index, least, opt)
	} else {
		h.maglev(hosts, index, most, opt)
	}
	return h
}

// weigh works out the shares of hosts, and the least and the most of them. The
// order of operations matters for the last bit.
func (h *hashed) weigh(hosts []Host, index, all []int, opt *Options) (least, most float64) {
	locals := uint64(0)
	for _, l := range opt.Localities {
		locals += uint64(l.Weight)
	}
	sums := make([]uint64, max(1, len(opt.Localities)))
	at := func(i int) int {
		if locals == 0 {
			return 0
		}
		return hosts[i].Locality
	}
	for _, i := range index {
		sums[at(i)] += uint64(hosts[i].Weight)
	}
	present := uint64(0) // weight of the localities of this priority
	seen := make([]bool, len(sums))
	for _, i := range all {
		if n := at(i); locals > 0 && !seen[n] {
			seen[n] = true
			present += uint64(opt.Localities[n].Weight)
		}
	}
	least = 1
	for n, i := range index {
		local := 1.0
		if locals > 0 {
			if present == 0 {
				break
			}
			local = float64(opt.Localities[hosts[i].Locality].Weight) / float64(present)
		}
		if local == 0 {
			continue
		}
		share := float64(hosts[i].Weight) * local / float64(sums[at(i)])
		h.shares[n] = share
		least, most = min(least, share), max(most, share)
	}
	return least, most
}

// ring puts points on the ring: so many for the host with the least share that
// it has a whole number of them, and for the others by their shares.
func (h *hashed) ring(hosts []Host, index []int, least float64, opt *Options) {
	scale := min(math.Ceil(least*float64(opt.RingMin))/least, float64(opt.RingMax))
	h.points = make([]point, 0, int(math.Ceil(scale)))
	is, want := 0.0, 0.0
	var key []byte
	for n, i := range index {
		if h.shares[n] == 0 {
			continue
		}
		want += scale * h.shares[n]
		key = append(append(key[:0], hosts[i].Key...), '_')
		stem := len(key)
		for k := uint64(0); is < want; k++ {
			key = strconv.AppendUint(key[:stem], k, 10)
			x := uint64(0)
			if opt.Murmur {
				x = murmur2(key, murmurSeed)
			} else {
				x = xxhash.Sum64(key)
			}
			h.points = append(h.points, point{x, int32(n)})
			is++
		}
	}
	slices.SortStableFunc(h.points, func(a, b point) int {
		switch {
		case a.hash < b.hash:
			return -1
		case a.hash > b.hash:
			return 1
		}
		return 0
	})
}

// A seat is a host that takes turns in filling Maglev's table.
type seat struct {
	host       int32
	key        string
	at, skip   uint64
	share, due float64
}

func (s *seat) next(size uint64) {
	if s.at += s.skip; s.at >= size {
		s.at -= size
	}
}

// maglev lets hosts, in the order of their keys, take turns in choosing free
// places of the table; who has less weight sits out some turns.
func (h *hashed) maglev(hosts []Host, index []int, most float64, opt *Options) {
	size := opt.MaglevSize
	var seats []seat
	for n, i := range index {
		if h.shares[n] > 0 {
			seats = append(seats, seat{host: int32(n), key: hosts[i].Key, share: h.shares[n]})
		}
	}
	if len(seats) == 0 {
		return
	}
	slices.SortStableFunc(seats, func(a, b seat) int { return strings.Compare(a.key, b.key) })
	for k := range seats {
		s := &seats[k]
		s.at = xxhash.Sum64String(s.key) % size
		d := xxhash.NewWithSeed(1)
		d.WriteString(s.key)
		s.skip = d.Sum64()%(size-1) + 1
	}
	h.table = make([]int32, size)
	for i := range h.table {
		h.table[i] = -1
	}
	for turn, filled := 1.0, uint64(0); filled < size; turn++ {
		for k := range seats {
			s := &seats[k]
			if turn*s.share < s.due {
				continue
			}
			s.due += most
			for h.table[s.at] >= 0 {
				s.next(size)
			}
			h.table[s.at] = s.host
			s.next(size)
			if filled++; filled == size {
				return
			}
		}
	}
}

// pick returns the place in the group of the host for a hash.
func (h *hashed) pick(t *Table, g *group, attempt int, hash uint64) int {
	n := h.at(attempt, hash)
	if t.opt.HashBalance == 0 {
		return n
	}
	return h.bounded(t, g, n, hash)
}

func (h *hashed) at(attempt int, hash uint64) int {
	if h.table != nil {
		if attempt > 0 {
			hash ^= ^uint64(0) - uint64(attempt) + 1
		}
		return int(h.table[hash%uint64(len(h.table))])
	}
	if len(h.points) == 0 {
		return 0
	}
	lo, hi := 0, len(h.points)
	for lo < hi {
		if mid := int(uint(lo+hi) >> 1); h.points[mid].hash < hash {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return int(h.points[(lo+attempt)%len(h.points)].host)
}

// bounded returns n, or another host if n has more than its share of what is in
// progress: the first in an order given by the hash that has not, else the one
// with the least excess.
func (h *hashed) bounded(t *Table, g *group, n int, hash uint64) int {
	total := int64(0)
	for _, i := range g.index {
		total += t.opt.Active(i)
	}
	slots := float64(((total+1)*int64(t.opt.HashBalance) + 99) / 100)
	excess := func(n int) float64 {
		return float64(t.opt.Active(g.index[n])) / max(1, math.Ceil(slots*h.shares[n]))
	}
	best, least := n, excess(n)
	if least <= 1 {
		return n
	}
	start := int(((hash ^ hash>>30) * 0xbf58476d1ce4e5b9 >> 32) % uint64(len(g.index)))
	for k := range g.index {
		other := (start + k) % len(g.index)
		switch e := excess(other); {
		case e <= 1:
			return other
		case e < least:
			best, least = other, e
		}
	}
	return best
}

// spread returns how many places the hosts of least and of most have, and all.
func (h *hashed) spread() (least, most, all int) {
	count := make([]int, len(h.shares))
	for _, p := range h.points {
		count[p.host]++
	}
	for _, n := range h.table {
		count[n]++
	}
	return slices.Min(count), slices.Max(count), len(h.points) + len(h.table)
}

// Spread returns, for the hashing policies, how many places of the ring or
// table the hosts of the first priority have at least and at most, and all.
func (t *Table) Spread() (least, most, all int) {
	for p := range t.levels {
		for _, g := range []*group{&t.levels[p].healthy, &t.levels[p].all, &t.levels[p].degraded} {
			if g.hashed != nil {
				return g.hashed.spread()
			}
		}
	}
	return 0, 0, 0
}

// murmurSeed is that of the C++ standard library.
const murmurSeed = 0xc70f6907

// murmur2 is MurmurHash 2 for 64 bits by Austin Appleby, as the C++ standard
// library has it.
func murmur2(b []byte, seed uint64) uint64 {
	const m = 0xc6a4a7935bd1e995
	h := seed ^ uint64(len(b))*m
	for ; len(b) >= 8; b = b[8:] {
		k := binary.LittleEndian.Uint64(b) * m
		h = (h ^ (k^k>>47)*m) * m
	}
	if len(b) > 0 {
		var k uint64
		for i := len(b) - 1; i >= 0; i-- {
			k = k<<8 | uint64(b[i])
		}
		h = (h ^ k) * m
	}
	h = (h ^ h>>47) * m
	return h ^ h>>47
}
