package agent

import (
	"crypto/tls"
	"net"
	"time"
)

// handshakes ends connections whose TLS handshake takes longer than the limit; see finishes.
type handshakes struct {
	net.Listener
	limit time.Duration
}

// Accept implements net.Listener.
func (l handshakes) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil || l.limit <= 0 {
		return conn, err
	}
	return &shaking{Conn: conn, timer: time.AfterFunc(l.limit, func() { conn.Close() })}, nil
}

// shaking is a connection in its handshake.
type shaking struct {
	net.Conn
	timer *time.Timer
}

// Close implements net.Conn.
func (c *shaking) Close() error {
	c.timer.Stop()
	return c.Conn.Close()
}

// finishes completes a configuration so that the limit ends with the handshake.
func finishes(base *tls.Config) *tls.Config {
	out := base.Clone()
	out.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := base.GetConfigForClient(hello)
		if conn, ok := hello.Conn.(*shaking); ok && err == nil {
			c.VerifyConnection = func(tls.ConnectionState) error {
				conn.timer.Stop()
				return nil
			}
		}
		return c, err
	}
	return out
}
