//go:build !linux

package http1

import "net"

// How to wait without a buffer is only known on Linux.
const canReadSockets = false

func (in *input) readSocket(uintptr) bool { return true }

func (in *input) fromSocket() (int, error) { return in.conn.Read(in.buf[in.w:]) }

// A probe looks at a socket without waiting, which is only known how to be done on Linux.
type probe struct{}

func (p *probe) init(net.Conn) {}

func (p *probe) left() bool { return false }

func (p *probe) readable() bool { return false }
