package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// interfaceAddrs lists the addresses of the machine's network interfaces.
func interfaceAddrs() ([]netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				out = append(out, ip.Unmap())
			}
		}
	}
	return out, nil
}

// expand evaluates an address template and splits the result at white space.
func (b *builder) expand(key, s string) []string {
	out, err := b.src.Expand(s)
	if err != nil {
		b.fail(key, "%s: error parsing %q: %v", key, s, err)
		return nil
	}
	return strings.Fields(out)
}

// expandAll expands each element of a list, dropping what was there before.
func (b *builder) expandAll(key string, list []string) []string {
	var out []string
	for _, s := range list {
		for _, a := range b.expand(key, s) {
			if !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}

// expandJoin expands addresses to join. A provider string stays as it is: its spaces separate keys.
func (b *builder) expandJoin(key string, list []string) []string {
	var out []string
	for _, s := range list {
		if strings.Contains(s, "provider=") {
			out = append(out, s)
			continue
		}
		out = append(out, b.expandAll(key, []string{s})...)
	}
	return out
}

// An address is one expanded value: an IP or the path of a unix socket.
type address struct {
	ip   netip.Addr
	path string
}

// unixPath returns the path of a unix:// address.
func unixPath(s string) (string, bool) { return strings.CutPrefix(s, "unix://") }

// addresses expands the value of a key that takes several addresses.
func (b *builder) addresses(key string, s *string) []address {
	if s == nil {
		return nil
	}
	var out []address
	for _, a := range b.expand(key, *s) {
		if path, ok := unixPath(a); ok {
			out = append(out, address{path: path})
			continue
		}
		ip, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(a, "["), "]"))
		if err != nil {
			b.fail(key, "%s: invalid ip address: %s", key, a)
			continue
		}
		out = append(out, address{ip: ip.Unmap()})
	}
	return out
}

// ip expands the value of a key that takes one IP; the zero address if it is unset or empty.
func (b *builder) ip(key string, s *string) netip.Addr {
	switch all := b.addresses(key, s); {
	case len(all) == 0:
		return netip.Addr{}
	case len(all) > 1:
		b.fail(key, "%s: multiple addresses found: %s", key, strings.Join(strings.Fields(*s), " "))
		return netip.Addr{}
	case all[0].path != "":
		b.fail(key, "%s: cannot use a unix socket: %s", key, *s)
		return netip.Addr{}
	default:
		return all[0].ip
	}
}

// bind evaluates bind_addr, whose mistakes have texts of their own.
func (b *builder) bind() netip.Addr {
	const key = "bind_addr"
	w := b.doc.Written.BindAddr
	if w == nil {
		if b.src.Dev {
			return netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		return netip.IPv4Unspecified()
	}
	before := len(b.problems)
	all := b.addresses(key, w)
	switch {
	case len(b.problems) > before:
	case len(all) == 0:
		b.fail(key, "bind_addr cannot be empty")
	case len(all) > 1:
		b.fail(key, "bind_addr cannot contain multiple addresses. Use 'addresses.{dns,http,https}' instead.")
	case all[0].path != "":
		b.fail(key, "bind_addr cannot be a unix socket")
	default:
		return all[0].ip
	}
	return netip.Addr{}
}

// client evaluates client_addr.
func (b *builder) client() []netip.Addr {
	const key = "client_addr"
	w := b.doc.Written.ClientAddr
	if w == nil {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	var out []netip.Addr
	before := len(b.problems)
	for _, a := range b.addresses(key, w) {
		if a.path != "" {
			b.fail(key, "client_addr cannot be a unix socket")
			return nil
		}
		out = append(out, a.ip)
	}
	if len(out) == 0 && len(b.problems) == before {
		b.warn("client_addr is empty, client services (DNS, HTTP, HTTPS, GRPC) will not be listening for connections")
	}
	return out
}

// port checks and returns a port, 0 if its listener is off.
func (b *builder) port(key string, port int) uint16 {
	if port > 65535 {
		b.fail(key, "%s: invalid port: %d", key, port)
	}
	if port <= 0 || port > 65535 {
		return 0
	}
	return uint16(port)
}

// listeners joins the addresses of one service with its port.
func (b *builder) listeners(key string, s *string, client []netip.Addr, port uint16) []Listen {
	own := b.addresses(key, s)
	if len(own) == 0 {
		for _, ip := range client {
			own = append(own, address{ip: ip})
		}
	}
	var out []Listen
	for _, a := range own {
		switch {
		case a.path != "":
			out = append(out, Listen{"unix", a.path})
		case port != 0:
			out = append(out, Listen{"tcp", netip.AddrPortFrom(a.ip, port).String()})
		}
	}
	return out
}

// prefixes parses a list of CIDRs.
func (b *builder) prefixes(key string, list []string, format string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			b.fail(key, format, s)
			continue
		}
		out = append(out, p.Masked())
	}
	return out
}

// resolveAddresses computes everything in Addresses, the joins and the recursors.
func (b *builder) resolveAddresses() {
	s, w := &b.doc.Settings, &b.doc.Written
	a := &s.Addresses
	ports := struct{ dns, http, https, grpc, grpcTLS, server, lan, wan uint16 }{
		b.port("ports.dns", s.Ports.DNS), b.port("ports.http", s.Ports.HTTP), b.port("ports.https", s.Ports.HTTPS),
		b.port("ports.grpc", s.Ports.GRPC), b.port("ports.grpc_tls", s.Ports.GRPCTLS), b.port("ports.server", s.Ports.Server),
		b.port("ports.serf_lan", s.Ports.SerfLAN), b.port("ports.serf_wan", s.Ports.SerfWAN),
	}
	if s.Ports.Server <= 0 {
		b.fail("ports.server", "server-port must be greater than zero")
	}
	if s.Ports.SerfLAN <= 0 {
		b.fail("ports.serf_lan", "serf-lan-port must be greater than zero")
	}

	a.Client = b.client()
	for _, l := range b.listeners("addresses.dns", w.AddrDNS, a.Client, ports.dns) {
		if l.Network == "unix" {
			b.fail("addresses.dns", "DNS address cannot be a unix socket")
			continue
		}
		a.DNS = append(a.DNS, netip.MustParseAddrPort(l.Address))
	}
	a.HTTP = b.listeners("addresses.http", w.AddrHTTP, a.Client, ports.http)
	a.HTTPS = b.listeners("addresses.https", w.AddrHTTPS, a.Client, ports.https)
	a.GRPC = b.listeners("addresses.grpc", w.AddrGRPC, a.Client, ports.grpc)
	a.GRPCTLS = b.listeners("addresses.grpc_tls", w.AddrGRPCTLS, a.Client, ports.grpcTLS)

	a.Bind = b.bind()
	a.SerfLANAllowed = b.prefixes("serf_lan_allowed_cidrs", w.SerfLANAllowed, "serf_lan_allowed_cidrs: invalid cidr: %s")
	a.SerfWANAllowed = b.prefixes("serf_wan_allowed_cidrs", w.SerfWANAllowed, "serf_wan_allowed_cidrs: invalid cidr: %s")
	s.HTTP.AllowWriteFrom = b.prefixes("http_config.allow_write_http_from", w.AllowWriteFrom, "allow_write_http_from: invalid cidr: %s")

	s.Join.LAN = b.expandJoin("retry_join", w.RetryJoin)
	s.Join.WAN = b.expandJoin("retry_join_wan", w.RetryJoinWAN)
	s.Join.Gateways = b.expandJoin("primary_gateways", w.PrimaryGateways)
	s.AutoConfig.ServerAddresses = b.expandJoin("auto_config.server_addresses", w.ServerAddresses)
	for _, r := range b.expandAll("recursors", w.Recursors) {
		if _, ok := unixPath(r); ok {
			b.fail("recursors", "DNS Recursors cannot be unix sockets: %s", r)
			continue
		}
		if ip, err := netip.ParseAddr(strings.Trim(r, "[]")); err == nil && ip.IsUnspecified() {
			b.fail("recursors", "DNS recursor address cannot be 0.0.0.0, :: or [::]")
			continue
		}
		s.DNS.Recursors = append(s.DNS.Recursors, r)
	}
	if b.has("dns_config.trusted_networks") {
		s.DNS.TrustedNetworks = append([]netip.Prefix{}, b.prefixes("dns_config.trusted_networks", w.TrustedNetworks, "dns_config.trusted_networks: invalid cidr: %s")...)
	}
	s.DNS.AllowRecursionFrom = b.prefixes("dns_config.allow_recursion_from", w.AllowRecursionFrom, "dns_config.allow_recursion_from: invalid cidr: %s")
	if len(s.DNS.Recursors) > 0 && len(w.AllowRecursionFrom) == 0 {
		for _, at := range a.DNS {
			if ip := at.Addr(); !ip.IsLoopback() && !ip.IsPrivate() && !ip.IsLinkLocalUnicast() {
				b.warn("recursors: whoever reaches the DNS port at %s may use them; name those who may with dns_config.allow_recursion_from", at)
			}
		}
	}

	lan, wan := b.ip("serf_lan", w.SerfLAN), b.ip("serf_wan", w.SerfWAN)
	if !lan.IsValid() {
		lan = a.Bind
	}
	if !wan.IsValid() {
		wan = a.Bind
	}
	b.advertise(a)
	if len(b.problems) > 0 {
		return
	}
	a.Server = netip.AddrPortFrom(a.Bind, ports.server)
	a.ServerAdvertise = netip.AddrPortFrom(a.Advertise, ports.server)
	a.SerfLAN = netip.AddrPortFrom(lan, ports.lan)
	a.SerfLANAdvertise = netip.AddrPortFrom(a.Advertise, ports.lan)
	if ports.wan != 0 {
		a.SerfWAN = netip.AddrPortFrom(wan, ports.wan)
		a.SerfWANAdvertise = netip.AddrPortFrom(a.AdvertiseWAN, ports.wan)
	}
	b.distinct(a)
}

// family checks that an address is of the family its key promises.
func (b *builder) family(key string, s *string, v4 bool) netip.Addr {
	ip := b.ip(key, s)
	if ip.IsValid() && ip.Is4() != v4 {
		b.fail(key, "%s must be an ip%s address", key, map[bool]string{true: "v4", false: "v6"}[v4])
		return netip.Addr{}
	}
	return ip
}

// advertise works out the addresses others are told. The machine's interfaces are looked at only when nothing else is
// wrong: a configuration is not blamed for the machine it is checked on.
func (b *builder) advertise(a *Addresses) {
	w := &b.doc.Written
	v4 := b.family("advertise_addr_ipv4", w.AdvertiseAddrIPv4, true)
	v6 := b.family("advertise_addr_ipv6", w.AdvertiseAddrIPv6, false)
	wan4 := b.family("advertise_addr_wan_ipv4", w.AdvertiseAddrWANIPv4, true)
	wan6 := b.family("advertise_addr_wan_ipv6", w.AdvertiseAddrWANIPv6, false)
	lan, wan := b.ip("advertise_addr", w.AdvertiseAddr), b.ip("advertise_addr_wan", w.AdvertiseAddrWAN)
	if lan.IsValid() && lan.IsUnspecified() {
		b.fail("advertise_addr", "Advertise address cannot be 0.0.0.0, :: or [::]")
	}
	if wan.IsValid() && wan.IsUnspecified() {
		b.fail("advertise_addr_wan", "Advertise WAN address cannot be 0.0.0.0, :: or [::]")
	}
	if len(b.problems) > 0 {
		return
	}
	if !lan.IsValid() {
		switch lan = a.Bind; {
		case !lan.IsUnspecified():
		case v4.IsValid() && lan.Is4():
			lan = v4
		case v6.IsValid() && lan.Is6():
			lan = v6
		default:
			lan = b.only(lan.Is4())
		}
	}
	if !lan.IsValid() {
		return
	}
	if !wan.IsValid() {
		wan = lan
	}
	pick := func(given, derived netip.Addr, is4 bool) netip.Addr {
		if !given.IsValid() && derived.Is4() == is4 {
			return derived
		}
		return given
	}
	a.Advertise, a.AdvertiseWAN = lan, wan
	a.AdvertiseIPv4, a.AdvertiseIPv6 = pick(v4, lan, true), pick(v6, lan, false)
	a.AdvertiseWANIPv4, a.AdvertiseWANIPv6 = pick(wan4, wan, true), pick(wan6, wan, false)
}

// only finds the one address of the machine that others can reach it by: the private IPv4, or the public IPv6.
func (b *builder) only(v4 bool) netip.Addr {
	all, err := b.src.Interfaces()
	if err != nil {
		b.fail("bind_addr", "Error detecting the advertise address: %v", err)
		return netip.Addr{}
	}
	what := "public IPv6"
	if v4 {
		what = "private IPv4"
	}
	var found []netip.Addr
	for _, ip := range all {
		private := ip.IsPrivate() || ip.Is4() && netip.MustParsePrefix("100.64.0.0/10").Contains(ip)
		reachable := !ip.IsLoopback() && !ip.IsLinkLocalUnicast() && !ip.IsMulticast() && !ip.IsUnspecified()
		if ip.Is4() == v4 && reachable && private == v4 && !slices.Contains(found, ip) {
			found = append(found, ip)
		}
	}
	switch len(found) {
	case 1:
		return found[0]
	case 0:
		b.fail("bind_addr", "No %s address found", what)
	default:
		b.fail("bind_addr", "Multiple %s addresses found. Please configure one with 'bind' and/or 'advertise'.", what)
	}
	return netip.Addr{}
}

// distinct reports two listeners on one address.
func (b *builder) distinct(a *Addresses) {
	type listener struct{ name, key string }
	seen := map[string]listener{}
	add := func(name, key, network, addr string) {
		id := network + " " + addr
		if other, ok := seen[id]; ok {
			if !b.has(key) {
				key = other.key
			}
			b.fail(key, "%s address %s already configured for %s", name, addr, other.name)
			return
		}
		seen[id] = listener{name, key}
	}
	for _, ap := range a.DNS {
		add("DNS", "ports.dns", "tcp", ap.String())
	}
	for _, l := range a.HTTP {
		add("HTTP", "ports.http", l.Network, l.Address)
	}
	for _, l := range a.HTTPS {
		add("HTTPS", "ports.https", l.Network, l.Address)
	}
	for _, l := range a.GRPC {
		add("gRPC", "ports.grpc", l.Network, l.Address)
	}
	for _, l := range a.GRPCTLS {
		add("gRPC TLS", "ports.grpc_tls", l.Network, l.Address)
	}
	add("RPC Advertise", "ports.server", "tcp", a.ServerAdvertise.String())
	add("Serf Advertise LAN", "ports.serf_lan", "tcp", a.SerfLANAdvertise.String())
	if a.SerfWANAdvertise.IsValid() {
		add("Serf Advertise WAN", "ports.serf_wan", "tcp", a.SerfWANAdvertise.String())
	}
}

// taggedAddresses completes the node's tagged addresses from what is advertised.
func (s *Settings) taggedAddresses() map[string]string {
	out := map[string]string{}
	a := s.Addresses
	for name, ip := range map[string]netip.Addr{
		"lan": a.Advertise, "lan_ipv4": a.AdvertiseIPv4, "lan_ipv6": a.AdvertiseIPv6,
		"wan": a.AdvertiseWAN, "wan_ipv4": a.AdvertiseWANIPv4, "wan_ipv6": a.AdvertiseWANIPv6,
	} {
		if ip.IsValid() {
			out[name] = ip.String()
		}
	}
	for name, addr := range s.Node.TaggedAddresses {
		out[name] = addr
	}
	return out
}

// String is the address as it is told to people.
func (l Listen) String() string {
	if l.Network == "unix" {
		return "unix://" + l.Address
	}
	return fmt.Sprint(l.Address)
}
