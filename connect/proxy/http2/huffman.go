package http2

// Decoding looks up huffmanBits bits at a time. Longer codes, which stand for bytes that are rare in fields, are found
// by their length: among codes of one length, values are consecutive in the order of huffmanLong.
const huffmanBits = 10

type huffmanEntry struct {
	symbol uint8
	length uint8 // 0: the code is longer than huffmanBits
}

var (
	huffmanShort [1 << huffmanBits]huffmanEntry
	huffmanLong  [31]struct {
		first   uint32 // the smallest code of the length
		symbols []uint8
	}
)

func init() {
	for sym, code := range huffmanCodes {
		n := int(huffmanLengths[sym])
		if n <= huffmanBits {
			first := int(code) << (huffmanBits - n)
			for i := range 1 << (huffmanBits - n) {
				huffmanShort[first+i] = huffmanEntry{uint8(sym), uint8(n)}
			}
			continue
		}
		l := &huffmanLong[n]
		if l.symbols == nil || code < l.first {
			l.first = code
		}
		l.symbols = append(l.symbols, 0)
	}
	for sym, code := range huffmanCodes {
		if l := &huffmanLong[huffmanLengths[sym]]; l.symbols != nil {
			l.symbols[code-l.first] = uint8(sym)
		}
	}
}

// appendHuffman appends what src decodes to. It reports false if src is not a valid string: RFC 7541, section 5.2.
func appendHuffman(dst, src []byte) ([]byte, bool) {
	var acc uint64 // the lowest have bits are still to be decoded
	have := uint(0)
	for {
		for have <= 56 && len(src) > 0 {
			acc = acc<<8 | uint64(src[0])
			src = src[1:]
			have += 8
		}
		for have >= 30 || len(src) == 0 {
			if have == 0 {
				return dst, true
			}
			// The next bits, filled up with ones as padding is.
			var bits uint32
			if have >= 30 {
				bits = uint32(acc>>(have-30)) & (1<<30 - 1)
			} else {
				bits = uint32(acc<<(30-have)|(1<<(30-have)-1)) & (1<<30 - 1)
			}
			if e := huffmanShort[bits>>(30-huffmanBits)]; e.length > 0 {
				if uint(e.length) > have {
					return dst, isPadding(acc, have)
				}
				dst = append(dst, e.symbol)
				have -= uint(e.length)
				continue
			}
			sym, n := huffmanLookup(bits)
			if n == 0 || n > have {
				return dst, isPadding(acc, have)
			}
			dst = append(dst, sym)
			have -= n
		}
	}
}

func isPadding(acc uint64, have uint) bool {
	ones := uint64(1)<<have - 1
	return have < 8 && acc&ones == ones
}

func huffmanLookup(bits uint32) (sym uint8, length uint) {
	for n := uint(huffmanBits + 1); n <= 30; n++ {
		l := &huffmanLong[n]
		if i := bits>>(30-n) - l.first; bits>>(30-n) >= l.first && int(i) < len(l.symbols) {
			return l.symbols[i], n
		}
	}
	return 0, 0
}
