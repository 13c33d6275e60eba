package message

import "unsafe"

// An Arena holds the strings of a message and is emptied at once. The zero Arena is ready for use. Its strings are
// good until Reset.
type Arena struct {
	buf []byte
}

const (
	arenaSize = 1 << 10
	// arenaKeep bounds the memory that an arena keeps when it is emptied.
	arenaKeep = 8 << 10
)

// Begin returns a slice to append the bytes of one string to. Every Begin is followed by End before anything else is
// asked of the arena.
func (a *Arena) Begin() []byte {
	if cap(a.buf)-len(a.buf) < 64 {
		// Strings that were given out keep the old block alive.
		a.buf = make([]byte, 0, max(arenaSize, 2*cap(a.buf)))
	}
	return a.buf[len(a.buf):]
}

// End makes b, what became of the slice that Begin returned, a string.
func (a *Arena) End(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if n := len(a.buf); n < cap(a.buf) && unsafe.SliceData(b) == unsafe.SliceData(a.buf[n:n+1]) {
		a.buf = a.buf[:n+len(b)]
	} else {
		a.buf = b // it grew out of the block, and what is left of the new one is good
	}
	return unsafe.String(unsafe.SliceData(b), len(b))
}

// Bytes copies b into the arena.
func (a *Arena) Bytes(b []byte) string { return a.End(append(a.Begin(), b...)) }

// String copies s into the arena.
func (a *Arena) String(s string) string { return a.End(append(a.Begin(), s...)) }

// Concat joins strings in the arena.
func (a *Arena) Concat(parts ...string) string {
	b := a.Begin()
	for _, p := range parts {
		b = append(b, p...)
	}
	return a.End(b)
}

// Reset empties the arena. The strings it gave out are no longer good.
func (a *Arena) Reset() {
	if cap(a.buf) > arenaKeep {
		a.buf = nil
		return
	}
	a.buf = a.buf[:0]
}
