package mesh

import (
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/connect/chain"
)

// A NeedKind says what a need is about, and of which type its answer is.
type NeedKind uint8

// The kinds of needs.
const (
	_               NeedKind = iota
	NeedRoots                // *ca.RootsReply
	NeedLeaf                 // of Service, of mesh gateways when it is empty: *ca.Leaf with its private key
	NeedMesh                 // *entry.GetReply of the mesh entry; none is an answer
	NeedIntentions           // with destination Service: *intention.MatchReply for that one name
	NeedChain                // of Service as used from Datacenter, with Overrides: *chain.GetReply
	NeedInstances            // that speak for Service in Datacenter, those that Filter keeps, or as imported from Peer: *catalog.InstancesReply
	NeedEntry                // of kind Entry with the name Service: *entry.GetReply; none is an answer
	NeedCallable             // what Service may call: *intention.CallableReply
	NeedQuery                // the prepared query Service, executed in Datacenter for mesh-capable instances: *query.ExecuteReply
	NeedGateways             // the mesh gateways of Datacenter: *catalog.InstancesReply
	NeedPeer                 // whom to trust for Peer: *PeerBundle
	NeedEntries              // all of kind Entry: *entry.ListReply
	NeedLinks                // what the entries of gateway Service link it to: *entry.GatewayServicesReply
	NeedPlain                // instances of Service, in the mesh or not, those that Filter keeps: *catalog.InstancesReply
	NeedServices             // the names of all services: *catalog.ServicesReply
	NeedDatacenters          // *catalog.DatacentersReply
	NeedBundles              // whom to trust for the peers that Service is exported to, for all when it is empty: *peering.BundlesReply
	NeedExports              // the services exported to peers: *peering.ExportsReply
	NeedImports              // the services imported from peers: *peering.ImportsReply
)

var needNames = [...]string{
	"nothing", "roots", "leaf", "mesh entry", "intentions", "chain", "instances", "entry", "callable services", "query",
	"mesh gateways", "trust bundle of peer", "entries", "links", "plain instances", "services", "datacenters",
	"trust bundles of peers", "exports", "imports",
}

// A Need is one thing a snapshot is made of. Needs are comparable; which fields are set depends on the kind.
type Need struct {
	Kind       NeedKind
	Entry      entry.Kind
	Service    string
	Datacenter string // empty means the proxy's own
	Peer       string
	Filter     string
	Hosts      string // DNS names a leaf is to carry, separated by spaces
	Overrides  chain.Overrides
}

// String tells what the need is about, for logs.
func (n Need) String() string {
	what := []string{needNames[n.Kind]}
	for _, detail := range []string{string(n.Entry), n.Service, n.Datacenter, n.Peer, n.Filter} {
		if detail != "" {
			what = append(what, detail)
		}
	}
	return strings.Join(what, " ")
}

// A PeerBundle is whom to trust as members of another cluster.
type PeerBundle = peering.Bundle

// Needs returns what the proxy needs, as far as the answers so far tell: each chain that arrives adds the instances of
// its targets.
func (s *Snapshot) Needs() []Need {
	if s.Proxy.Service.Kind != catalog.KindConnectProxy {
		return s.gatewayNeeds()
	}
	needs := []Need{{Kind: NeedRoots}, s.leafNeed(), {Kind: NeedMesh}, s.intentionsNeed(), s.bundlesNeed()}
	seen := map[Need]bool{}
	add := func(all ...Need) {
		for _, n := range all {
			if !seen[n] {
				seen[n] = true
				needs = append(needs, n)
			}
		}
	}
	if s.Transparent() {
		add(s.callableNeed())
	}
	for _, name := range s.TokenIssuers() {
		add(providerNeed(name))
	}
	if m := s.Intentions(); m != nil && len(m.Matches) > 0 {
		for _, x := range m.Matches[0] {
			if x.SourcePeer != "" {
				add(peerNeed(x.SourcePeer))
			}
		}
	}
	for _, u := range s.Upstreams {
		add(s.UpstreamNeeds(u)...)
		if c := s.ownChain(u); c != nil && c != s.Chain(u) {
			add(s.chainNeeds(c)...)
		}
	}
	return needs
}

// UpstreamNeeds returns what an upstream needs besides what every upstream does. The chain in use, not one that is still
// to come, tells the instances.
func (s *Snapshot) UpstreamNeeds(u *Upstream) []Need {
	switch u.Kind {
	case ToChain:
		needs := []Need{s.chainNeed(u)}
		if c := s.Chain(u); c != nil {
			needs = append(needs, s.chainNeeds(c)...)
		}
		return needs
	case ToPeer:
		needs := []Need{s.importedNeed(u.Spec.DestinationName, u.Spec.DestinationPeer), peerNeed(u.Spec.DestinationPeer)}
		if u.Gateway == GatewayLocal {
			needs = append(needs, s.GatewaysNeed(""))
		}
		return needs
	case ToQuery:
		return []Need{s.queryNeed(u)}
	case ToDestination:
		return []Need{{Kind: NeedInstances, Service: u.Spec.DestinationName}}
	}
	return nil
}

// chainNeeds returns what the targets of a chain need.
func (s *Snapshot) chainNeeds(c *chain.Chain) []Need {
	var needs []Need
	for _, id := range targets(c) {
		t := c.Targets[id]
		needs = append(needs, s.instancesNeed(t))
		if t.Peer != "" {
			needs = append(needs, peerNeed(t.Peer))
		}
		if g, ok := s.gatewaysNeed(t); ok {
			needs = append(needs, g)
		}
	}
	return needs
}

// targets returns the IDs of a chain's targets in order.
func targets(c *chain.Chain) []string {
	ids := make([]string, 0, len(c.Targets))
	for id, t := range c.Targets {
		if t != nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (s *Snapshot) leafNeed() Need {
	if s.Proxy.Service.Kind == catalog.KindMeshGateway {
		return Need{Kind: NeedLeaf} // of all mesh gateways
	}
	return Need{Kind: NeedLeaf, Service: s.Proxy.Identity(), Hosts: s.leafHosts()}
}

func (s *Snapshot) intentionsNeed() Need {
	return Need{Kind: NeedIntentions, Service: s.Proxy.Identity()}
}

func (s *Snapshot) callableNeed() Need { return Need{Kind: NeedCallable, Service: s.Proxy.Identity()} }

func (s *Snapshot) chainNeed(u *Upstream) Need {
	return Need{Kind: NeedChain, Service: u.Spec.DestinationName, Datacenter: s.elsewhere(u.Spec.Datacenter), Overrides: u.overrides}
}

func (s *Snapshot) queryNeed(u *Upstream) Need {
	return Need{Kind: NeedQuery, Service: u.Spec.DestinationName, Datacenter: s.elsewhere(u.Spec.Datacenter)}
}

func (s *Snapshot) instancesNeed(t *chain.Target) Need {
	if t.Peer != "" {
		return s.importedNeed(t.Service, t.Peer)
	}
	return Need{Kind: NeedInstances, Service: t.Service, Datacenter: s.elsewhere(t.Datacenter), Filter: t.Subset.Filter}
}

func (s *Snapshot) importedNeed(service, peer string) Need {
	return Need{Kind: NeedInstances, Service: service, Peer: peer}
}

// bundlesNeed returns the need of whom to trust for the peers that call: those the proxy's service is exported to, for a
// mesh gateway all.
func (s *Snapshot) bundlesNeed() Need {
	if s.Proxy.Service.Kind == catalog.KindMeshGateway {
		return Need{Kind: NeedBundles}
	}
	return Need{Kind: NeedBundles, Service: s.Proxy.Identity()}
}

func peerNeed(peer string) Need { return Need{Kind: NeedPeer, Peer: peer} }

func providerNeed(name string) Need {
	return Need{Kind: NeedEntry, Entry: entry.KindJWTProvider, Service: name}
}

// GatewaysNeed returns the need of the mesh gateways of a datacenter.
func (s *Snapshot) GatewaysNeed(datacenter string) Need {
	return Need{Kind: NeedGateways, Datacenter: s.elsewhere(datacenter)}
}

// gatewaysNeed returns the gateways through which a target is reached, if it is reached through any.
func (s *Snapshot) gatewaysNeed(t *chain.Target) (Need, bool) {
	switch {
	case t.External:
		return Need{}, false
	case t.Peer != "":
		// Instances of a peer are its gateways.
		return s.GatewaysNeed(""), t.MeshGateway.Mode == GatewayLocal
	case t.Datacenter == s.Proxy.Datacenter:
		return Need{}, false
	case t.MeshGateway.Mode == GatewayLocal:
		return s.GatewaysNeed(""), true
	case t.MeshGateway.Mode == GatewayRemote:
		return s.GatewaysNeed(t.Datacenter), true
	}
	return Need{}, false
}

// elsewhere returns a datacenter as Need has it: empty for the proxy's own.
func (s *Snapshot) elsewhere(datacenter string) string {
	if datacenter == s.Proxy.Datacenter {
		return ""
	}
	return datacenter
}
