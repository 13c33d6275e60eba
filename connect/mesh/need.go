package mesh

import (
	"slices"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/connect/chain"
)

// A NeedKind says what a need is about, and of which type its answer is.
type NeedKind uint8

// The kinds of needs.
const (
	_              NeedKind = iota
	NeedRoots               // *ca.RootsReply
	NeedLeaf                // of Service: *ca.Leaf with its private key
	NeedMesh                // *entry.GetReply of the mesh entry; none is an answer
	NeedIntentions          // with destination Service: *intention.MatchReply for that one name
	NeedChain               // of Service as used from Datacenter, with Overrides: *chain.GetReply
	NeedInstances           // that speak for Service in Datacenter, those that Filter keeps: *catalog.InstancesReply
)

// A Need is one thing a snapshot is made of. Needs are comparable; which fields are set depends on the kind.
type Need struct {
	Kind       NeedKind
	Service    string
	Datacenter string // empty means the proxy's own
	Filter     string
	Overrides  chain.Overrides
}

// String tells what the need is about, for logs.
func (n Need) String() string {
	what := [...]string{"nothing", "roots", "leaf", "mesh entry", "intentions", "chain", "instances"}[n.Kind]
	for _, detail := range []string{n.Service, n.Datacenter, n.Filter} {
		if detail != "" {
			what += " " + detail
		}
	}
	return what
}

// Needs returns what the proxy needs, as far as the answers so far tell: each chain that arrives adds the instances of
// its targets.
func (s *Snapshot) Needs() []Need {
	if s.Proxy.Service.Kind != catalog.KindConnectProxy {
		return nil
	}
	needs := []Need{{Kind: NeedRoots}, s.leafNeed(), {Kind: NeedMesh}, s.intentionsNeed()}
	seen := map[Need]bool{}
	add := func(n Need) {
		if !seen[n] {
			seen[n] = true
			needs = append(needs, n)
		}
	}
	for _, u := range s.Upstreams {
		if !u.Followed() {
			continue
		}
		add(s.chainNeed(u))
		for _, c := range []*chain.Chain{s.ownChain(u), s.fallback[u.ID]} {
			if c == nil {
				continue
			}
			for _, id := range targets(c) {
				if t := c.Targets[id]; t.Peer == "" {
					add(s.instancesNeed(t))
				}
			}
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

func (s *Snapshot) leafNeed() Need { return Need{Kind: NeedLeaf, Service: s.Proxy.Identity()} }

func (s *Snapshot) intentionsNeed() Need {
	return Need{Kind: NeedIntentions, Service: s.Proxy.Identity()}
}

func (s *Snapshot) chainNeed(u *Upstream) Need {
	return Need{Kind: NeedChain, Service: u.Spec.DestinationName, Datacenter: s.elsewhere(u.Spec.Datacenter), Overrides: u.overrides}
}

func (s *Snapshot) instancesNeed(t *chain.Target) Need {
	return Need{Kind: NeedInstances, Service: t.Service, Datacenter: s.elsewhere(t.Datacenter), Filter: t.Subset.Filter}
}

// elsewhere returns a datacenter as Need has it: empty for the proxy's own.
func (s *Snapshot) elsewhere(datacenter string) string {
	if datacenter == s.Proxy.Datacenter {
		return ""
	}
	return datacenter
}
