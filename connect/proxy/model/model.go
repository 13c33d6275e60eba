// Package model holds the configuration that a proxy runs: listeners with their
// filter chains, clusters with their endpoints, TLS contexts and secrets.
//
// It is what xDS resources become once package decode has checked them. Every
// value was validated by its maker, so the data plane needs no error paths for
// bad configuration, and nothing here knows protobuf. All values are immutable
// after they were handed to the data plane: an update brings new ones.
package model

import (
	"io/fs"
	"net"
	"net/netip"
	"strconv"
)

// An Address is a place to listen on or to connect to: an IP address or host
// name with a port, or a UNIX socket. Addresses are comparable.
type Address struct {
	Host string      // IP address, or a host name where DNS may resolve it; empty for a socket path
	Port uint16      // 0 asks the system for a port, which only tests want
	Path string      // UNIX socket path; "@name" is an abstract socket on Linux
	Mode fs.FileMode // of the socket file; 0 leaves the system's default
}

// Network returns the network name that package net uses: "tcp" or "unix".
func (a Address) Network() string {
	if a.Path != "" {
		return "unix"
	}
	return "tcp"
}

// String returns host:port or the socket path, as package net takes them.
func (a Address) String() string {
	if a.Path != "" {
		return a.Path
	}
	return net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
}

// IP returns the address if Host is one, else the zero Addr.
func (a Address) IP() netip.Addr {
	ip, _ := netip.ParseAddr(a.Host)
	return ip
}

// A Direction says which way the traffic of a listener flows, seen from the
// service that the proxy stands beside.
type Direction uint8

// The directions.
const (
	DirectionUnspecified Direction = iota
	Inbound
	Outbound
)

// String returns "INBOUND", "OUTBOUND" or "UNSPECIFIED".
func (d Direction) String() string {
	switch d {
	case Inbound:
		return "INBOUND"
	case Outbound:
		return "OUTBOUND"
	}
	return "UNSPECIFIED"
}
