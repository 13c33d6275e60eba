package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"time"

	"github.com/sarnmesh/sarn/command/agent/config"
)

// sockets are what the agent listens on. They are opened before anything starts, so that a taken port ends the start
// with nothing changed.
type sockets struct {
	server   net.Listener // nil on clients
	lan      net.Listener
	lanUDP   net.PacketConn
	dnsTCP   []net.Listener
	dnsUDP   []net.PacketConn
	http     []net.Listener
	https    []net.Listener
	grpc     []net.Listener
	grpcTLS  []net.Listener
	workload net.Listener // nil when off
	wan      net.Listener // nil when off, as are packets
	wanUDP   net.PacketConn
	unixSock []string // paths to remove at the end
}

func listen(s *config.Settings) (_ *sockets, err error) {
	o := &sockets{}
	defer func() {
		if err != nil {
			o.close()
		}
	}()
	tcp := func(what string, addr netip.AddrPort) (net.Listener, error) {
		l, err := net.Listen("tcp", addr.String())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		return l, nil
	}
	if s.Server {
		if o.server, err = tcp("server port", s.Addresses.Server); err != nil {
			return nil, err
		}
	}
	if o.lan, err = tcp("LAN gossip port", s.Addresses.SerfLAN); err != nil {
		return nil, err
	}
	if o.lanUDP, err = net.ListenPacket("udp", s.Addresses.SerfLAN.String()); err != nil {
		return nil, fmt.Errorf("LAN gossip port: %w", err)
	}
	if s.Server && s.Addresses.SerfWAN.IsValid() {
		if o.wan, err = tcp("WAN gossip port", s.Addresses.SerfWAN); err != nil {
			return nil, err
		}
		if o.wanUDP, err = net.ListenPacket("udp", s.Addresses.SerfWAN.String()); err != nil {
			return nil, fmt.Errorf("WAN gossip port: %w", err)
		}
	}
	for _, addr := range s.Addresses.DNS {
		l, err := tcp("DNS port", addr)
		if err != nil {
			return nil, err
		}
		o.dnsTCP = append(o.dnsTCP, l)
		p, err := net.ListenPacket("udp", addr.String())
		if err != nil {
			return nil, fmt.Errorf("DNS port: %w", err)
		}
		o.dnsUDP = append(o.dnsUDP, p)
	}
	for _, group := range []struct {
		what string
		from []config.Listen
		to   *[]net.Listener
	}{
		{"HTTP port", s.Addresses.HTTP, &o.http}, {"HTTPS port", s.Addresses.HTTPS, &o.https},
		{"gRPC port", s.Addresses.GRPC, &o.grpc}, {"gRPC-TLS port", s.Addresses.GRPCTLS, &o.grpcTLS},
	} {
		for _, addr := range group.from {
			l, err := o.open(addr, s.UnixSockets)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", group.what, err)
			}
			*group.to = append(*group.to, l)
		}
	}
	if path := s.WorkloadAPI.Socket; path != "" {
		if o.workload, err = o.open(config.Listen{Network: "unix", Address: path}, config.UnixSockets{Mode: "666"}); err != nil {
			return nil, fmt.Errorf("workload_api.socket: %w", err)
		}
	}
	return o, nil
}

// open opens a TCP or UNIX listener; a socket file that a dead process left is replaced.
func (o *sockets) open(addr config.Listen, u config.UnixSockets) (net.Listener, error) {
	if addr.Network != "unix" {
		return net.Listen(addr.Network, addr.Address)
	}
	if err := os.Remove(addr.Address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", addr.Address)
	if err != nil {
		return nil, err
	}
	o.unixSock = append(o.unixSock, addr.Address)
	if err := own(addr.Address, u); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// own gives a socket file its configured owner and mode.
func own(path string, u config.UnixSockets) error {
	uid, gid := -1, -1
	if u.User != "" {
		id := u.User
		if found, err := user.Lookup(u.User); err == nil {
			id = found.Uid
		}
		n, err := strconv.Atoi(id)
		if err != nil {
			return fmt.Errorf("unix_sockets.user %q is unknown", u.User)
		}
		uid = n
	}
	if u.Group != "" {
		id := u.Group
		if found, err := user.LookupGroup(u.Group); err == nil {
			id = found.Gid
		}
		n, err := strconv.Atoi(id)
		if err != nil {
			return fmt.Errorf("unix_sockets.group %q is unknown", u.Group)
		}
		gid = n
	}
	if uid >= 0 || gid >= 0 {
		if err := os.Chown(path, uid, gid); err != nil {
			return err
		}
	}
	if u.Mode != "" {
		return os.Chmod(path, u.FileMode())
	}
	return nil
}

// close closes what nobody has taken over.
func (o *sockets) close() {
	for _, l := range append(append(append(append(append([]net.Listener{}, o.dnsTCP...), o.http...), o.https...), o.grpc...), o.grpcTLS...) {
		l.Close()
	}
	for _, p := range o.dnsUDP {
		p.Close()
	}
	if o.server != nil {
		o.server.Close()
	}
	if o.workload != nil {
		o.workload.Close()
	}
	if o.lan != nil {
		o.lan.Close()
	}
	if o.lanUDP != nil {
		o.lanUDP.Close()
	}
	if o.wan != nil {
		o.wan.Close()
	}
	if o.wanUDP != nil {
		o.wanUDP.Close()
	}
	for _, path := range o.unixSock {
		os.Remove(path)
	}
}

// dial opens connections to other agents.
func dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	return d.DialContext(ctx, "tcp", address)
}
