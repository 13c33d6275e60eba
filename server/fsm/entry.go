package fsm

import (
	"encoding/binary"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/sarnmesh/sarn/internal/rpc"
)

// record is the form of a command in the log.
type record struct {
	Kind    Kind   `cbor:"k"`
	Version uint8  `cbor:"v"`
	Data    []byte `cbor:"d"`
}

// Encode makes a log entry of commands: the encoding, by package rpc, of a list of records. It is written here by hand,
// so that the bytes of each request are copied once. A Req of type cbor.RawMessage is encoded already.
func Encode(commands []Command) ([]byte, error) {
	datas, size := make([][]byte, len(commands)), maxHead
	for i, c := range commands {
		data, ok := c.Req.(cbor.RawMessage)
		if !ok {
			var err error
			if data, err = rpc.Marshal(c.Req); err != nil {
				return nil, fmt.Errorf("encode command of kind %d: %w", c.Kind, err)
			}
		}
		datas[i], size = data, size+maxRecordHead+len(data)
	}
	entry := appendHead(make([]byte, 0, size), majorArray, uint64(len(commands)))
	for i, c := range commands {
		entry = appendHead(append(entry, recordStart...), majorBytes, uint64(len(datas[i])))
		entry = append(append(entry, datas[i]...), 0x61, 'k')
		entry = append(appendHead(entry, majorUint, uint64(c.Kind)), 0x61, 'v', 1)
	}
	return entry, nil
}

// decode returns the records of an entry. Their data is part of it. What Encode makes is read here; an entry of another
// form, as another version may have made it, by package rpc, which also tells what is wrong with it.
func decode(entry []byte) ([]record, error) {
	if records, ok := decodeOwn(entry); ok {
		return records, nil
	}
	var records []record
	err := rpc.Unmarshal(entry, &records)
	return records, err
}

// Major types of CBOR (RFC 8949 section 3), and the most bytes of a head.
const (
	majorUint  = 0 << 5
	majorBytes = 2 << 5
	majorArray = 4 << 5
	maxHead    = 9
)

// recordStart begins a record: a map of three pairs, the first key being "d". The others follow in the order of their
// bytes.
const recordStart = "\xa3\x61d"

// maxRecordHead is the most that a record adds to its data.
const maxRecordHead = len(recordStart) + maxHead + 2 + 3 + 2 + 1

// appendHead appends the shortest head with this argument.
func appendHead(b []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}

// head reads a head that appendHead can have made.
func head(b []byte, major byte) (n uint64, rest []byte, ok bool) {
	if len(b) == 0 || b[0]&0xe0 != major {
		return 0, nil, false
	}
	low := b[0] & 0x1f
	if low < 24 {
		return uint64(low), b[1:], true
	}
	size := 1 << (low - 24)
	if low > 27 || len(b) < 1+size {
		return 0, nil, false
	}
	for _, c := range b[1 : 1+size] {
		n = n<<8 | uint64(c)
	}
	return n, b[1+size:], true
}

// literal skips a string that must be there.
func literal(b []byte, want string) (rest []byte, ok bool) {
	if len(b) < len(want) || string(b[:len(want)]) != want {
		return nil, false
	}
	return b[len(want):], true
}

func decodeOwn(entry []byte) (records []record, ok bool) {
	n, b, ok := head(entry, majorArray)
	if !ok || n > uint64(len(b)/(len(recordStart)+1)) {
		return nil, false
	}
	records = make([]record, n)
	for i := range records {
		var size, kind, version uint64
		if b, ok = literal(b, recordStart); !ok {
			return nil, false
		}
		if size, b, ok = head(b, majorBytes); !ok || size > uint64(len(b)) {
			return nil, false
		}
		records[i].Data, b = b[:size:size], b[size:]
		if b, ok = literal(b, "\x61k"); !ok {
			return nil, false
		}
		if kind, b, ok = head(b, majorUint); !ok || kind > 1<<16-1 {
			return nil, false
		}
		if b, ok = literal(b, "\x61v"); !ok {
			return nil, false
		}
		if version, b, ok = head(b, majorUint); !ok || version > 1<<8-1 {
			return nil, false
		}
		records[i].Kind, records[i].Version = Kind(kind), uint8(version)
	}
	return records, len(b) == 0
}
