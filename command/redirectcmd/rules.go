package redirectcmd

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// table is the nftables table that holds everything: what is there was put there by this command, and goes with it.
const table = "sarn_redirect"

// Rules say which connections of a machine or network namespace a sidecar gets.
type Rules struct {
	ProxyUID     uint32 // whose connections are never redirected
	InboundPort  uint16 // where the sidecar takes connections from the mesh
	OutboundPort uint16 // where it takes those of applications

	ExcludeInboundPorts  []uint16       // stay with whoever listens there
	ExcludeOutboundPorts []uint16       // of destinations
	ExcludeOutbound      []netip.Prefix // destinations
	ExcludeUIDs          []uint32       // whose connections are left alone like the proxy's

	// DNS is where queries go to; the zero value leaves them alone.
	DNS netip.AddrPort
}

// Script returns the nft script that puts the rules in the place of those that were there, all at once.
func (r *Rules) Script() string {
	var b strings.Builder
	b.WriteString(removal)
	fmt.Fprintf(&b, "table inet %s {\n", table)

	// What comes from elsewhere for this host. Forwarded packets are others' business.
	b.WriteString("\tchain inbound {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n")
	b.WriteString("\t\tiifname \"lo\" return\n\t\tfib daddr type != local return\n")
	if len(r.ExcludeInboundPorts) > 0 {
		fmt.Fprintf(&b, "\t\ttcp dport %s return\n", set(r.ExcludeInboundPorts))
	}
	fmt.Fprintf(&b, "\t\tmeta l4proto tcp redirect to :%d\n\t}\n", r.InboundPort)

	b.WriteString("\tchain outbound {\n\t\ttype nat hook output priority -100; policy accept;\n")
	fmt.Fprintf(&b, "\t\tmeta skuid %s return\n", set(append([]uint32{r.ProxyUID}, r.ExcludeUIDs...)))
	if r.DNS.IsValid() {
		family := "ip"
		if r.DNS.Addr().Is6() {
			family = "ip6"
		}
		for _, protocol := range []string{"udp", "tcp"} {
			fmt.Fprintf(&b, "\t\tmeta nfproto %s %s dport 53 dnat %s to %s\n",
				map[string]string{"ip": "ipv4", "ip6": "ipv6"}[family], protocol, family, r.DNS)
		}
	}
	b.WriteString("\t\tip daddr 127.0.0.0/8 return\n")
	if len(r.ExcludeOutboundPorts) > 0 {
		fmt.Fprintf(&b, "\t\ttcp dport %s return\n", set(r.ExcludeOutboundPorts))
	}
	var four []netip.Prefix
	for _, p := range r.ExcludeOutbound {
		if p.Addr().Is4() { // over IPv6 nothing is redirected anyway
			four = append(four, p)
		}
	}
	if len(four) > 0 {
		fmt.Fprintf(&b, "\t\tip daddr %s return\n", set(apart(four)))
	}
	fmt.Fprintf(&b, "\t\tmeta nfproto ipv4 meta l4proto tcp redirect to :%d\n\t}\n}\n", r.OutboundPort)
	return b.String()
}

// removal is the nft script that takes the rules away, whether there are any or not.
const removal = "add table inet " + table + "\ndelete table inet " + table + "\n"

// set returns the elements as an anonymous set.
func set[T any](elements []T) string {
	text := make([]string, len(elements))
	for i, e := range elements {
		text[i] = fmt.Sprint(e)
	}
	slices.Sort(text)
	return "{ " + strings.Join(slices.Compact(text), ", ") + " }"
}

// apart leaves out prefixes that lie within others, which one set cannot hold together.
func apart(prefixes []netip.Prefix) []netip.Prefix {
	all := make([]netip.Prefix, len(prefixes))
	for i, p := range prefixes {
		all[i] = p.Masked()
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	var out []netip.Prefix
	for _, p := range all {
		if !slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Overlaps(p) }) {
			out = append(out, p)
		}
	}
	return out
}
