package stream

import (
	"crypto/tls"
	"syscall"
)

// A First reads the first byte that there is from TLS, waiting for it without a buffer. On TLS over Below it needs little
// stack while it waits: package crypto/tls takes so much that the stacks of idle connections would be twice as large.
type First struct {
	conn   *tls.Conn
	below  *below
	socket syscall.RawConn       // nil waits within TLS
	look   func(fd uintptr) bool // reports whether there may be something to read
	looked bool
	one    [1]byte
}

// Init makes f read from c, whose handshake is done or not begun. What f is part of must not be copied afterwards.
func (f *First) Init(c *tls.Conn) {
	f.conn = c
	releaseHandshake(c)
	var ok bool
	if f.below, ok = c.NetConn().(*below); ok && canLook {
		if f.socket = Socket(f.below); f.socket != nil {
			f.look = f.lookAt
		}
	}
}

// Read returns the first byte. After an error that is a deadline's it can be called again.
func (f *First) Read() (byte, error) {
	if f.socket != nil {
		// What TLS has already comes first.
		f.below.eager = true
		n, err := f.conn.Read(f.one[:])
		f.below.eager = false
		if n > 0 || err != errWouldWait {
			return f.got(n, err)
		}
		if !f.below.holds() {
			f.looked = false
			if err := f.socket.Read(f.look); err != nil {
				return 0, err
			}
		}
	}
	return f.got(f.conn.Read(f.one[:]))
}

func (f *First) got(n int, err error) (byte, error) {
	if n > 0 {
		return f.one[0], nil // the error comes again, if it lasts
	}
	return 0, err
}

// holds reports whether there are bytes below TLS that were read ahead.
func (b *below) holds() bool {
	for c := b.Conn; ; {
		a, ok := c.(*ahead)
		if !ok {
			return false
		}
		if len(a.bytes) > 0 {
			return true
		}
		c = a.Conn
	}
}
