package stream

import (
	"crypto/tls"
	"errors"
	"net"
	"syscall"
)

// Unwrap returns the connection that Ahead was put on, once or more often, and the bytes that come before those that
// it gives. The wrapper must not be read from any more.
func Unwrap(c net.Conn) (net.Conn, []byte) {
	var first []byte
	for {
		a, ok := c.(*ahead)
		if !ok {
			return c, first
		}
		if b := a.rest(); first == nil {
			first = b
		} else {
			first = append(first[:len(first):len(first)], b...)
		}
		c = a.Conn
	}
}

// Socket returns the system's socket under c, or under the TLS on it; nil if there is none.
func Socket(c net.Conn) syscall.RawConn {
	for {
		switch x := c.(type) {
		case *tls.Conn:
			c = x.NetConn()
		case *below:
			c = x.Conn
		case *ahead:
			c = x.Conn
		case *net.TCPConn:
			rc, _ := x.SyscallConn()
			return rc
		case *net.UnixConn:
			rc, _ := x.SyscallConn()
			return rc
		default:
			return nil
		}
	}
}

// ReadDecrypted reads what TLS on a connection from Below can give at once, without reading from that connection:
// nothing and no error if that is nothing.
func ReadDecrypted(c *tls.Conn, p []byte) (int, error) {
	b, ok := c.NetConn().(*below)
	if !ok {
		return 0, nil
	}
	b.eager = true
	n, err := c.Read(p)
	b.eager = false
	if errors.Is(err, errWouldWait) {
		err = nil
	}
	return n, err
}
