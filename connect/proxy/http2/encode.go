package http2

import (
	"hash/maphash"
	"unsafe"

	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// An encoder keeps what HPACK remembers of the other direction. A field enters the dynamic table when it is seen for
// the second time within a short while, so values that never repeat don't push out those that do. Secrets never enter
// it. Strings are not Huffman-coded: in a mesh, the processor is dearer than the wire.
type encoder struct {
	ring    []encoded // its length is a power of two
	added   uint32    // entries that were ever added; entry i is at i modulo the length
	n       uint32
	size    uint32
	max     uint32
	limit   uint32 // to become max before the next block
	resized bool

	slots *[slotCount]uint32 // by hash: the number of an entry, counted from 1
	seen  *[seenCount]uint32 // hashes of fields that were sent as literals
	slab  []byte
}

type encoded struct {
	name, value string
	hash        uint32
}

const (
	slotCount = 256 // even
	seenCount = 64
)

var hashSeed = maphash.MakeSeed()

func (e *encoder) init() { e.max, e.limit = defaultTable, defaultTable }

// setLimit obeys the peer's SETTINGS_HEADER_TABLE_SIZE. Of several between two blocks the smallest counts: to go on
// from there to the last would take two updates in a row, which some decoders refuse.
func (e *encoder) setLimit(n uint32) {
	n = min(n, defaultTable)
	if e.resized {
		n = min(n, e.limit)
	}
	e.limit, e.resized = n, true
}

// begin starts a block.
func (e *encoder) begin(b []byte) []byte {
	if !e.resized {
		return b
	}
	e.resized = false
	if e.limit == e.max {
		return b
	}
	e.max = e.limit
	e.evict(0)
	return appendInteger(b, 0x20, 5, uint64(e.max))
}

func (e *encoder) evict(room uint32) {
	for e.n > 0 && e.size+room > e.max {
		f := &e.ring[(e.added-e.n)&uint32(len(e.ring)-1)]
		e.size -= uint32(len(f.name) + len(f.value) + 32)
		*f = encoded{}
		e.n--
	}
}

// find returns the index of a field in the dynamic table, or 0.
func (e *encoder) find(hash uint32, name, value string) uint64 {
	if e.n == 0 {
		return 0
	}
	for i := range uint32(2) {
		at := e.slots[hash%slotCount^i]
		// The difference is right even when the counter has gone round.
		if age := e.added - at; at == 0 || age >= e.n {
			continue
		} else if f := &e.ring[(at-1)&uint32(len(e.ring)-1)]; f.hash == hash && f.value == value && f.name == name {
			return uint64(age) + uint64(len(static))
		}
	}
	return 0
}

func (e *encoder) add(hash uint32, name, value string) {
	size := uint32(len(name) + len(value) + 32)
	e.evict(size)
	if e.slots == nil {
		e.slots = new([slotCount]uint32)
	}
	if int(e.n) == len(e.ring) {
		ring := make([]encoded, max(8, 2*len(e.ring)))
		for i := e.added - e.n; i != e.added; i++ {
			ring[i&uint32(len(ring)-1)] = e.ring[i&uint32(len(e.ring)-1)]
		}
		e.ring = ring
	}
	f := encoded{hash: hash}
	e.slab, f.name = keep(e.slab, unsafe.Slice(unsafe.StringData(name), len(name)))
	e.slab, f.value = keep(e.slab, unsafe.Slice(unsafe.StringData(value), len(value)))
	e.ring[e.added&uint32(len(e.ring)-1)] = f
	e.added++
	e.n++
	e.size += size
	slot := hash % slotCount
	if e.added-e.slots[slot] < e.added-e.slots[slot^1] {
		slot ^= 1 // the older of the two makes room
	}
	e.slots[slot] = e.added
}

// field appends a field. The static table has its name at index, or index is 0.
func (e *encoder) field(b []byte, name, value string, index uint64, secret bool) []byte {
	size := uint32(len(name) + len(value) + 32)
	form, prefix := byte(0x00), uint(4)
	switch {
	case secret:
		form = 0x10
	case size > e.max/2 || size > 512:
	default:
		hash := uint32(maphash.String(hashSeed, value)) ^ 31*uint32(maphash.String(hashSeed, name))
		if i := e.find(hash, name, value); i > 0 {
			return appendInteger(b, 0x80, 7, i)
		}
		if e.seen == nil {
			e.seen = new([seenCount]uint32)
		}
		if s := &e.seen[hash>>16%seenCount]; *s == hash {
			e.add(hash, name, value)
			form, prefix = 0x40, 6
		} else {
			*s = hash
		}
	}
	b = appendInteger(b, form, prefix, index)
	if index == 0 {
		b = appendText(b, name)
	}
	return appendText(b, value)
}

// staticNames tells the index of the known names in the static table.
var staticNames = func() (t [64]uint8) {
	for i := len(static) - 1; i > 0; i-- {
		t[message.KnownName(static[i].name)] = uint8(i)
	}
	t[0] = 0
	return t
}()

// header appends the fields of a header that may travel.
func (e *encoder) header(b []byte, h *message.Header) []byte {
	for i := range h.Len() {
		f := h.At(i)
		secret := false
		switch f.Name {
		case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "host":
			continue
		case "te":
			if f.Value != "trailers" {
				continue
			}
		case "authorization", "cookie", "set-cookie", "proxy-authorization":
			secret = true
		}
		b = e.field(b, f.Name, f.Value, uint64(staticNames[message.KnownName(f.Name)]), secret)
	}
	return b
}

// status appends ":status".
func (e *encoder) status(b []byte, code int) []byte {
	switch code {
	case 200:
		return append(b, 0x88)
	case 204:
		return append(b, 0x89)
	case 206:
		return append(b, 0x8a)
	case 304:
		return append(b, 0x8b)
	case 400:
		return append(b, 0x8c)
	case 404:
		return append(b, 0x8d)
	case 500:
		return append(b, 0x8e)
	}
	return append(b, 0x08, 3, byte('0'+code/100%10), byte('0'+code/10%10), byte('0'+code%10))
}

// The indices of pseudo-headers in the static table.
const (
	staticAuthority = 1
	staticGET       = 2
	staticPOST      = 3
	staticRoot      = 4
	staticHTTP      = 6
	staticHTTPS     = 7
)

// request appends the pseudo-headers of a request.
func (e *encoder) request(b []byte, r *message.Request) []byte {
	switch {
	case r.Upgrade != "":
		b = e.field(b, ":method", "CONNECT", staticGET, false)
	case r.Method == "GET":
		b = append(b, 0x80|staticGET)
	case r.Method == "POST":
		b = append(b, 0x80|staticPOST)
	default:
		b = e.field(b, ":method", r.Method, staticGET, false)
	}
	if r.Method != "CONNECT" || r.Upgrade != "" {
		switch r.Scheme {
		case "https":
			b = append(b, 0x80|staticHTTPS)
		case "http", "":
			b = append(b, 0x80|staticHTTP)
		default:
			b = e.field(b, ":scheme", r.Scheme, staticHTTP, false)
		}
		if r.Path == "/" {
			b = append(b, 0x80|staticRoot)
		} else {
			b = e.field(b, ":path", r.Path, staticRoot, false)
		}
	}
	if r.Authority != "" {
		b = e.field(b, ":authority", r.Authority, staticAuthority, false)
	}
	if r.Upgrade != "" {
		b = e.field(b, ":protocol", r.Upgrade, 0, false)
	}
	return b
}

func appendInteger(b []byte, form byte, prefix uint, n uint64) []byte {
	mask := uint64(1)<<prefix - 1
	if n < mask {
		return append(b, form|byte(n))
	}
	b = append(b, form|byte(mask))
	for n -= mask; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

func appendText(b []byte, s string) []byte {
	return append(appendInteger(b, 0, 7, uint64(len(s))), s...)
}

// keep copies b into the slab, or into a new one if it does not fit, and returns the slab and the copy. Copies are
// never overwritten.
func keep(slab, b []byte) ([]byte, string) {
	if len(b) == 0 {
		return slab, ""
	}
	if len(b) > cap(slab)-len(slab) {
		slab = make([]byte, 0, max(len(b), min(2*cap(slab), slabMax), slabMin))
	}
	n := len(slab)
	slab = append(slab, b...)
	return slab, unsafe.String(&slab[n], len(b))
}
