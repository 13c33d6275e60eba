//go:build !linux

package dns

import "net"

func newBatch(conn net.PacketConn) batch { return &plainBatch{conn: conn} }
