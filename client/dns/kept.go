package dns

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Answers that rest on nothing but the catalog are kept in their packed form, until what they rest on changes: a
// question that was asked before is answered without unpacking, looking up or allocating anything. They are put in
// another random order, cut to size and given the question's own ID and case each time.

// A kept answer is immutable.
type kept struct {
	settings  *Settings
	token     string
	standings []Standing

	flags   uint16 // of the header, without what is the question's own
	anyCase bool   // nothing in it repeats the question but by a pointer

	// Either the sections after the question as they stand, which fit everybody ...
	body          []byte
	an, ns, extra uint16
	serialAt      int // where the SOA serial is in body, 0 for none
	// ... or records to be put in order.
	records []record
	glue    []glue
	limit   int // of records, whatever the transport; 0 for none
}

// A record of an answer, its owner being the question's name.
type record struct {
	data   []byte // with a pointer to the question for its owner
	glue   int    // index of its glue, -1 for none
	target int    // where in data the name is that the glue's owner points to
}

// glue is what comes with a record in the additional section.
type glue struct {
	addresses, texts extraPart
}

// An extraPart is a part of an additional section.
type extraPart struct {
	pieces []piece
	size   int // without compression
	packed int // with pointers to the target for owners
	owners int // how many such there are
}

func (e *extraPart) add(p piece, size int) {
	e.pieces = append(e.pieces, p)
	e.size += size
	e.packed += len(p.data)
	if !p.owned {
		e.packed += 2
		e.owners++
	}
}

// A piece is a record without the first part of its owner.
type piece struct {
	data  []byte
	owned bool // the owner is in data; else it is the target of the record that the glue belongs to
}

const (
	headerLen = 12
	optLen    = 11
	srvTarget = 2 + 10 + 6 // where a target is in an SRV record whose owner is a pointer
	maxAt     = 0x3fff     // what a pointer can point to
)

// A plainQuestion is a message that asks one thing and no more.
type plainQuestion struct {
	id    uint16
	flags uint16 // RD and CD
	key   []byte // name, type and class as they stand in the message
	edns  bool
	size  uint16 // as in the OPT record
}

// parsePlain reads a message of the most ordinary form. It reports false for all others, valid or not.
func parsePlain(msg []byte) (q plainQuestion, ok bool) {
	// One question, nothing else but perhaps an OPT record; a standard query, not a response, not truncated.
	if len(msg) < headerLen+5 || msg[2]&^0x01 != 0 || msg[3]&^0x10 != 0 || binary.BigEndian.Uint32(msg[4:]) != 0x00010000 || msg[8] != 0 || msg[9] != 0 || msg[10] != 0 || msg[11] > 1 {
		return q, false
	}
	at := headerLen
	for msg[at] != 0 {
		if msg[at] > 63 || at-headerLen > 255 {
			return q, false
		}
		if at += 1 + int(msg[at]); at+5 > len(msg) {
			return q, false
		}
	}
	at += 5
	if at-headerLen > 255+4 {
		return q, false
	}
	q.id, q.flags, q.key = binary.BigEndian.Uint16(msg), binary.BigEndian.Uint16(msg[2:])&0x0110, msg[headerLen:at]
	rest := msg[at:]
	if msg[11] == 1 {
		// An OPT record of version 0 without options.
		if len(rest) != optLen || rest[0] != 0 || rest[1] != 0 || rest[2] != byte(dns.TypeOPT) || rest[5] != 0 || rest[6] != 0 || rest[9] != 0 || rest[10] != 0 {
			return q, false
		}
		q.edns, q.size, rest = true, binary.BigEndian.Uint16(rest[3:]), nil
	}
	return q, len(rest) == 0
}

// qtype is the type that is asked for.
func (q *plainQuestion) qtype() uint16 { return binary.BigEndian.Uint16(q.key[len(q.key)-4:]) }

// current reports whether the answer still holds.
func (k *kept) current(st *Settings, token string) bool {
	if k.settings != st || k.token != token {
		return false
	}
	for _, s := range k.standings {
		if !s.Current() {
			return false
		}
	}
	return true
}

func (k *kept) close() {
	for _, s := range k.standings {
		s.Close()
	}
}

// scratch is what one goroutine needs for answers, kept from one to the next.
type scratch struct {
	lower []byte
	order []int32
	at    []int  // where in the message the targets of records are
	given []bool // by index of glue
}

// appendTo appends the answer to q, which has to fit in room.
func (k *kept) appendTo(out []byte, q *plainQuestion, room room, sc *scratch) []byte {
	start := len(out)
	out = binary.BigEndian.AppendUint16(out, q.id)
	out = binary.BigEndian.AppendUint16(out, k.flags|q.flags)
	out = append(out, 0, 1, 0, 0, 0, 0, 0, 0)
	out = append(out, q.key...)
	if k.records == nil {
		at := len(out)
		out = append(out, k.body...)
		if k.serialAt > 0 {
			binary.BigEndian.PutUint32(out[at+k.serialAt:], uint32(time.Now().Unix()))
		}
		return complete(out, start, q, k.an, k.ns, k.extra)
	}

	before := len(k.records)
	if k.limit > 0 {
		before = min(before, k.limit)
	}
	limit := min(before, room.answers(k.settings, q.qtype()))
	order := sc.pick(len(k.records), limit)
	n, withGlue := k.fits(order, q, room, limit == before, sc)
	order = order[:n]
	sc.at = sc.at[:0]
	for _, i := range order {
		r := &k.records[i]
		sc.at = append(sc.at, len(out)-start+r.target)
		out = append(out, r.data...)
	}
	extra := 0
	if withGlue && k.glue != nil {
		clear(sc.given)
		for j, i := range order {
			g := k.records[i].glue
			if g < 0 || sc.given[g] {
				continue
			}
			sc.given[g] = true
			texts := k.glue[g].texts.pieces
			if n < before {
				texts = nil
			}
			for _, list := range [2][]piece{k.glue[g].addresses.pieces, texts} {
				for _, p := range list {
					if !p.owned {
						out = k.appendOwner(out, order, sc.at, j)
					}
					out = append(out, p.data...)
					extra++
				}
			}
		}
	}
	if n < before && (k.settings.EnableTruncate || room.less) {
		out[start+2] |= 0x02
	}
	return complete(out, start, q, uint16(n), 0, uint16(extra))
}

// appendOwner appends the target of record j of an order as the owner of glue: a pointer to it or, where none reaches, its
// first label and a pointer to the rest of the first target, if that is the same.
func (k *kept) appendOwner(out []byte, order []int32, at []int, j int) []byte {
	if at[j] <= maxAt {
		return binary.BigEndian.AppendUint16(out, 0xc000|uint16(at[j]))
	}
	label, rest := k.records[order[j]].split()
	first, same := k.records[order[0]].split()
	out = append(out, label...)
	if bytes.Equal(rest, same) {
		return binary.BigEndian.AppendUint16(out, 0xc000|uint16(at[0]+len(first)))
	}
	return append(out, rest...)
}

// ownerSize is the number of bytes that appendOwner appends, for a target at this place in the message.
func (k *kept) ownerSize(order []int32, at, j int) int {
	if at <= maxAt {
		return 2
	}
	label, rest := k.records[order[j]].split()
	if _, same := k.records[order[0]].split(); bytes.Equal(rest, same) {
		return len(label) + 2
	}
	return len(label) + len(rest)
}

// split returns the first label of the target, with its length, and the rest.
func (r *record) split() (label, rest []byte) {
	name := r.data[r.target:]
	n := 1 + int(name[0])
	return name[:n], name[n:]
}

// complete writes the counts and the OPT record.
func complete(out []byte, start int, q *plainQuestion, an, ns, extra uint16) []byte {
	if q.edns {
		out = append(out, 0, 0, byte(dns.TypeOPT), byte(q.size>>8), byte(q.size), 0, 0, 0, 0, 0, 0)
		extra++
	}
	binary.BigEndian.PutUint16(out[start+6:], an)
	binary.BigEndian.PutUint16(out[start+8:], ns)
	binary.BigEndian.PutUint16(out[start+10:], extra)
	return out
}

// pick returns limit of the numbers below n, in random order.
func (sc *scratch) pick(n, limit int) []int32 {
	if cap(sc.order) < n {
		sc.order = make([]int32, n)
	}
	order := sc.order[:n]
	for i := range order {
		order[i] = int32(i)
	}
	for i := range min(limit, n-1) {
		j := i + int(rand.Uint32N(uint32(n-i)))
		order[i], order[j] = order[j], order[i]
	}
	return order[:limit]
}

// fits returns how many of the records in this order fit into room, at least one, and whether their glue does. Texts
// count while no record is left out. Where the room is that of old resolvers nothing counts as compressed.
func (k *kept) fits(order []int32, q *plainQuestion, room room, whole bool, sc *scratch) (n int, withGlue bool) {
	fixed := headerLen + len(q.key)
	if q.edns {
		fixed += optLen
	}
	owner := len(q.key) - 4
	if len(sc.given) < len(k.glue) {
		sc.given = make([]bool, len(k.glue))
	}
	for {
		clear(sc.given)
		total, fit, at := fixed, 0, headerLen+len(q.key)
		for j, i := range order {
			r := &k.records[i]
			total += len(r.data)
			if room.plain {
				total += owner - 2
			}
			if r.glue >= 0 && !sc.given[r.glue] {
				sc.given[r.glue] = true
				g := &k.glue[r.glue]
				for part, e := range [2]*extraPart{&g.addresses, &g.texts} {
					switch {
					case part == 1 && !whole:
					case room.plain:
						total += e.size
					default:
						total += e.packed + e.owners*(k.ownerSize(order, at+r.target, j)-2)
					}
				}
			}
			at += len(r.data)
			if total > room.size {
				break
			}
			fit++
		}
		switch {
		case fit == len(order):
			return fit, true
		case whole && len(order) > 1: // texts go before records do only together with one
			whole = false
			order = order[:len(order)-1]
		case fit == 0:
			return 1, false
		default:
			return fit, true
		}
	}
}

// keep returns the answer to a question of ours in its packed form, before it is cut to size; nil when it is not to be
// kept.
func (l *lookup) keep(question []byte) *kept {
	if l.passing || l.st.DisableCompression {
		return nil
	}
	k := &kept{settings: l.st, token: l.token, standings: l.standings, flags: 1<<15 | uint16(l.resp.Rcode)}
	if l.resp.Authoritative {
		k.flags |= 1 << 10
	}
	if l.resp.RecursionAvailable {
		k.flags |= 1 << 7
	}
	answer := l.resp.Answer
	if l.full != nil {
		answer, k.limit = l.full, l.st.ARecordLimit
	}
	if l.mixed && len(answer) > 0 {
		if len(l.resp.Ns) > 0 || !k.pack(l, answer) {
			return nil
		}
		return k
	}
	// What fits every client stands as it is.
	resp := *l.resp
	resp.Compress = false
	if len(resp.Answer) > 1 || resp.Len()+optLen > dns.MinMsgSize {
		return nil
	}
	resp.Compress = true
	packed, err := resp.Pack()
	if err != nil || len(packed) < headerLen+len(question) {
		return nil
	}
	k.body = packed[headerLen+len(question):]
	k.an, k.ns, k.extra = uint16(len(resp.Answer)), uint16(len(resp.Ns)), uint16(len(resp.Extra))
	if n := len(resp.Ns); n > 0 {
		if _, soa := resp.Ns[n-1].(*dns.SOA); n > 1 || !soa || len(resp.Extra) > 0 {
			return nil
		}
		k.serialAt = len(k.body) - 5*4
	}
	return k
}

// pack packs records of mixed order; it reports false when they have another form than those of services.
func (k *kept) pack(l *lookup, answer []dns.RR) bool {
	if l.glue != nil && len(l.glue) != len(answer) || l.glue == nil && len(l.resp.Extra) > 0 {
		return false
	}
	name := l.question.Name
	k.anyCase = l.glue == nil
	byExtent := map[extent]int{}
	for i, rr := range answer {
		if rr.Header().Name != name {
			return false
		}
		data, ok := packed(rr, true)
		if !ok {
			return false
		}
		r := record{data: data, glue: -1, target: srvTarget}
		if l.glue != nil {
			target := rr.(*dns.SRV).Target
			at, known := byExtent[l.glue[i]]
			if !known && l.glue[i].from < l.glue[i].to {
				var g glue
				for _, x := range l.resp.Extra[l.glue[i].from:l.glue[i].to] {
					own := x.Header().Name != target
					data, ok := packed(x, !own)
					if !ok {
						return false
					}
					p, size := piece{data, own}, dns.Len(x)
					if !own {
						p.data = data[2:] // without the pointer
					}
					if x.Header().Rrtype == dns.TypeTXT {
						g.texts.add(p, size)
					} else {
						g.addresses.add(p, size)
					}
				}
				at, known = len(k.glue), true
				byExtent[l.glue[i]] = at
				k.glue = append(k.glue, g)
			}
			if known {
				r.glue = at
			}
		}
		k.records = append(k.records, r)
	}
	return true
}

// packed packs a record; with pointed set its owner is a pointer to the question.
func packed(rr dns.RR, pointed bool) ([]byte, bool) {
	buf := make([]byte, dns.Len(rr))
	n, err := dns.PackRR(rr, buf, 0, nil, false)
	if err != nil {
		return nil, false
	}
	buf = buf[:n]
	if !pointed {
		return buf, true
	}
	owner := 0
	for buf[owner] != 0 {
		owner += 1 + int(buf[owner])
	}
	return append([]byte{0xc0, headerLen}, buf[owner+1:]...), true
}

// Bounds of what is kept.
const (
	keptShards   = 16
	keptPerShard = 512
)

// A keeper holds kept answers by question.
type keeper struct {
	seed   maphash.Seed
	shards [keptShards]struct {
		mu      sync.RWMutex
		answers map[string]*kept
	}
}

func newKeeper() *keeper {
	p := &keeper{seed: maphash.MakeSeed()}
	for i := range p.shards {
		p.shards[i].answers = map[string]*kept{}
	}
	return p
}

// get returns what is kept for a question, nil for nothing.
func (p *keeper) get(key []byte) *kept {
	s := &p.shards[maphash.Bytes(p.seed, key)%keptShards]
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.answers[string(key)]
}

// find returns what is kept for a question, in whatever case it is asked.
func (p *keeper) find(key []byte, sc *scratch) *kept {
	sc.lower = appendLower(sc.lower[:0], key)
	k := p.get(sc.lower)
	if k != nil && !k.anyCase && string(sc.lower) != string(key) {
		return nil
	}
	return k
}

// put keeps an answer in the place of what was kept. What repeats the question is kept in lower case only, so that those
// who vary the case fill nothing.
func (p *keeper) put(key []byte, k *kept) {
	lower := appendLower(nil, key)
	if !k.anyCase && string(lower) != string(key) {
		k.close()
		return
	}
	s := &p.shards[maphash.Bytes(p.seed, lower)%keptShards]
	s.mu.Lock()
	gone := s.answers[string(lower)]
	if gone == nil && len(s.answers) >= keptPerShard {
		for other, old := range s.answers { // any one
			gone = old
			delete(s.answers, other)
			break
		}
	}
	s.answers[string(lower)] = k
	s.mu.Unlock()
	if gone != nil {
		gone.close()
	}
}

// clear closes all.
func (p *keeper) clear() {
	for i := range p.shards {
		s := &p.shards[i]
		s.mu.Lock()
		gone := s.answers
		s.answers = map[string]*kept{}
		s.mu.Unlock()
		for _, k := range gone {
			k.close()
		}
	}
}

// appendLower appends the bytes of a name, type and class with the name in lower case.
func appendLower(dst, key []byte) []byte {
	dst = append(dst, key...)
	for i := range dst[:len(dst)-4] {
		if c := dst[i]; 'A' <= c && c <= 'Z' {
			dst[i] = c + 'a' - 'A'
		}
	}
	return dst
}
