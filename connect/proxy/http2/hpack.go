package http2

import (
	"errors"

	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// A field is a line of a header with what the codec knows of it.
type field struct {
	name, value string
	kind        kind
	bad         bool // the value is one that no field may have
}

func (f *field) size() uint32 { return uint32(len(f.name) + len(f.value) + 32) }

var static = func() (t [len(staticFields)/2 + 1]field) {
	for i := 1; i < len(t); i++ {
		name, value := staticFields[2*i-2], staticFields[2*i-1]
		t[i] = field{name: name, value: value, kind: kindOf(name)}
	}
	return t
}()

// errCompression reports a header block that is not HPACK. What follows on the connection can't be understood.
var errCompression = errors.New("invalid header compression")

// A decoder keeps what HPACK remembers of one direction of a connection.
//
// Strings of the dynamic table are never overwritten, so that fields may share them; they lie together in slabs which
// the collector frees. Others are put into the arena of the message.
type decoder struct {
	ring    []field // its length is a power of two
	next    int     // where the next entry goes, modulo the length
	n       int
	size    uint32
	max     uint32 // as the peer has set it
	allowed uint32 // as we have told the peer
	shrink  bool   // the peer must set a smaller max before anything else

	slab []byte
	tmp  []byte // what was last Huffman-decoded
	last field  // that is not in the table
}

const (
	defaultTable = 4096
	slabMin      = 256
	slabMax      = 2048
	tmpKeep      = 1024
)

func (d *decoder) init() { d.max, d.allowed = defaultTable, defaultTable }

// setAllowed changes the bound once the peer has acknowledged it.
func (d *decoder) setAllowed(n uint32) {
	d.allowed = n
	d.shrink = d.max > n
}

// release frees what is not needed between blocks.
func (d *decoder) release() {
	if cap(d.tmp) > tmpKeep {
		d.tmp = nil
	}
}

func (d *decoder) at(i uint64) *field {
	switch {
	case i == 0:
		return nil
	case i < uint64(len(static)):
		return &static[i]
	case i-uint64(len(static)) < uint64(d.n):
		return &d.ring[(d.next-1-int(i)+len(static))&(len(d.ring)-1)]
	}
	return nil
}

func (d *decoder) evict(room uint32) {
	for d.n > 0 && d.size+room > d.max {
		f := &d.ring[(d.next-d.n)&(len(d.ring)-1)]
		d.size -= f.size()
		*f = field{}
		d.n--
	}
}

func (d *decoder) add(f field) {
	size := f.size()
	d.evict(size)
	if size > d.max {
		return
	}
	if d.n == len(d.ring) {
		ring := make([]field, max(8, 2*d.n))
		for i := range d.n {
			ring[i] = d.ring[(d.next-d.n+i)&(len(d.ring)-1)]
		}
		d.ring, d.next = ring, d.n
	}
	d.ring[d.next&(len(d.ring)-1)] = f
	d.next = (d.next + 1) & (len(d.ring) - 1)
	d.n++
	d.size += size
}

// keep copies a string to where it stays.
func (d *decoder) keep(b []byte) string {
	var s string
	d.slab, s = keep(d.slab, b)
	return s
}

// decode hands the fields of a block to emit until limit bytes of names and values have been made; the rest only
// changes the table. It reports whether all were handed on. A field is good until emit returns, its strings as long as
// the arena's.
func (d *decoder) decode(b []byte, arena *message.Arena, limit int, emit func(*field)) (complete bool, err error) {
	start := true
	for len(b) > 0 {
		c := b[0]
		switch {
		case c&0x80 != 0: // indexed
			i, rest, ok := integer(b, 7)
			f := d.at(i)
			if !ok || f == nil || d.shrink {
				return false, errCompression
			}
			b = rest
			// What a field costs beyond its bytes counts too, or many empty ones would be free.
			if limit -= int(f.size()) - 32 + fieldCost; limit >= 0 {
				emit(f)
			}
		case c&0xe0 == 0x20: // the table's size
			n, rest, ok := integer(b, 5)
			if !ok || !start || n > uint64(d.allowed) {
				return false, errCompression
			}
			b = rest
			d.max, d.shrink = uint32(n), false
			d.evict(0)
			continue
		default:
			prefix, indexed := uint(4), false
			if c&0x40 != 0 {
				prefix, indexed = 6, true
			}
			if d.shrink {
				return false, errCompression
			}
			if b, err = d.literal(b, prefix, indexed, arena, &limit, emit); err != nil {
				return false, err
			}
		}
		start = false
	}
	return limit >= 0, nil
}

// fieldCost is counted for each field beside its bytes.
const fieldCost = 2

// literal decodes a field that is not in the table.
func (d *decoder) literal(b []byte, prefix uint, indexed bool, arena *message.Arena, limit *int, emit func(*field)) ([]byte, error) {
	i, b, ok := integer(b, prefix)
	if !ok {
		return nil, errCompression
	}
	f := &d.last
	*f = field{}
	var raw []byte
	huffman := false
	named := i > 0
	if named {
		e := d.at(i)
		if e == nil {
			return nil, errCompression
		}
		f.name, f.kind = e.name, e.kind
	} else {
		if raw, huffman, b, ok = text(b); !ok {
			return nil, errCompression
		}
		// A string becomes at most 30/5 times smaller and 8/5 times larger. Blocks are bounded, so decoding what will
		// not be handed on is.
		if huffman {
			if d.tmp, ok = appendHuffman(d.tmp[:0], raw); !ok {
				return nil, errCompression
			}
			raw = d.tmp
		}
		if s, known := message.Intern(raw); known {
			f.name = s
		} else if s, known := pseudo(raw); known {
			f.name = s
		} else if indexed && len(raw) <= int(d.max) {
			f.name = d.keep(raw)
		} else if len(raw) <= *limit {
			f.name = arena.Bytes(raw)
		} else {
			*limit = -1
		}
		if f.name != "" {
			f.kind = kindOf(f.name)
		} else {
			f.kind = kindBad
		}
	}
	nameLen := len(f.name)
	if !named {
		nameLen = len(raw)
	}
	if raw, huffman, b, ok = text(b); !ok {
		return nil, errCompression
	}
	switch {
	case indexed:
		if huffman {
			if d.tmp, ok = appendHuffman(d.tmp[:0], raw); !ok {
				return nil, errCompression
			}
			raw = d.tmp
		}
		size := nameLen + len(raw) + 32
		if size > int(d.max) {
			d.evict(d.max + 1)
			if *limit -= size - 32 + fieldCost; *limit < 0 {
				return b, nil
			}
			f.value = arena.Bytes(raw)
			f.bad = !all(f.value, classValue)
			break
		}
		if f.value = commonValue(raw); f.value == "" {
			f.value = d.keep(raw)
		}
		f.bad = !all(f.value, classValue)
		d.add(*f)
		*limit -= size - 32 + fieldCost
	case huffman:
		// At least 8/30 of the length.
		if *limit < nameLen+len(raw)/4 {
			if _, ok := appendHuffman(d.tmp[:0], raw); !ok {
				return nil, errCompression
			}
			*limit = -1
			return b, nil
		}
		v, ok := appendHuffman(arena.Begin(), raw)
		if !ok {
			return nil, errCompression
		}
		f.value = arena.End(v)
		f.bad = !all(f.value, classValue)
		*limit -= nameLen + len(f.value) + fieldCost
	default:
		if *limit -= nameLen + len(raw) + fieldCost; *limit < 0 {
			return b, nil
		}
		f.value = arena.Bytes(raw)
		f.bad = !all(f.value, classValue)
	}
	if *limit >= 0 {
		emit(f)
	}
	return b, nil
}

// pseudo returns the name of a pseudo-header as a constant.
func pseudo(b []byte) (string, bool) {
	switch string(b) {
	case ":method":
		return ":method", true
	case ":scheme":
		return ":scheme", true
	case ":authority":
		return ":authority", true
	case ":path":
		return ":path", true
	case ":protocol":
		return ":protocol", true
	case ":status":
		return ":status", true
	}
	return "", false
}

// commonValue returns a value that many fields have as a constant; empty if it is none.
func commonValue(b []byte) string {
	switch string(b) {
	case "application/grpc":
		return "application/grpc"
	case "application/json":
		return "application/json"
	case "trailers":
		return "trailers"
	case "0":
		return "0"
	}
	return ""
}

// integer decodes an integer with a prefix of some bits: RFC 7541, section 5.1. What does not fit in 32 bits is
// refused.
func integer(b []byte, prefix uint) (n uint64, rest []byte, ok bool) {
	if len(b) == 0 {
		return 0, nil, false
	}
	mask := uint64(1)<<prefix - 1
	if n = uint64(b[0]) & mask; n < mask {
		return n, b[1:], true
	}
	for i := 1; i < len(b) && i <= 6; i++ {
		n += uint64(b[i]&0x7f) << (7 * (i - 1))
		if b[i]&0x80 == 0 {
			return n, b[i+1:], n < 1<<32
		}
	}
	return 0, nil, false
}

// text splits a string literal off.
func text(b []byte) (s []byte, huffman bool, rest []byte, ok bool) {
	if len(b) == 0 {
		return nil, false, nil, false
	}
	huffman = b[0]&0x80 != 0
	n, rest, ok := integer(b, 7)
	if !ok || n > uint64(len(rest)) {
		return nil, false, nil, false
	}
	return rest[:n], huffman, rest[n:], true
}
