//go:build !linux

package listener

import (
	"net"
	"net/netip"
	"syscall"
)

// reusePort does nothing where the option means something else.
func reusePort(_, _ string, _ syscall.RawConn) error { return nil }

// originalDst is only known how to be asked on Linux.
func originalDst(net.Conn) (netip.AddrPort, bool) { return netip.AddrPort{}, false }
