package listener

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// facts are what filter chains are matched by.
type facts struct {
	local     netip.AddrPort // invalid for UNIX sockets
	remote    netip.AddrPort // as told by whoever may tell
	direct    netip.AddrPort // the peer of the socket
	server    string         // server name, lower case
	transport string         // "tls", "raw_buffer", or empty if nobody looked
	protocols []string       // application protocols, the client's order
}

// A matcher finds the filter chain of a connection: a tree with one level for
// each criterion, the most important first. On each level the most specific
// value that fits is taken, and what other branches hold does not matter any
// more, even if nothing below fits.
type matcher struct {
	root node
	def  *chain
}

func newMatcher(chains []*chain, def *chain) *matcher {
	return &matcher{root: build(chains, 0), def: def}
}

// match returns the chain, or nil if there is none.
func (m *matcher) match(f *facts) *chain {
	n := m.root
	for n != nil {
		if leaf, ok := n.(leaf); ok {
			return leaf.c
		}
		n = n.next(f)
	}
	return m.def
}

// peeks reports whether what a client sends first can matter, as far as a connection is known by its addresses: to the
// choice of the chain, or to what the chain does. Where it cannot, nobody waits for a client whose server speaks first.
func (m *matcher) peeks(f *facts) bool {
	for n := m.root; ; {
		switch x := n.(type) {
		case nil:
			return m.def.peeks()
		case leaf:
			return x.c.peeks()
		case *byServer:
			if len(x.branch) > 0 {
				return true
			}
		case *byTransport:
			if len(x.branch) > 0 {
				return true
			}
		case *byProtocol:
			if len(x.branch) > 0 {
				return true
			}
		}
		n = n.next(f)
	}
}

// peeks reports whether the chain does more than to carry bytes for whoever connects. C may be nil.
func (c *chain) peeks() bool {
	if c == nil || c.model.TLS != nil {
		return true
	}
	if _, ok := c.model.Terminal.(*model.TCPProxy); !ok {
		return true
	}
	return slices.ContainsFunc(c.model.Filters, func(f model.NetworkFilter) bool {
		_, ok := f.(*model.ConnectionLimit)
		return !ok
	})
}

// A node is one level of the tree. Next returns nil if no branch fits.
type node interface{ next(*facts) node }

type leaf struct{ c *chain }

func (leaf) next(*facts) node { return nil }

// build makes the tree of the level with the given number.
func build(chains []*chain, level int) node {
	if len(chains) == 0 {
		return nil
	}
	sub := func(list []*chain) node { return build(list, level+1) }
	switch level {
	case 0:
		return &byPort{newTable(chains, sub, func(c *chain) []uint16 {
			if p := c.model.Match.DestinationPort; p != 0 {
				return []uint16{p}
			}
			return nil
		}), func(f *facts) (uint16, bool) { return f.local.Port(), f.local.IsValid() }}
	case 1:
		return newByPrefix(chains, sub, func(m *model.ChainMatch) []netip.Prefix { return m.DestinationPrefixes }, func(f *facts) netip.Addr { return f.local.Addr() })
	case 2:
		return &byServer{newTable(chains, sub, func(c *chain) []string { return c.model.Match.ServerNames })}
	case 3:
		return &byTransport{newTable(chains, sub, func(c *chain) []string {
			if t := c.model.Match.TransportProtocol; t != "" {
				return []string{t}
			}
			return nil
		})}
	case 4:
		return &byProtocol{newTable(chains, sub, func(c *chain) []string { return c.model.Match.ApplicationProtocols })}
	case 5:
		return newByPrefix(chains, sub, func(m *model.ChainMatch) []netip.Prefix { return m.DirectSourcePrefixes }, func(f *facts) netip.Addr { return f.direct.Addr() })
	case 6:
		return &bySource{newTable(chains, sub, func(c *chain) []model.SourceType {
			if t := c.model.Match.SourceType; t != model.SourceAny {
				return []model.SourceType{t}
			}
			return nil
		})}
	case 7:
		return newByPrefix(chains, sub, func(m *model.ChainMatch) []netip.Prefix { return m.SourcePrefixes }, func(f *facts) netip.Addr { return f.remote.Addr() })
	case 8:
		return &byPort{newTable(chains, sub, func(c *chain) []uint16 { return c.model.Match.SourcePorts }),
			func(f *facts) (uint16, bool) { return f.remote.Port(), f.remote.IsValid() }}
	}
	return leaf{chains[0]} // matches that are equal were refused before
}

// A table has a branch for each value, and one for chains that name none.
type table[K comparable] struct {
	branch map[K]node
	any    node
}

func newTable[K comparable](chains []*chain, sub func([]*chain) node, keys func(*chain) []K) table[K] {
	groups := map[K][]*chain{}
	var rest []*chain
	for _, c := range chains {
		k := keys(c)
		if len(k) == 0 {
			rest = append(rest, c)
		}
		for _, x := range k {
			if !slices.Contains(groups[x], c) {
				groups[x] = append(groups[x], c)
			}
		}
	}
	t := table[K]{any: sub(rest)}
	if len(groups) > 0 {
		t.branch = make(map[K]node, len(groups))
		for k, g := range groups {
			t.branch[k] = sub(g)
		}
	}
	return t
}

type byPort struct {
	table[uint16]
	port func(*facts) (uint16, bool)
}

func (n *byPort) next(f *facts) node {
	if p, ok := n.port(f); ok {
		if b := n.branch[p]; b != nil {
			return b
		}
	}
	return n.any
}

type byPrefix struct {
	table[netip.Prefix]
	bits [2][]int // prefix lengths in use, longest first; for IPv4 and IPv6
	addr func(*facts) netip.Addr
}

func newByPrefix(chains []*chain, sub func([]*chain) node, get func(*model.ChainMatch) []netip.Prefix, addr func(*facts) netip.Addr) *byPrefix {
	n := &byPrefix{addr: addr, table: newTable(chains, sub, func(c *chain) []netip.Prefix { return get(&c.model.Match) })}
	for p := range n.branch {
		i := family(p.Addr())
		if !slices.Contains(n.bits[i], p.Bits()) {
			n.bits[i] = append(n.bits[i], p.Bits())
		}
	}
	for i := range n.bits {
		slices.Sort(n.bits[i])
		slices.Reverse(n.bits[i])
	}
	return n
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func (n *byPrefix) next(f *facts) node {
	a := n.addr(f).Unmap().WithZone("")
	if a.IsValid() {
		for _, bits := range n.bits[family(a)] {
			p, err := a.Prefix(bits)
			if err != nil {
				continue
			}
			if b := n.branch[p]; b != nil {
				return b
			}
		}
	}
	return n.any
}

type byServer struct{ table[string] }

func (n *byServer) next(f *facts) node {
	if len(n.branch) > 0 && f.server != "" {
		if b := n.branch[f.server]; b != nil {
			return b
		}
		for rest := f.server; ; {
			_, after, ok := strings.Cut(rest, ".")
			if !ok {
				break
			}
			if b := n.branch["*."+after]; b != nil {
				return b
			}
			rest = after
		}
	}
	return n.any
}

type byTransport struct{ table[string] }

func (n *byTransport) next(f *facts) node {
	if b := n.branch[f.transport]; b != nil {
		return b
	}
	return n.any
}

type byProtocol struct{ table[string] }

func (n *byProtocol) next(f *facts) node {
	for _, p := range f.protocols {
		if b := n.branch[p]; b != nil {
			return b
		}
	}
	return n.any
}

type bySource struct{ table[model.SourceType] }

func (n *bySource) next(f *facts) node {
	if len(n.branch) > 0 {
		kind := model.SourceExternal
		remote := f.remote.Addr().Unmap()
		if !remote.IsValid() || remote.IsLoopback() || remote == f.local.Addr().Unmap() {
			kind = model.SourceLocal
		}
		if b := n.branch[kind]; b != nil {
			return b
		}
	}
	return n.any
}
