package dns

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Whoever sends UDP packets may put any address in them, and the answers go there: a server that anybody can reach serves
// to send others what they did not ask for, and much more of it than was spent. Clients of networks that are not trusted
// therefore get answers of strangeSize at most, and so many a second and network that are longer than their questions.
// Beyond, they are told to ask over TCP, by an answer no longer than the question: nobody gains by a false address, and
// whoever has asked is answered all the same.

// TrustedNetworks are those whose addresses nobody outside can use: of private networks, of providers behind their
// translation of addresses, and of links.
func TrustedNetworks() []netip.Prefix {
	var list []netip.Prefix
	for _, p := range []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "fc00::/7", "fe80::/10"} {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}

// strangeSize is the size of an answer over UDP that crosses the Internet whole.
const strangeSize = 1232

// within reports whether an address is of this machine or of one of the networks.
func within(ip netip.Addr, networks []netip.Prefix) bool {
	return ip.IsLoopback() || slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// strange reports whether a UDP client is one whose answers are limited. Those without an address are not.
func (st *Settings) strange(ip netip.Addr) bool {
	return st.UDPAnswerRate > 0 && ip.IsValid() && !within(ip, st.TrustedNetworks)
}

// mayRecurse reports whether a client may use the recursors.
func (st *Settings) mayRecurse(ip netip.Addr) bool {
	return len(st.AllowRecursionFrom) == 0 || within(ip, st.AllowRecursionFrom)
}

// A limitKind is what is limited on its own, so that the search lists of resolvers, which ask for much that is not there,
// take nothing from answers.
type limitKind int

const (
	limitAnswer   limitKind = iota // there are records
	limitEmpty                     // there are none
	limitRecursor                  // a recursor is to be asked
	limitKinds
)

func (k limitKind) String() string { return [limitKinds]string{"answer", "empty", "recursor"}[k] }

// kindOf is the kind of an answer of ours.
func kindOf(out []byte) limitKind {
	if len(out) >= headerLen && binary.BigEndian.Uint16(out[6:]) > 0 {
		return limitAnswer
	}
	return limitEmpty
}

// Bounds of what is remembered of clients: 640 KiB, taken when there is the first to be limited.
const (
	rateShards  = 64
	rateSets    = 64 // of a shard
	rateBuckets = 4  // of a set
)

// rates count answers by network. The networks used last are remembered; one that comes anew begins with a full measure,
// and who would make it forgotten must have its set filled by others, which nobody can tell.
type rates struct {
	seed   maphash.Seed
	began  time.Time
	once   sync.Once
	shards atomic.Pointer[[rateShards]rateShard]
}

type rateShard struct {
	mu   sync.Mutex
	sets [rateSets][rateBuckets]bucket // what was used last comes first
}

// A bucket holds the answers left for one network.
type bucket struct {
	network uint64
	last    time.Duration // since the beginning; 0 for an unused bucket, and never else
	left    [limitKinds]float64
}

func newRates() *rates { return &rates{seed: maphash.MakeSeed(), began: time.Now().Add(-time.Second)} }

// network is what of an address counts for one client: 24 bits of IPv4, 56 of IPv6.
func network(ip netip.Addr) uint64 {
	if ip.Is4() {
		a := ip.As4()
		return 1<<63 | uint64(a[0])<<16 | uint64(a[1])<<8 | uint64(a[2])
	}
	a := ip.As16()
	return binary.BigEndian.Uint64(a[:]) >> 8
}

// take reports whether the network of ip may have another answer. Each may have rate a second, and as many at once.
func (r *rates) take(ip netip.Addr, kind limitKind, rate float64, now time.Time) bool {
	r.once.Do(func() { r.shards.Store(new([rateShards]rateShard)) })
	key := network(ip)
	var raw [8]byte
	binary.BigEndian.PutUint64(raw[:], key)
	hash := maphash.Bytes(r.seed, raw[:])
	s := &r.shards.Load()[hash%rateShards]
	at := now.Sub(r.began)

	s.mu.Lock()
	defer s.mu.Unlock()
	set := &s.sets[hash/rateShards%rateSets]
	i := 0
	for i < rateBuckets-1 && (set[i].network != key || set[i].last == 0) {
		i++
	}
	found := set[i]
	copy(set[1:i+1], set[:i])
	b := &set[0]
	if *b = found; b.last == 0 || b.network != key {
		*b = bucket{network: key, last: at, left: [limitKinds]float64{rate, rate, rate}}
	} else if passed := at - b.last; passed > 0 {
		for k := range b.left {
			b.left[k] = min(rate, b.left[k]+rate*passed.Seconds())
		}
		b.last = at
	}
	if b.left[kind] < 1 {
		return false
	}
	b.left[kind]--
	return true
}

// limited reports whether an answer over UDP must not be given to its client; then short is the one to be given.
func (s *Server) limited(st *Settings, who asker, kind limitKind, now time.Time) bool {
	if !who.strange || s.rates.take(who.from.Addr(), kind, float64(st.UDPAnswerRate), now) {
		return false
	}
	s.counts.limited[kind].Add(1)
	return true
}

// short appends the answer that has its client ask over TCP.
func (q *plainQuestion) short(out []byte) []byte {
	start := len(out)
	out = binary.BigEndian.AppendUint16(out, q.id)
	out = binary.BigEndian.AppendUint16(out, 1<<15|1<<9|q.flags)
	out = append(out, 0, 1, 0, 0, 0, 0, 0, 0)
	out = append(out, q.key...)
	return complete(out, start, q, 0, 0, 0)
}

// short is the answer that has its client ask over TCP.
func short(req *dns.Msg) *dns.Msg {
	resp := withCode(req, dns.RcodeSuccess)
	resp.Truncated = true
	return resp
}

// A room is what an answer has to fit in.
type room struct {
	size  int
	tcp   bool
	plain bool // the client is of the time before EDNS0, or speaks as if it were
	less  bool // the client takes more
}

// roomFor returns the room of who has sent a question, with the size in its OPT record if there was one.
func roomFor(who asker, edns bool, size uint16) room {
	if who.tcp {
		return room{size: maxTCPSize, tcp: true}
	}
	r := room{size: dns.MinMsgSize}
	if edns {
		r.size = min(max(int(size), dns.MinMsgSize), maxEDNSSize)
	}
	if who.strange && r.size > strangeSize {
		r.size, r.less = strangeSize, true
	}
	r.plain = r.size == dns.MinMsgSize
	return r
}

// answers returns how many answers there may be to a question of a type.
func (r room) answers(st *Settings, qtype uint16) int {
	switch {
	case r.tcp && qtype == dns.TypeSRV:
		return maxTCPSRV
	case r.plain && st.UDPAnswerLimit > 0:
		return min(st.UDPAnswerLimit, maxUDPLimit)
	}
	return maxTCPAnswers
}
